"""Memory in huge pages: a scan of hundreds of megabytes then waits less for page tables.

Linux gives them to who asks, where `transparent_hugepage` is `always` or `madvise` (the default).
NumPy asks for its arrays; FAISS does not, so its rows are moved after they are written. Where that
does not work, on another system or a kernel before 6.1, nothing is lost.
"""

from __future__ import annotations

import ctypes
import logging
import sys

log = logging.getLogger(__name__)

PAGE = 1 << 21
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # asm-generic/mman-common.h


def collapse(address: int, size: int) -> bool:
    """Move these bytes of this process to huge pages; whether that worked for all of them."""
    begin = -(-address // PAGE) * PAGE
    length = (address + size) // PAGE * PAGE - begin
    if length <= 0 or not sys.platform.startswith("linux"):
        return False
    madvise = ctypes.CDLL(None, use_errno=True).madvise  # the interpreter's lock is free meanwhile
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madvise(begin, length, MADV_HUGEPAGE)  # the kernel may go on with it later
    if madvise(begin, length, MADV_COLLAPSE) == 0:
        return True
    log.debug("no huge pages for %d bytes: errno %d", length, ctypes.get_errno())
    return False
