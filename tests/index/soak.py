"""Soak test: search, ingest, deletion, compaction and snapshots at once, every answer checked.

    python -m tests.index.soak --seconds 3600

Vectors, names and meta are functions of (id, version), so that the state of any moment is an array
of versions. The writer keeps that array for each of the last batches. A search that began when
batch b was applied, and ended when batch e had begun, must give the answer of one of b..e:

- each hit has a version that was current in one of them, its meta matches, its score is exact;
- an id that did not change from b to e is a hit, if it scores above the last hit;
- ids are unique, hits are ordered by score, and there are as many as possible.

Some snapshots are loaded and compared with the state of their moment. At the end all threads stop,
the last snapshot is restored and compared too.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from braid.index.filters import Equals, Exists, Filter, Range
from braid.index.segments.compaction import Compactor, Policy, maintain
from braid.index.segments.growing import Block
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import load, restore, save, segments_folder
from braid.index.store import Array, Delete, Hit, Row, Upsert

DIM = 24
IDS = 4000
TOMBSTONE = -1
TABLE = 65_521  # distinct vectors of a name; now and then two ids share one
NAMES = ("fused", "text")
POLICY = Policy(seal_blocks=2, tier=3, most_rows=4000)
BLOCK = 256
REMEMBERED = 4000  # batches
SPREAD = 1e-6
MOST_PARTS = 64
MORE_MEMORY = 400 << 20

Versions = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Truth:
    """What (id, version) determines, for many at once."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.table: dict[str, Array] = {}
        for name in NAMES:
            rows_TD = rng.standard_normal((TABLE, DIM)).astype(np.float32)
            self.table[name] = rows_TD / np.linalg.norm(rows_TD, axis=1, keepdims=True)
        self.slot_S = np.arange(IDS)

    def vectors(self, name: str, slot: Any, version: Any) -> Array:
        rows: Array = self.table[name][(slot * 7919 + version * 104_729) % TABLE]
        return rows

    def has(self, name: str, slot: Any, version: Any) -> Any:
        return (slot + version) % 3 != 0 if name == "text" else version == version

    def upsert(self, slot: int, version: int) -> Upsert:
        has_text = bool(self.has("text", slot, version))
        return Upsert(
            id=f"r{slot}",
            partition=0,
            version=version,
            ts=version,
            model="m",
            fused=self.vectors("fused", slot, version),
            by={"text": self.vectors("text", slot, version)} if has_text else {},
            meta=meta(slot, version),
        )


def meta(slot: int, version: int) -> dict[str, Any]:
    result: dict[str, Any] = {"group": slot % 10, "version": version}
    return result | ({"rare": True} if version % 50 == 0 else {})


# Each filter beside the same for arrays.
FILTERS: list[tuple[Filter | None, Callable[[Any, Any], Any]]] = [
    (None, lambda slot, version: version == version),
    (Equals("group", 3), lambda slot, version: slot % 10 == 3),
    (Range("group", "lt", 8), lambda slot, version: slot % 10 < 8),
    (Exists("rare", True), lambda slot, version: version % 50 == 0),
]


@dataclass
class Past:
    """The versions after each of the last batches, by one writer; TOMBSTONE where there is none."""

    truth: Truth
    begun: int = 0
    applied: int = 0
    after: dict[int, Versions] = field(default_factory=dict)
    touched: dict[int, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.after[0] = np.full(IDS, TOMBSTONE, np.int64)

    def begin(self, version_S: Versions, touched: set[int]) -> int:
        number = self.begun + 1
        self.after[number], self.touched[number] = version_S, touched
        self.begun = number
        return number

    def end(self, number: int) -> None:
        self.applied = number
        old = number - REMEMBERED
        if old >= 0:
            self.after.pop(old, None)
            self.touched.pop(old, None)


@dataclass
class Soak:
    """One run."""

    home: Path
    seconds: float
    seed: int = 1
    threads: int = 1
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.truth = Truth(self.seed)
        self.past = Past(self.truth)
        self.store = LiveStore(
            space="s",
            dim=DIM,
            block=BLOCK,
            threads=self.threads,
            folder=segments_folder(self.home),
            failpoint=self.step,
        )
        self.compactor = Compactor(self.store, policy=POLICY, every_s=0.01)
        self.stopping = threading.Event()

    def step(self, name: str) -> None:
        """Counts compaction steps."""
        if name == "segment-begin" and threading.current_thread().name == "compactor":
            full = [
                part
                for part in self.store.view.parts.values()
                if isinstance(part.rows, Block) and part.count == part.rows.size
            ]
            self.counts["seals" if len(full) >= POLICY.seal_blocks else "merges"] += 1

    def run(self) -> dict[str, float]:
        """Raises what any thread raised first; AssertionError for a wrong answer."""
        work: list[Callable[[], None]] = [self.write, self.snapshots, self.watch, self.look]
        work += [self.searcher(number) for number in range(3)]
        threads = [threading.Thread(target=self.guarded, args=[each]) for each in work]
        began = time.monotonic()
        self.compactor.start()
        for thread in threads:
            thread.start()
        self.stopping.wait(self.seconds)
        self.stopping.set()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        self.compactor.stop()
        if self.compactor.error:
            raise self.compactor.error
        if self.failures:
            raise self.failures[0]
        self.finish()
        counts = self.counts
        return {
            "seconds": round(took, 1),
            "searches/s": round(counts["searches"] / took, 1),
            "hits checked": counts["hits"],
            "rows looked up": counts["looks"],
            "writes/s": round(counts["writes"] / took, 1),
            "seals": counts["seals"],
            "merges": counts["merges"],
            "snapshots": counts["snapshots"],
            "snapshots compared": counts["compared"],
            "most parts": counts["most parts"],
            "batches": self.past.applied,
            "unproven": self.store.stats()["unproven"],
        }

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            while not self.stopping.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 - raised by run
            self.failures.append(error)
            self.stopping.set()

    # What the threads do, one round at a time.

    def write(self) -> None:
        past, rng = self.past, random.Random(self.seed * 1_000_003 + self.past.begun)
        version_S = past.after[past.begun].copy()
        number = past.begun + 1
        batch: list[Upsert | Delete] = []
        touched: set[int] = set()
        # Mostly a few ids of a window that moves, so that some are replaced often and others never.
        for place in range(rng.choice((1, 3, 10, 60))):
            slot = (number // 20 + int(rng.expovariate(1 / 300))) % IDS
            version = number * 100 + place
            kind = rng.random()
            if kind < 0.15:
                batch.append(Delete(id=f"r{slot}", partition=0, version=version, ts=version))
                version_S[slot] = TOMBSTONE
            elif kind < 0.25:  # late: an older write of the same id, which changes nothing
                known = int(past.after[past.begun][slot])
                if known == TOMBSTONE or slot in touched:
                    continue
                batch.append(self.truth.upsert(slot, known - rng.randrange(2)))
            else:
                batch.append(self.truth.upsert(slot, version))
                version_S[slot] = version
            touched.add(slot)
        past.begin(version_S, touched)
        self.store.apply(batch, positions={0: number}, progress={0: number})
        past.end(number)
        self.counts["writes"] += len(batch)
        while len(self.store.view.parts) > MOST_PARTS and not self.stopping.is_set():
            time.sleep(0.001)  # compaction is behind: a Kafka reader would pause, too
        self.counts["most parts"] = max(self.counts["most parts"], len(self.store.view.parts))
        time.sleep(0.001)

    def searcher(self, number: int) -> Callable[[], None]:
        rng = random.Random(self.seed + number)
        draw = np.random.default_rng(self.seed + number)

        def once() -> None:
            name, k = rng.choice(NAMES), rng.choice((1, 10, 10, 100, 2 * IDS))
            keep, mask_of = rng.choice(FILTERS)
            queries_BD = draw.standard_normal((rng.choice((1, 1, 1, 4, 16)), DIM))
            queries_BD = (queries_BD / np.linalg.norm(queries_BD, axis=1, keepdims=True)).astype(
                np.float32
            )
            first = self.past.applied
            answers = self.store.search(queries_BD, k=k, vector=name, filter=keep)
            last = self.past.begun
            if last - first > REMEMBERED // 2:
                self.counts["too slow to check"] += 1
                return
            check = Check(self.past, first, last, name, k, mask_of)
            for query_D, hits in zip(queries_BD, answers, strict=True):
                check.hits(query_D, hits)
                self.counts["hits"] += len(hits)
            self.counts["searches"] += len(answers)

        return once

    def look(self) -> None:
        """`get`, `sample` and the figures tell the truth too."""
        rng = random.Random(self.counts["looks"])
        first = self.past.applied
        slot = rng.randrange(IDS)
        row = self.store.get(f"r{slot}")
        sampled = self.store.sample(3, seed=slot) if slot % 20 == 0 else []
        stats = self.store.stats()
        last = self.past.begun
        between = range(first, last + 1)
        allowed = {int(self.past.after[number][slot]) for number in between}
        assert (TOMBSTONE if row is None else row.version) in allowed, (slot, row, allowed)
        for result in [row, *sampled] if row else sampled:
            self.check_row(result)
            assert result.version in {
                int(self.past.after[number][int(result.id[1:])]) for number in between
            }
        alive = {int((self.past.after[number] != TOMBSTONE).sum()) for number in between}
        assert min(alive) <= stats["records"] <= max(alive), (stats["records"], alive)
        self.counts["looks"] += 1
        time.sleep(0.002)

    def check_row(self, row: Row | None) -> None:
        assert row is not None
        slot = int(row.id[1:])
        expected = self.truth.upsert(slot, row.version)
        assert row.meta == expected.meta
        assert set(row.vectors) == {"fused", *expected.by}
        for name, vector_D in row.vectors.items():
            np.testing.assert_array_equal(vector_D, self.truth.vectors(name, slot, row.version))

    def snapshots(self) -> None:
        number = self.counts["snapshots"]
        info = save(self.store, self.home, generation="g1", facts={"number": number})
        if info is not None:
            self.counts["snapshots"] += 1
            if number % 5 == 0:
                loaded = load(info.path)
                assert loaded.facts == {"number": number}
                assert info.records == len(loaded.store)
                version_S = self.past.after.get(loaded.store.positions.get(0, 0))
                if version_S is None:  # it took so long that its moment is forgotten
                    self.counts["too slow to check"] += 1
                    return
                self.compare(loaded.store, version_S)
                self.counts["compared"] += 1
        self.stopping.wait(0.2)

    def watch(self) -> None:
        """Memory, parts and files stay bounded."""
        assert self.compactor.error is None, self.compactor.error
        assert len(self.store.view.parts) <= MOST_PARTS + 2
        if self.counts["watched"] == 60:  # after about a quarter of a minute
            self.counts["memory"] = memory()
        elif self.counts["watched"] > 60:
            grown = memory() - self.counts["memory"]
            assert grown < MORE_MEMORY, f"grown by {grown >> 20} MiB"
        self.counts["watched"] += 1
        self.stopping.wait(0.25)

    # And when they have stopped.

    def finish(self) -> None:
        final_S = self.past.after[self.past.applied]
        while maintain(self.store, POLICY):
            pass
        self.compare(self.store, final_S)
        self.store.apply([], positions={1: 1}, progress={})
        assert save(self.store, self.home, generation="g1") is not None
        stats = self.store.stats()
        alive = int((final_S != TOMBSTONE).sum())
        assert stats["rows"] <= alive / (1 - POLICY.most_dead) + 3 * BLOCK, stats
        assert len(stats["segments"]) <= 24, stats
        kept = {one.name for one in self.store.segments()}
        there = {path.name for path in segments_folder(self.home).iterdir()}
        assert kept <= there
        assert len(there) <= 3 * 24, there
        restored = restore(self.home)
        assert restored is not None
        self.compare(restored.store, final_S)

    def compare(self, store: LiveStore, version_S: Versions) -> None:
        """All rows, and some searches, against the truth of one moment."""
        assert len(store) == int((version_S != TOMBSTONE).sum())
        rows = {int(row.id[1:]): row for row in store.sample(2 * IDS)}
        assert {slot: row.version for slot, row in rows.items()} == {
            slot: int(version_S[slot]) for slot in np.flatnonzero(version_S != TOMBSTONE).tolist()
        }
        for row in rows.values():
            self.check_row(row)
        past = Past(self.truth)
        past.after[0] = version_S
        for name in NAMES:
            for keep, mask_of in FILTERS:
                query_D = self.truth.table[name][len(rows)]
                (hits,) = store.search(query_D[None], k=20, vector=name, filter=keep)
                Check(past, 0, 0, name, 20, mask_of).hits(query_D, hits)


class Check:
    """Holds answers to the moments after batches `first` to `last`."""

    def __init__(
        self, past: Past, first: int, last: int, name: str, k: int, mask_of: Callable[..., Bools]
    ) -> None:
        truth, slot_S = past.truth, past.truth.slot_S
        self.truth, self.name, self.k = truth, name, k
        self.moments = [past.after[number] for number in range(first, last + 1)]
        version_S = self.moments[0]
        may_S = (version_S != TOMBSTONE) & truth.has(name, slot_S, version_S)
        may_S &= mask_of(slot_S, version_S)
        changed = set().union(*(past.touched[number] for number in range(first + 1, last + 1)))
        stable_S = np.ones(IDS, np.bool_)
        stable_S[list(changed)] = False
        self.must = np.flatnonzero(may_S & stable_S)
        self.rows_MD = truth.vectors(name, self.must, version_S[self.must])
        self.mask_of = mask_of

    def hits(self, query_D: Array, hits: list[Hit]) -> None:
        slots = np.array([int(hit.id[1:]) for hit in hits], np.int64)
        versions = np.array([hit.version for hit in hits], np.int64)
        scores = np.array([hit.score for hit in hits])
        assert len(np.unique(slots)) == len(slots), "an id twice"
        assert len(hits) <= self.k
        assert (np.diff(scores) <= 0).all(), "not the best first"
        current = np.zeros(len(hits), np.bool_)
        for version_S in self.moments:
            current |= version_S[slots] == versions
        wrong = [(hit.id, hit.version) for hit, fine in zip(hits, current, strict=True) if not fine]
        assert not wrong, f"not current at any moment: {wrong}"
        assert np.all(self.truth.has(self.name, slots, versions)), "without that vector"
        assert np.all(self.mask_of(slots, versions)), "not what the filter asks for"
        true = self.truth.vectors(self.name, slots, versions).astype(np.float64) @ query_D
        assert np.abs(true - scores).max(initial=0.0) < SPREAD, "a wrong score"
        for hit, slot in zip(hits[:5], slots.tolist(), strict=False):
            assert hit.meta == meta(slot, hit.version)
        score_M = self.rows_MD.astype(np.float64) @ query_D
        least = scores[-1] if len(hits) == self.k else -np.inf
        missing = set(self.must[score_M > least + SPREAD].tolist()) - set(slots.tolist())
        assert not missing, f"missing: {sorted(missing)[:5]} of {len(missing)}"


def memory() -> int:
    """Resident bytes that are not files."""
    gc.collect()
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description="A soak of the live index; every answer checked.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of one search")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="braid-soak-") as folder:
        figures = Soak(Path(folder), given.seconds, seed=given.seed, threads=given.threads).run()
    for name, figure in figures.items():
        print(f"{name:20} {figure}")


if __name__ == "__main__":
    main()
