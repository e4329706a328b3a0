"""braid's processes on one machine: started together, watched together, stopped together.

`braid demo` runs on it. Each process is `python -m stream COMMAND` with the settings in its
environment and a log file of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .children import Child, ChildError
from .embedded import EmbeddedServices
from .settings import Settings

# Half of it is how long the embedded broker lets a group's first member wait.
EMBEDDED_SESSION_S = 4.0


class Fleet:
    """Processes that live and end together, as a context manager.

    Args:
        settings: every process gets these.
        logs: the folder of their log files.
    """

    def __init__(self, settings: Settings, logs: Path) -> None:
        self.settings = settings
        self._logs = logs
        self._children: list[Child] = []

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, command: str, *arguments: str) -> Child:
        """Start `braid COMMAND ARGUMENTS` and watch it from here on."""
        child = self._child(command, *arguments).start()
        self._children.append(child)
        return child

    def run(self, command: str, *arguments: str, timeout: float) -> None:
        """Run a command to its end, passing what it prints on to standard error.

        Raises ChildError if it fails or takes over `timeout` seconds.
        """
        child = self._child(command, *arguments).start()
        deadline = time.monotonic() + timeout
        try:
            with child.log.open("rb") as said:
                while child.running:
                    if time.monotonic() > deadline:
                        raise ChildError(f"{child.name} took over {timeout:g} s:\n{child.tail()}")
                    self.check()
                    _pass_on(said.read())
                    time.sleep(0.1)
                _pass_on(said.read())
        finally:
            child.stop()
        if child.status != 0:
            child.check()

    def check(self) -> None:
        """Raise ChildError with the end of its log if one has ended."""
        for child in self._children:
            child.check()

    def wait(self, what: str, done: Callable[[], int], target: int, *, stalled: float) -> None:
        """Wait, with a progress bar, until `done()` reaches `target`.

        Raises ChildError if a process ends, or if nothing moves for `stalled` seconds.
        """
        last, since = 0, time.monotonic()
        with bar(what, total=target) as shown:
            while last < target:
                self.check()
                now = done()
                if now != last:
                    shown.update(now - last)
                    last, since = now, time.monotonic()
                    continue
                if time.monotonic() - since > stalled:
                    logs = "\n".join(f"{child.name}:\n{child.tail(15)}" for child in self._children)
                    raise ChildError(
                        f"{what}: {last} of {target}, and nothing moved for {stalled:g} s\n{logs}"
                    )
                time.sleep(0.2)

    def stop(self) -> None:
        """Stop all, the last started first."""
        while self._children:
            self._children.pop().stop()

    def _child(self, command: str, *arguments: str) -> Child:
        return Child(
            f"braid {command}",
            [sys.executable, "-m", "stream", command, *arguments],
            log=self._logs / f"{command}.log",
            env=self.settings.environment() | {"TQDM_MININTERVAL": str(_between_bars())},
        )


def bar(what: str, items: Iterable[Any] | None = None, *, total: int | None = None) -> tqdm:
    """A progress bar on standard error; few lines where that is a file."""
    return tqdm(items, desc=what, total=total, file=sys.stderr, mininterval=_between_bars())


def _between_bars() -> float:
    """Seconds between two drawings of a bar."""
    return 0.1 if sys.stderr.isatty() else 10.0


@contextmanager
def services(settings: Settings, folder: Path) -> Iterator[Settings]:
    """Settings with a broker and Redis: those given, else embedded ones with logs in `folder`."""
    broker = "kafka_bootstrap" not in settings.model_fields_set
    redis = settings.redis_url is None
    own: dict[str, Any] = {}
    with EmbeddedServices(folder, broker=broker, redis=redis) as embedded:
        if broker:
            own |= {"kafka_bootstrap": embedded.bootstrap, "embedded": True}
            if "session_timeout_s" not in settings.model_fields_set:
                own["session_timeout_s"] = EMBEDDED_SESSION_S
        if redis:
            own["redis_url"] = embedded.redis_url
        yield settings.model_copy(update=own)


def _pass_on(output: bytes) -> None:
    if output:
        sys.stderr.write(output.decode("utf-8", "replace"))
        sys.stderr.flush()
