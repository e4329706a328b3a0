"""Moves memory to huge pages, which makes large scans faster.

Linux uses huge pages on request where `transparent_hugepage` is `always` or `madvise` (the
default). NumPy requests them; FAISS does not, so its rows are moved after they are written. On
other systems and on kernels before 6.1 the call has no effect.
"""

from __future__ import annotations

import ctypes
import logging
import sys

log = logging.getLogger(__name__)

PAGE = 1 << 21
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # asm-generic/mman-common.h


def collapse(address: int, size: int) -> bool:
    """Move this memory to huge pages; returns whether all of it was moved."""
    begin = -(-address // PAGE) * PAGE
    length = (address + size) // PAGE * PAGE - begin
    if length <= 0 or not sys.platform.startswith("linux"):
        return False
    madvise = ctypes.CDLL(None, use_errno=True).madvise  # ctypes releases the GIL
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madvise(begin, length, MADV_HUGEPAGE)  # lets the kernel do it later
    if madvise(begin, length, MADV_COLLAPSE) == 0:
        return True
    log.debug("no huge pages for %d bytes: errno %d", length, ctypes.get_errno())
    return False
