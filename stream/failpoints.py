"""Failpoints: named places at which a test makes the process stop, exit or raise.

    BRAID_FAILPOINT=before-publish:stop:3     the third pass sends SIGSTOP to this process
    BRAID_FAILPOINT=before-encode:raise:2     the second pass raises RuntimeError
    BRAID_FAILPOINT=after-publish:kill:1      the first pass sends SIGKILL
    BRAID_FAILPOINT=before-encode:hang        the first pass hangs without limit

Without the variable a failpoint costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
import threading

WORKER = ("before-encode", "before-publish", "after-publish", "after-chunk")
INDEX = (
    "after-apply",
    "before-snapshot",
    *(f"snapshot-{step}" for step in ("begin", "files", "manifest", "renamed", "old-gone", "end")),
    *(f"segment-{step}" for step in ("begin", "vectors", "files", "sealed", "publish")),
)
JOIN = ("join-before-publish", "join-in-transaction", "join-after-publish")
INGEST = ("ingest-before-publish", "ingest-after-publish")
FLIP = ("flip-handed-over", "flip-promoted")
UPLOAD = ("upload-file", "upload-manifest", "upload-published")
LOG = ("log-before-event", "log-event")
NAMES = (*WORKER, *INDEX, *JOIN, *INGEST, *FLIP, *UPLOAD, *LOG)


class Failpoints:
    """The failpoints of one process, read from the environment when the process starts."""

    def __init__(self, spec: str | None = None) -> None:
        self._armed: dict[str, tuple[str, int]] = {}
        for part in filter(None, (spec or "").split(",")):
            name, action, passes = (*part.split(":"), "1")[:3]
            if name not in NAMES or action not in ("stop", "kill", "raise", "hang"):
                raise ValueError(
                    f"BRAID_FAILPOINT: {part!r} is not NAME:stop|kill|raise|hang[:PASS]"
                )
            self._armed[name] = (action, int(passes))

    @classmethod
    def from_environment(cls) -> Failpoints:
        return cls(os.environ.get("BRAID_FAILPOINT"))

    def __call__(self, name: str) -> None:
        if name not in self._armed:
            return
        action, passes = self._armed[name]
        if passes > 1:
            self._armed[name] = (action, passes - 1)
            return
        del self._armed[name]
        if action == "raise":
            raise RuntimeError(f"failpoint {name}")
        if action == "hang":
            threading.Event().wait()
        # To this thread: one that goes to the process may be taken by another thread, and this one
        # would go on for a while, into what it was to stop before.
        signal.pthread_kill(
            threading.get_ident(), signal.SIGSTOP if action == "stop" else signal.SIGKILL
        )
