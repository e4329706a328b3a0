"""Ends the process: in order if possible, and within a bound in any case.

A broker that is away, a thread that a library leaves behind or a device call that hangs would hold
an orderly end up without limit. Nothing is lost by a hard one: what is not committed is read again.
"""

from __future__ import annotations

import logging
import os
import threading
import time

log = logging.getLogger(__name__)

STOP_WITHIN_S = 15.0  # after SIGTERM; compose and Kubernetes kill after 30


def end_within(seconds: float, *, status: int, why: str) -> None:
    """End the process with `status` after `seconds`, unless it has ended by itself until then."""

    def end() -> None:
        time.sleep(seconds)
        log.critical("still there %g s after %s: ended at once", seconds, why)
        os._exit(status)

    threading.Thread(target=end, name="end anyway", daemon=True).start()
