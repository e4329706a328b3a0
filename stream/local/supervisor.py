"""Supervision of child processes: restarts with exponential backoff."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

from ..retries import Retries
from .child import Child

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0  # also how long a process must run for the pauses to be reset
TAIL_LINES = 12
LINE_CHARS = 300


class Supervisor:
    """Restarts children that have ended, and reports each end with its reason.

    The others keep running. An exit status of `os.EX_CONFIG` at a child's first run raises, since a
    restart does not help. Later ends are retried without limit, at most `LONGEST_PAUSE_S` apart.

    Args:
        children: running children.
        report: called with each message, which may have several lines.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        children: Sequence[Child],
        report: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._children = list(children)
        self._report = report
        self._clock = clock
        self._retries: Retries[Child] = Retries(
            clock, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S
        )
        self._ended: set[Child] = set()
        self._restarted: set[Child] = set()

    def check(self) -> None:
        """Check every child once, without waiting. Raises ChildError: a configuration error."""
        for child in self._children:
            if child.running:
                continue
            if child not in self._ended:
                self._note_end(child)
            elif self._retries.pausing(child) is None:
                self._start(child)

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except OSError as error:  # no memory, or no more processes
            failure = self._retries.failed(child, str(error))
            self._report(f"{child.name} cannot be started: {failure}")
            return
        self._ended.discard(child)
        self._restarted.add(child)
        self._report(f"{child.name} is started again (pid {child.pid})")

    def _note_end(self, child: Child) -> None:
        if child.status == os.EX_CONFIG and child not in self._restarted:
            child.check()
        self._ended.add(child)
        reason = describe_status(child.status)
        failure = self._retries.failed(child, reason)
        tail = "\n".join(f"  | {line[:LINE_CHARS]}" for line in child.tail(TAIL_LINES).splitlines())
        self._report(
            f"{child.name} ended ({reason}); it is started again in {failure.pause_s:g} s; "
            f"the end of {child.log}:\n{tail}"
        )


def describe_status(status: int | None) -> str:
    """An exit status as text: `status 1`, `SIGKILL`."""
    if status is not None and status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"status {status}"
