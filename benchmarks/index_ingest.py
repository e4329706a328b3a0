"""Searching while rows stream in, against searching an idle index.

    python -m benchmarks.index_ingest [--rows 1000000] [--dim 256] [--rounds 5] [--threads 1]
        [--per-second 1000] [--seconds 20] [--encode 0] [--json]

One thread searches, query after query; idle and ingesting periods take turns, and what is left to
seal is sealed before an idle period begins. While ingesting, another thread applies `--per-second`
rows a second, a tenth of a second's worth at a time, a tenth of them new versions of rows that are
there, and compaction seals and merges as it does in the index node. With `--encode` the demo
preset's text encoder encodes so many queries a second meanwhile, in the same process.

Every apply also rewrites MARKS marked rows, all pointing where no other row does. A search that
sees another number of them, or marks of two applies, saw a half-written state: those are counted.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from braid.encoders import Embedder, Sample
from braid.index.segments.compaction import Compactor, maintain
from braid.index.segments.live_store import LiveStore
from braid.index.store import Array, Upsert

from .common import finish
from .poison import WORDS
from .throughput import demo_model
from .vectors import clustered, filled, machine, name_of, options, percentiles

K = 10
MARKS = 8
CHECK_EVERY = 10  # searches
APPLIES = 10  # a second
QUERIES = 512


class Writer:
    """A thread that applies rows at a rate until it is stopped."""

    def __init__(self, store: LiveStore, rows_ND: Array, mark_D: Array, *, per_second: int) -> None:
        self._store, self._rows_ND, self._mark_D = store, rows_ND, mark_D
        self._batch = max(1, per_second // APPLIES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer")
        self._new = len(store)
        self._version = 10 * len(store)
        self.applied = 0
        self.late = 0

    def mark(self) -> None:
        """Write the marked rows once."""
        self._store.apply(self._marks(), positions={}, progress={})

    def __enter__(self) -> Writer:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="writer")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            self._store.apply(self._writes(), positions={}, progress={})
            self.applied += self._batch
            due += 1 / APPLIES
            left = due - time.monotonic()
            if left > 0:
                self._stopping.wait(left)
            else:
                self.late += 1

    def _writes(self) -> list[Upsert]:
        again = self._batch // 10
        names = [name_of(self._new + n) for n in range(self._batch - again)]
        names += [name_of((self._version * 31 + n * 9973) % self._new) for n in range(again)]
        self._new += self._batch - again
        at = self._new % (len(self._rows_ND) - self._batch)
        rows_MD = self._rows_ND[at : at + self._batch]
        self._version += 1
        return [
            *(self._upsert(name, row_D) for name, row_D in zip(names, rows_MD, strict=True)),
            *self._marks(),
        ]

    def _marks(self) -> list[Upsert]:
        self._version += 1
        return [self._upsert(f"mark-{n}", self._mark_D) for n in range(MARKS)]

    def _upsert(self, name: str, row_D: Array) -> Upsert:
        return Upsert(
            id=name,
            partition=0,
            version=self._version,
            ts=0,
            model="m",
            fused=row_D,
            meta={"lang": "en"},
        )


class Encoding:
    """A thread that encodes text queries at a rate until it is stopped; at a rate of 0 none.

    Attributes:
        encoded: how many queries.
    """

    def __init__(self, embedder: Embedder | None, *, per_second: float) -> None:
        self._embedder, self._per_second = embedder, per_second
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="encode")
        self.encoded = 0

    def __enter__(self) -> Encoding:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="encode")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        chance, due = random.Random(0), time.monotonic()
        while self._embedder is not None and not self._stopping.is_set():
            text = " ".join(chance.choices(WORDS, k=5))
            self._embedder.query([Sample(id="query", text=text)]).result()
            self.encoded += 1
            due += 1 / self._per_second
            self._stopping.wait(max(0.0, due - time.monotonic()))


def half_written(store: LiveStore, mark_D: Array) -> bool:
    """Whether a search for the marks sees anything but all of one apply."""
    (hits,) = store.search(mark_D[None], k=MARKS)
    return {hit.id for hit in hits} != {f"mark-{n}" for n in range(MARKS)} or len(
        {hit.version for hit in hits}
    ) != 1


def searching(
    store: LiveStore, queries_BD: Array, mark_D: Array, seconds: float
) -> tuple[list[float], int]:
    """How long each search took, and how many of those that looked saw a half-written state."""
    taken: list[float] = []
    wrong = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        query_D = queries_BD[len(taken) % len(queries_BD)]
        began = time.perf_counter()
        store.search(query_D[None], k=K)
        taken.append(time.perf_counter() - began)
        if len(taken) % CHECK_EVERY == 0:
            wrong += half_written(store, mark_D)
    return taken, wrong


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = options(__doc__, vectors=1_000_000, rounds=5, threads=1)
    parser.add_argument("--per-second", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one period")
    parser.add_argument("--encode", type=float, default=0.0, help="text queries a second")
    parser.add_argument(
        "--switch-ms",
        type=float,
        default=1000 * sys.getswitchinterval(),
        help="how long a thread may keep the interpreter from others",
    )
    given = parser.parse_args(argv)
    sys.setswitchinterval(given.switch_ms / 1000)
    rows_ND = clustered(given.rows + 1, given.dim, seed=given.seed)
    queries_BD = clustered(QUERIES, given.dim, seed=given.seed, queries=True)
    mark_D = _apart(rows_ND)
    with tempfile.TemporaryDirectory() as folder:
        store, _ = filled(rows_ND[:-1], threads=given.threads, folder=Path(folder) / "store")
        writer = Writer(store, rows_ND, mark_D, per_second=given.per_second)
        embedder = Embedder(demo_model(Path(folder) / "model")) if given.encode else None
        encoding = Encoding(embedder, per_second=given.encode)
        report = _measured(store, writer, encoding, queries_BD, mark_D, given)
        if embedder is not None:
            embedder.close()
        store.close()
    return finish(report, given.json)


def _measured(
    store: LiveStore,
    writer: Writer,
    encoding: Encoding,
    queries_BD: Array,
    mark_D: Array,
    given: Any,
) -> dict[str, Any]:
    writer.mark()
    idle: list[list[float]] = []
    busy: list[list[float]] = []
    wrong = checks = 0
    sealed = 0
    searching(store, queries_BD, mark_D, min(1.0, given.seconds))
    for _ in range(given.rounds):
        taken, _ = searching(store, queries_BD, mark_D, given.seconds)
        idle.append(taken)
        before = len(store.segments())
        compactor = Compactor(store)
        compactor.start()
        with writer, encoding:
            taken, its_wrong = searching(store, queries_BD, mark_D, given.seconds)
        compactor.stop()
        if compactor.error is not None:
            raise compactor.error
        busy.append(taken)
        wrong += its_wrong
        checks += len(taken) // CHECK_EVERY
        sealed += len(store.segments()) != before
        while maintain(store):
            pass
    rows = {"idle": _figures(idle), "ingesting": _figures(busy)}
    ratios = {
        "queries_per_s": round(
            rows["ingesting"]["queries_per_s"] / rows["idle"]["queries_per_s"], 3
        ),
        "p50_ms": round(rows["ingesting"]["p50_ms"] / rows["idle"]["p50_ms"], 3),
        "p99_ms": round(rows["ingesting"]["p99_ms"] / rows["idle"]["p99_ms"], 3),
    }
    return {
        "machine": machine(),
        "vectors": given.rows,
        "dim": given.dim,
        "threads": given.threads,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "switch_ms": given.switch_ms,
        "applied_per_s": round(writer.applied / (given.rounds * given.seconds)),
        "encoded_per_s": round(encoding.encoded / (given.rounds * given.seconds), 1),
        "late_applies": writer.late,
        "periods_that_sealed": sealed,
        "checked": checks,
        "half_written": wrong,
        "rows": rows | {"ingesting / idle": ratios},
    }


def _apart(rows_ND: Array) -> Array:
    """A unit vector away from the rows."""
    mean_D = rows_ND.mean(axis=0)
    away_D = np.linalg.svd(rows_ND[:20_000] - mean_D, full_matrices=False)[2][-1]
    unit_D: Array = (away_D / np.linalg.norm(away_D)).astype(np.float32)
    return unit_D


def _figures(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """All rounds together: a median over them would hide those in which a segment was sealed."""
    taken = [taken_s for each in rounds for taken_s in each]
    return {"queries_per_s": round(len(taken) / sum(taken), 1), **percentiles(taken)}


if __name__ == "__main__":
    main()
