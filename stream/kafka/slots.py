"""Slots: names of processes, stable across restarts, that are part of their transactional ids."""

from __future__ import annotations

import fcntl
import re
import socket
from pathlib import Path
from typing import IO

from ..errors import ConfigError
from ..settings import Settings

MAX_SLOTS = 256


class Slot:
    """A claimed name, held until `release` or the process ends."""

    def __init__(self, name: str, lock: IO[str] | None) -> None:
        self.name = name
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()


def claim_slot(settings: Settings, kind: str = "") -> Slot:
    """The slot of `--slot`, else the first that is free on this host.

    A slot is part of the transactional ids, which survive a restart by it: with the same id the
    broker completes or aborts a killed worker's transaction at once, instead of after the
    transaction timeout, during which read_committed consumers are blocked. On one host the slot is
    the first free lock file; the kernel releases it when its holder dies. A slot is independent of
    generations: its worker has one transactional id for each generation.

    Args:
        kind: of the processes that share the slots; empty: embed workers.

    Raises:
        ConfigError: MAX_SLOTS workers share this home.
    """
    if settings.worker.slot is not None:
        return Slot(settings.worker.slot, None)
    folder: Path = settings.home / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:60]
    for number in range(MAX_SLOTS):
        name = f"{settings.prefix}braid-{kind}{host}-{number}.lock"
        lock = open(folder / name, "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return Slot(f"{host}-{number}", lock)
    raise ConfigError(f"{MAX_SLOTS} workers of one prefix share {folder}")
