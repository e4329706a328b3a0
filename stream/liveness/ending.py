"""Ends the process: in order if possible, and within a bound in any case.

An unavailable broker, a thread that a library leaves running or a device call that hangs can delay
an orderly end without limit. A hard end loses nothing: uncommitted records are read again.
"""

from __future__ import annotations

import logging
import os
import threading
import time

log = logging.getLogger(__name__)

STOP_WITHIN_S = 15.0  # after SIGTERM; compose and Kubernetes kill after 30


def end_within(seconds: float, *, status: int, why: str) -> None:
    """End the process with `status` after `seconds` if it has not ended by then."""

    def end() -> None:
        time.sleep(seconds)
        log.critical("still there %g s after %s: ended at once", seconds, why)
        os._exit(status)

    threading.Thread(target=end, name="end anyway", daemon=True).start()
