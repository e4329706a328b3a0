"""The processes of `braid up` and `braid demo`: started, watched and stopped together.

Each process is `python -m braid COMMAND` with the settings in its environment and a log file of its
own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import ConfigError
from ..settings import Settings
from .child import Child, ChildError, stop_all
from .embedded import EmbeddedServices

STOPPED_WITHIN_S = 20.0  # a worker's own bound


class Fleet:
    """Processes that are started and stopped together, as a context manager.

    Args:
        settings: of every process.
        logs: the folder of their log files.
    """

    def __init__(self, settings: Settings, logs: Path) -> None:
        self.settings = settings
        self._logs = logs
        self.children: list[Child] = []

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, command: str, *arguments: str, settings: Settings | None = None) -> Child:
        """Start `braid COMMAND ARGUMENTS` and watch it.

        Args:
            settings: None: those of the fleet.
        """
        child = self._child(command, *arguments, settings=settings).start()
        self.children.append(child)
        return child

    def run(self, command: str, *arguments: str, timeout: float) -> None:
        """Run a command to its end; its output is copied to standard error.

        Raises ChildError if it fails or takes over `timeout` seconds.
        """
        child = self._child(command, *arguments).start()
        deadline = time.monotonic() + timeout
        try:
            for _ in child.copy_output():
                if time.monotonic() > deadline:
                    raise ChildError(f"{child.name} took over {timeout:g} s:\n{child.tail()}")
                self.check()
                time.sleep(0.1)
        finally:
            child.stop()
        if child.status != 0:
            child.check()

    def check(self) -> None:
        """Raise ChildError with the end of its log if one has ended."""
        for child in self.children:
            child.check()

    def wait(self, what: str, done: Callable[[], int], target: int, *, stalled: float) -> None:
        """Wait, with a progress bar, until `done()` reaches `target`.

        Raises ChildError if a process ends, or if there is no progress for `stalled` seconds.
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
                    logs = "\n".join(f"{child.name}:\n{child.tail(15)}" for child in self.children)
                    raise ChildError(
                        f"{what}: {last} of {target}, and nothing moved for {stalled:g} s\n{logs}"
                    )
                time.sleep(0.2)

    def stop(self) -> None:
        """Stop all at once: SIGTERM, and SIGKILL after `STOPPED_WITHIN_S`."""
        stop_all(self.children, STOPPED_WITHIN_S)
        self.children.clear()

    def _child(self, command: str, *arguments: str, settings: Settings | None = None) -> Child:
        return Child(
            f"braid {command}",
            [sys.executable, "-m", "braid", command, *arguments],
            log=self._logs / f"{command}.log",
            env=(settings or self.settings).environment()
            | {"TQDM_MININTERVAL": str(_between_bars())},
        )


def bar(what: str, items: Iterable[Any] | None = None, *, total: int | None = None) -> tqdm:
    """A progress bar on standard error; rarely drawn if that is a file."""
    return tqdm(items, desc=what, total=total, file=sys.stderr, mininterval=_between_bars())


def _between_bars() -> float:
    """Seconds between two drawings of a bar."""
    return 0.1 if sys.stderr.isatty() else 10.0


def embedded_services(
    settings: Settings, folder: Path, *, prefer: int | None = None, grace: float = 0
) -> EmbeddedServices:
    """Kafka and Valkey, as far as the settings do not name them; see `EmbeddedServices`.

    Raises:
        ConfigError: they are to be reached in a way that the embedded ones do not offer.
    """
    broker = "bootstrap" not in settings.kafka.model_fields_set
    if broker and settings.kafka.security_protocol != "PLAINTEXT":
        raise ConfigError(
            "kafka.security_protocol: the embedded broker has PLAINTEXT only; set kafka.bootstrap"
        )
    if settings.redis.url is None and (settings.redis.password or settings.redis.password_file):
        raise ConfigError("redis.password: the embedded Valkey has none; set redis.url")
    return EmbeddedServices(
        folder,
        broker=broker,
        redis=settings.redis.url is None,
        prefer=prefer,
        grace=grace,
    )


def with_addresses(settings: Settings, embedded: EmbeddedServices) -> Settings:
    """The settings with the addresses of the running services."""
    addresses = {
        "kafka": {"bootstrap": embedded.bootstrap} if embedded.bootstrap else {},
        "redis": {"url": embedded.redis_url} if embedded.redis_url else {},
    }
    return settings.replace(**addresses)


@contextmanager
def services(settings: Settings, folder: Path) -> Iterator[Settings]:
    """Settings with a broker and Redis: those named, else embedded ones with data in `folder`.

    At the end the embedded ones are killed: the folder is not used again.
    """
    with embedded_services(settings, folder) as embedded:
        yield with_addresses(settings, embedded)
