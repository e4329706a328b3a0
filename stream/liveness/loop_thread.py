"""Runs a loop on a thread of its own, and a new one, after a pause, when it fails.

The process continues: what makes a loop fail is logged and counted, and appears in `problems`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from ..errors import StreamError
from ..retries import Retries

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
STOP_WITHIN_S = 5.0


class Loop(Protocol):
    """`run` works until `stop`, which any thread may call, or until it raises."""

    def run(self) -> None: ...
    def stop(self) -> None: ...


L = TypeVar("L", bound=Loop)


class LoopThread(Generic[L]):
    """One loop at a time.

    Args:
        name: of the thread, and in messages.
        make: makes a loop; gets what the loop calls after each step that went well.
        failed: called when a loop has failed.

    Attributes:
        loop: the last one that was made.
        problems: {name: why it does not run}; empty while it works.
    """

    def __init__(
        self, name: str, make: Callable[[Callable[[], None]], L], *, failed: Callable[[], None]
    ) -> None:
        self.name = name
        self._make, self._failed = make, failed
        self._stopping = threading.Event()
        self._retries = Retries[str](first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.loop: L | None = None
        self.problems: Mapping[str, str] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon; does not wait."""
        self._stopping.set()
        if self.loop is not None:
            self.loop.stop()

    def close(self, within_s: float = STOP_WITHIN_S) -> None:
        """Stop; what has not ended within `within_s` is left to the end of the process."""
        self.stop()
        self._thread.join(within_s)
        if self._thread.is_alive():
            log.warning("%s has not ended within %g s: left behind", self.name, within_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.loop = self._make(self._working)
                if self._stopping.is_set():
                    self.loop.stop()
                self.loop.run()
            except Exception as error:  # the process continues
                failure = self._retries.failed(self.name, str(error) or type(error).__name__)
                unexpected = None if isinstance(error, StreamError) else error
                log.error(
                    "%s stops, the process runs on: %s", self.name, failure, exc_info=unexpected
                )
                self._failed()
                self.problems = {self.name: str(failure)}
                self._stopping.wait(failure.pause_s)

    def _working(self) -> None:
        if self.problems:
            self.problems = {}
