"""Processes that kill themselves in the middle of a snapshot or a merge, and checks of the result.

    python -m tests.index.crashing FOLDER --runs 200 --seed 1

One process imports everything once; each run is a chain of its forks on one folder. A fork restores
the newest snapshot, compares it with the oracle at the restored positions, reads the rest of the
history, seals, merges and takes snapshots, and sends itself SIGKILL at the n-th pass of a
failpoint. The last fork of a chain reaches the end of the history. Prints the number of kills at
each failpoint.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import logging
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from braid.index.errors import SnapshotError
from braid.index.segments import writer
from braid.index.segments.compaction import maintain
from braid.index.segments.snapshot import KEEP, restore, save, segments_folder
from tests.index.histories import SMALL, Batch, after, history, make, settle
from tests.index.oracle import assert_same

POINTS = (
    *(f"snapshot-{step}" for step in ("begin", "files", "manifest", "renamed", "old-gone", "end")),
    *(f"segment-{step}" for step in ("begin", "vectors", "files", "sealed", "publish")),
)
BATCHES = 18
SAVE_EVERY = 4
BLOCK = 6
MOST_PASSES = {"snapshot": 5, "segment": 9}  # fewer than a whole history has


@dataclass
class Killer:
    """A failpoint: SIGKILL at the given pass of the given point; none if `point` is empty."""

    point: str = ""
    passes: int = 1

    def __call__(self, name: str) -> None:
        if name == self.point:
            self.passes -= 1
            if self.passes == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def live(home: Path, batches: list[Batch], killer: Killer, output: Path) -> None:
    """One life: restore, compare, go on to the end of the history."""
    restored = restore(home, failpoint=killer)
    store = restored.store if restored else make(BLOCK, home=home)
    store.block = BLOCK
    if restored is None:
        store.recipe = type(store.recipe)(
            dim=store.dim, folder=segments_folder(home), failpoint=killer
        )
    reached = store.positions.get(0, 0)
    promised = int(output.read_text()) if output.exists() else 0
    assert reached >= promised, f"{reached} restored, but a snapshot of {promised} was finished"
    assert not list(home.glob("*.damaged")), "the newest snapshot was not whole"
    assert restored is None or restored.facts == {"reached": reached}
    assert_same(store, after(batches[:reached]), seed=reached, brief=True)
    for number, batch in enumerate(batches[reached:], start=reached + 1):
        store.apply(batch, positions={0: number}, progress={0: number})
        if number % 3 == 0:
            maintain(store, SMALL)
        if number % SAVE_EVERY == 0:
            save(store, home, generation="g1", facts={"reached": number}, failpoint=killer)
            output.write_text(str(number))
        if number % 5 == 0:
            settle(store)
    assert_same(store, after(batches), brief=True)
    store.apply([], positions={1: store.positions.get(1, 0) + 1}, progress={})
    try:
        save(store, home, generation="g1", facts={"reached": len(batches)}, failpoint=killer)
    except SnapshotError as error:
        raise AssertionError("the last snapshot cannot be written") from error
    output.write_text(str(len(batches)))
    _nothing_left_over(home, {segment.name for segment in store.segments()})


def _nothing_left_over(home: Path, in_view: set[str]) -> None:
    snapshots = [path for path in home.iterdir() if path.name != "segments"]
    assert len(snapshots) <= KEEP, snapshots
    used = set(in_view)
    for path in snapshots:
        manifest = json.loads((path / "manifest.json").read_bytes())
        used |= {given["name"] for given in manifest["segments"]}
    there = {path.name for path in segments_folder(home).glob("*")}
    assert there <= used, there - used


def in_a_fork(work: tuple[Path, list[Batch], Killer, Path]) -> bool:
    """Whether it was killed. Raises RuntimeError if it failed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            live(*work)
            code = 0
        except BaseException:  # noqa: BLE001 - said by the exit status
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        raise RuntimeError(f"status {status}")
    return False


def chain(home: Path, seed: int, point: str) -> int:
    """Lives on one folder until one reaches the end; how many were killed."""
    rng = random.Random(seed)
    batches = history(seed, batches=BATCHES, ids=18)
    printed = home.with_suffix(".said")
    killed = 0
    while True:
        most = MOST_PASSES[point.split("-")[0]] if point else 1
        killer = Killer(point, rng.randint(1, most))
        if not in_a_fork((home, batches, killer, printed)):
            break
        killed += 1
        # Perhaps once more, elsewhere; then to the end.
        point = rng.choice(POINTS) if killed < 3 and rng.random() < 0.4 else ""
    if in_a_fork((home, batches, Killer(), printed)):  # and it can be read again
        raise RuntimeError("killed by somebody else")
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    faulthandler.enable()
    writer.YIELD_S = 0.0  # nobody else wants the interpreter
    for _ in range(2):  # what is imported late is imported once
        live(given.folder / "first", history(0, batches=8), Killer(), given.folder / "first.said")
    shutil.rmtree(given.folder / "first")
    gc.freeze()  # forks share it
    logging.disable(logging.WARNING)  # an id in two partitions is logged once per store
    killed: Counter[str] = Counter()
    more = 0
    for run in range(given.runs):
        point = POINTS[run % len(POINTS)]
        home = given.folder / f"run{run}"
        try:
            times = chain(home, given.seed + run, point)
        except RuntimeError as error:
            sys.exit(f"run {run}, killed at {point}, seed {given.seed + run}: {error}")
        killed[point] += times > 0
        more += max(0, times - 1)
        shutil.rmtree(home)
    print(json.dumps({"killed": killed, "again": more}))


if __name__ == "__main__":
    main()
