"""A Chrome trace of a worker's steps, for chrome://tracing and https://ui.perfetto.dev.

The file is a list of JSON trace events (the Trace Event Format of the Chromium project), in which
the closing bracket may be missing: it can be read while the worker runs, or after it was killed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..settings import MIB, Settings

log = logging.getLogger(__name__)

MAX_BYTES = 256 * MIB  # what Perfetto opens in a browser without trouble
FLUSH_S, FLUSH_BYTES = 1.0, 64 * 1024
SHORTEST_S = 0.0001  # passes of a loop without work are left out


class Trace:
    """Writes spans to a file, up to a size. Thread-safe.

    Args:
        file: is replaced.
        limit: bytes; spans beyond it are dropped.
    """

    def __init__(self, file: Path, *, limit: int = MAX_BYTES) -> None:
        # Without a buffer of its own, which would write half an event.
        self._file = open(file, "wb", buffering=0)  # noqa: SIM115 (while the process runs)
        self._pending = bytearray(b"[\n")
        self._lock = threading.Lock()
        self._left, self._pid = limit, os.getpid()
        self._flushed = 0.0
        self._threads: set[int] = set()
        self._ids = count(1)

    def span(self, name: str, began: float, ended: float, **args: object) -> None:
        """A step of this thread, between two monotonic times in seconds."""
        if ended - began >= SHORTEST_S:
            event = {"name": name, "ph": "X", "ts": _us(began), "dur": _us(ended - began)}
            self._write([event | {"args": args}], ended)

    def wait(self, name: str, began: float, ended: float, **args: object) -> None:
        """What overlaps with other steps of this thread, such as the time in a queue."""
        event = {"name": name, "cat": "wait", "id": next(self._ids)}
        first = event | {"ph": "b", "ts": _us(began), "args": args}
        self._write([first, event | {"ph": "e", "ts": _us(ended)}], ended)

    def close(self) -> None:
        """Write what is buffered."""
        with self._lock:
            self._flush()
            self._file.close()

    def _write(self, events: list[dict[str, Any]], now: float) -> None:
        thread = threading.get_ident()
        where = {"pid": self._pid, "tid": thread % 2**31}
        with self._lock:
            if thread not in self._threads:
                self._threads.add(thread)
                name = {"name": threading.current_thread().name}
                events = [{"name": "thread_name", "ph": "M", "args": name}, *events]
            lines = "".join(f"{json.dumps(event | where)},\n" for event in events).encode()
            self._left -= len(lines)
            if self._left >= 0 and not self._file.closed:
                self._pending += lines
                if now - self._flushed > FLUSH_S or len(self._pending) > FLUSH_BYTES:
                    self._flushed = now
                    self._flush()

    def _flush(self) -> None:
        try:
            self._file.write(self._pending)
        except OSError as error:  # such as a full disk: the worker runs on
            self._left = -1
            log.warning("the trace ends: %s", error.strerror)
        self._pending.clear()


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


@lru_cache(maxsize=1)
def _trace(file: Path) -> Trace:
    try:
        return Trace(file)
    except OSError as error:
        raise ConfigError(f"worker.profile: {file} cannot be written: {error.strerror}") from None


def trace_of(settings: Settings) -> Trace | None:
    """The trace that the settings ask for; one for all workers of a process.

    Raises:
        ConfigError: its file cannot be written.
    """
    return None if settings.worker.profile is None else _trace(settings.worker.profile)
