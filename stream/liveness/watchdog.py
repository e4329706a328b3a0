"""Ends a process that cannot make progress, after writing all stacks to standard error.

A thread that hangs in a system or device call cannot be joined or interrupted, so an orderly end
would wait for it without limit. A hard end loses nothing: uncommitted records are read again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from typing import NoReturn

STUCK = 70  # exit status (EX_SOFTWARE of sysexits.h): a bound on progress was passed
DUMP_WITHIN_S = 5.0  # writing the stacks may hang, too, as into a pipe without a reader


def dump_and_exit(reason: str) -> NoReturn:
    """Write `reason` and the stacks of all threads to standard error; end with status `STUCK`.

    Neither logging nor `sys.stderr` is used: another thread may hold their locks. No exit handler
    runs. May be called from any thread.
    """
    with contextlib.suppress(RuntimeError):  # no memory for another thread
        threading.Thread(target=_exit_later, name="exit later", daemon=True).start()
    with contextlib.suppress(OSError):
        os.write(2, f"\nended at once: {reason}\n".encode(errors="replace"))
        faulthandler.dump_traceback(file=2, all_threads=True)
    os._exit(STUCK)


def rearm(bound_s: float) -> None:
    """End the process, with its stacks, unless `rearm` or `disarm` is called within `bound_s`.

    The timer is a C thread, so that it also ends a process in which a call hangs while it holds the
    GIL. There is one timer in a process. The exit status is 1.
    """
    faulthandler.dump_traceback_later(bound_s, exit=True, file=sys.__stderr__ or 2)


def disarm() -> None:
    """Stop the timer of `rearm`."""
    faulthandler.cancel_dump_traceback_later()


def _exit_later() -> None:
    time.sleep(DUMP_WITHIN_S)
    os._exit(STUCK)
