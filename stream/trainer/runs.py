"""Training runs on disk: one folder each, with the request, progress and state.

    training/20261126T033700.123Z-1f6c/
        run.json         its options, the champion it saw, the version it writes, its state
        run.lock         locked while its trainer's process exists
        window.json      the window (braid.stream.trainer.window), with its shards
        state/           the training's own state (braid.encoders.training.resume), until it is done

A run is `open` until its version is written and announced. The next trainer resumes an open run
whose trainer has ended, if its options are the same and the champion is still the one that the run
saw; else it gives the run up with a reason. A run that its own data or training ended is `failed`:
it would fail again, so the next trainer begins a new one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from braid.index.files import replaced, sync_folder

from ..errors import RegistryError
from ..registry.versions import Champion, Registry
from ..settings import Settings
from .remote_windows import RUN as FILE_NAME
from .remote_windows import RemoteWindows, remote_windows_of
from .window import FILE_NAME as WINDOW_FILE
from .window import SHARDS, Window, open_window, sweep

log = logging.getLogger(__name__)

FORMAT = 1
LOCK_NAME = "run.lock"
STATE = "state"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run.

    Attributes:
        asked: the options that its result depends on beside the window: configuration, seed, ...
        name, version: of the version that it writes; reserved for this run.
        parent: the version whose weights it starts from.
        champion, seq: the champion when it began and its number; 0: there was none.
        window_of: the run whose window it uses; its own id, unless it repeats another.
        state: "open", "done", "given up" or "failed"; `note` says why.
    """

    id: str
    began_at: str
    asked: Mapping[str, Any]
    name: str
    version: int
    parent: str | None = None
    champion: str | None = None
    seq: int = 0
    window_of: str = ""
    reason: str = "asked for"
    state: Literal["open", "done", "given up", "failed"] = "open"
    note: str = ""
    format: int = field(default=FORMAT)


class Runs:
    """The runs below one folder.

    Args:
        root: made when the first run begins.
        remote: copies of windows; None: there are none.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        root: Path,
        *,
        remote: RemoteWindows | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self._remote, self._wall = remote, wall

    def folder(self, id_: str) -> Path:
        return self.root / id_

    def all(self) -> list[Run]:
        """Every readable run, oldest first."""
        runs = []
        for path in sorted(self.root.glob(f"*/{FILE_NAME}")):
            with suppress(RegistryError):
                runs.append(self.read(path.parent.name))
        return runs

    def read(self, id_: str) -> Run:
        """Raises RegistryError: there is no such run, or its file does not parse."""
        path = self.folder(id_) / FILE_NAME
        try:
            return _run(json.loads(path.read_bytes()), str(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"no run {id_!r} in {self.root}: {error!r}") from error

    def resolve(self, name: str) -> Run:
        """The run of that id, or the one that made the version of that name; here, or a copy.

        Raises RegistryError: there is none; the message lists those that are here.
        """
        runs = self.all()
        for run in reversed(runs):
            if name in (run.id, run.name):
                return run
        if self._remote is not None and (raw := self._remote.run(name)) is not None:
            return _run(raw, f"the copy of run {raw['id']}")
        known = ", ".join(f"{run.id} ({run.name})" for run in runs) or "none yet"
        raise RegistryError(f"no run {name!r}; there are: {known}")

    def write(self, run: Run) -> Run:
        """Write the run's file; returns the run."""
        folder = self.folder(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        replaced(folder / FILE_NAME, json.dumps(asdict(run), indent=1).encode())
        sync_folder(self.root)
        return run

    def window(self, run: Run) -> Window | None:
        """The run's window if it is complete; None: it is not read yet.

        Raises WindowError: it repeats another run whose window is gone.
        """
        folder = self.folder(run.window_of)
        if run.window_of == run.id and not (folder / WINDOW_FILE).is_file():
            return None
        return open_window(folder)

    def whole_window(self, id_: str) -> Window:
        """A run's window, downloaded if it is not here.

        Raises:
            WindowError: it is gone or damaged.
            RegistryAway: it is not here, and the object store does not answer.
        """
        folder = self.folder(id_)
        if self._remote is not None and not (folder / WINDOW_FILE).is_file():
            self.root.mkdir(parents=True, exist_ok=True)
            self._remote.fetch(id_, folder)
        return open_window(folder)

    def upload(self, run: Run, *, keep: int) -> None:
        """Copy a run's window to the object store, if asked; the newest `keep` are kept there.

        Raises RegistryError: the store refuses it, or is away for too long.
        """
        if self._remote is not None:
            self._remote.upload(asdict(run), self.folder(run.window_of))
            self._remote.forget(keep)

    def remove(self, id_: str) -> None:
        """Remove a run with its window, and the copy. Raises RegistryError: the store is away."""
        if self._remote is not None:
            self._remote.remove(id_)
        shutil.rmtree(self.folder(id_), ignore_errors=True)

    def begin(
        self,
        registry: Registry,
        champion: Champion | None,
        asked: Mapping[str, Any],
        *,
        parent: str | None,
        repeat: Run | None = None,
        reason: str = "asked for",
    ) -> Run:
        """Write a new run. `repeat` is the run whose window it uses."""
        now = datetime.fromtimestamp(self._wall(), UTC)
        stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z"  # ids sort by their start
        id_ = f"{stamp}-{uuid.uuid4().hex[:4]}"
        name, version = registry.claim(id_)
        run = Run(
            id=id_,
            began_at=now.isoformat(timespec="seconds"),
            asked=dict(asked),
            name=name,
            version=version,
            parent=parent,
            champion=champion.name if champion else None,
            seq=champion.seq if champion else 0,
            window_of=repeat.window_of if repeat else id_,
            reason=reason,
        )
        return self.write(run)

    def unfinished(self) -> Run | None:
        """The newest open run whose trainer has ended; older ones are given up."""
        dead = [run for run in self.all() if run.state == "open" and not self.is_running(run)]
        for run in dead[:-1]:
            self.close(run, "given up", f"{dead[-1].id} began after it")
        return dead[-1] if dead else None

    def close(self, run: Run, state: Literal["given up", "failed"], why: str) -> None:
        """End a run that made no version: its state and its window are removed, its file stays.

        `failed`: its own data or training ended it.
        """
        self.write(replace(run, state=state, note=why))
        self._empty(run.id)
        if self._remote is not None:
            try:
                self._remote.remove(run.id)
            except RegistryError as error:  # `forget` removes it later
                log.warning("the copy of run %s's window stays for now: %s", run.id, error)

    def is_running(self, run: Run) -> bool:
        """Whether the process that owns the run exists, running or stopped."""
        path = self.folder(run.id) / LOCK_NAME
        if not path.is_file():
            return False
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    @contextmanager
    def owned(self, run: Run) -> Iterator[None]:
        """Own the run until the block or the process ends.

        Raises RegistryError: another process owns it.
        """
        with (self.folder(run.id) / LOCK_NAME).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RegistryError(f"run {run.id} belongs to another process") from None
            yield

    def sweep(self, registry: Registry, *, keep: int) -> None:
        """Remove leftovers of killed trainers, and the windows of all but the newest `keep` runs.

        Files of a running trainer are kept, and so are windows that a kept run repeats.
        """
        if not self.root.is_dir():
            return
        runs = self.all()
        living = {run.name for run in runs if run.state == "open" and self.is_running(run)}
        registry.sweep(living)
        for draft in self.root.glob(".*.tmp"):  # of a download
            shutil.rmtree(draft, ignore_errors=True)
        kept = {run.window_of for run in runs if run.state == "open"}
        kept |= {run.window_of for run in [r for r in runs if r.state == "done"][-keep:]}
        for run in runs:
            if run.name in living:
                continue
            for draft in self.folder(run.id).glob(f".{FILE_NAME}.*"):
                draft.unlink(missing_ok=True)
            if run.state == "open":
                sweep(self.folder(run.id))
            else:
                shutil.rmtree(self.folder(run.id) / STATE, ignore_errors=True)
                if run.id not in kept:
                    self._empty(run.id)

    def _empty(self, id_: str) -> None:
        """Remove the window, its file first, and the state."""
        folder = self.folder(id_)
        (folder / WINDOW_FILE).unlink(missing_ok=True)
        for name in (SHARDS, STATE):
            shutil.rmtree(folder / name, ignore_errors=True)


def runs_of(settings: Settings) -> Runs:
    """The runs below the settings' home, with the copies of windows that they ask for.

    Raises ConfigError: copies without an object store.
    """
    return Runs(settings.home / "training", remote=remote_windows_of(settings))


def _run(raw: dict[str, Any], where: str) -> Run:
    if raw["format"] != FORMAT:
        raise RegistryError(f"{where}: format {raw['format']}, this braid reads {FORMAT}")
    return Run(**raw)


def differs(run: Run, asked: Mapping[str, Any], champion: Champion | None) -> str | None:
    """How an unfinished run differs from the options and the champion now; None: it does not."""
    changed = sorted(
        name for name in {*run.asked, *asked} if run.asked.get(name) != asked.get(name)
    )
    if changed:
        return ", ".join(
            f"{name} was {run.asked.get(name)!r}, is {asked.get(name)!r}" for name in changed
        )
    seq = champion.seq if champion else 0
    if champion is not None and champion.name == run.name:
        return None  # it was killed after its own promotion
    if seq != run.seq:
        serves = champion.name if champion else "nobody"
        return f"it saw champion number {run.seq} ({run.champion}), now it is {seq} ({serves})"
    return None
