"""Approximate search at recall@10 >= 0.95: the live index, hnswlib, usearch, LanceDB, Milvus Lite.

    python -m benchmarks.index_approximate [--rows 1000000] [--dim 256] [--rounds 7] [--threads 2]
        [--part braid,hnswlib] [--json]

The same rows and queries for all. Half the queries tune: a rival's dial goes up until it finds
0.96 of their true hits, 0.01 more than is wanted of queries that had no part in it, as
`braid.index.segments.ann` does; the live index tunes itself while it seals, and never sees these
queries. The other half is timed, and its recall is what is reported. `streamed` is the store as it
is after taking the rows in applies of 2,000, `compacted` when all but the block
being filled was merged into one segment.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from braid.index.segments.compaction import replace
from braid.index.segments.live_store import LiveStore
from braid.index.store import Array

from .common import finish
from .rivals import RIVALS, Rival
from .vectors import (
    Found,
    asked,
    clustered,
    exact,
    filled,
    in_batches,
    machine,
    options,
    recall,
    timed,
)

OURS = "braid"
ENOUGH = 0.95
ROOM = 0.01
QUERIES = 512

Search = Callable[[Array], Sequence[Sequence[int]]]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = options(__doc__, vectors=1_000_000, rounds=7)
    parser.set_defaults(part=",".join([OURS, *RIVALS]))
    given = parser.parse_args(argv)
    wanted = given.part.split(",")
    if unknown := set(wanted) - {OURS, *RIVALS}:
        parser.error(f"--part: there are {OURS}, {', '.join(RIVALS)}, not {', '.join(unknown)}")
    rows_ND = clustered(given.rows, given.dim, seed=given.seed)
    queries_BD = clustered(QUERIES, given.dim, seed=given.seed, queries=True)
    _, truth_BK = exact(rows_ND, queries_BD)
    rows: dict[str, dict[str, Any]] = {}
    searches: dict[str, Search] = {}
    closing: list[Callable[[], None]] = []
    tune = slice(0, QUERIES // 2)
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            place = Path(folder) / name
            place.mkdir()
            if name == OURS:
                answers = _ours(rows_ND, place, given.threads, rows, closing)
                searches |= answers
                continue
            began = time.perf_counter()
            try:
                rival = RIVALS[name](rows_ND, place, given.threads)
            except ImportError:
                rows[name] = {"absent": "not installed: see the extra `bench`"}
                continue
            except Exception as error:  # noqa: BLE001 (whatever it is, the others' figures count)
                rows[name] = {"failed": f"{error!r:.300}"}
                continue
            closing.append(rival.close)
            rows[name] = {"what": rival.about, "build_s": round(time.perf_counter() - began, 1)}
            _say(f"{name}: built in {rows[name]['build_s']} s")
            dial = _tuned(rival.search, rival.dial, queries_BD[tune], truth_BK[tune])
            rows[name]["dial"] = dial
            searches[name] = partial(_at, rival, dial)
        _say("all built; what follows is timed")
        _measure(searches, queries_BD[QUERIES // 2 :], truth_BK[QUERIES // 2 :], rows, given.rounds)
        for close in closing:
            close()
    return finish(
        {
            "machine": machine(),
            "vectors": given.rows,
            "dim": given.dim,
            "rounds": given.rounds,
            "threads": given.threads,
            "rows": rows,
        },
        given.json,
    )


def _ours(
    rows_ND: Array,
    folder: Path,
    threads: int,
    rows: dict[str, dict[str, Any]],
    closing: list[Callable[[], None]],
) -> dict[str, Search]:
    """The store as it was streamed, and another one compacted."""
    searches: dict[str, Search] = {}
    for name in ("streamed", "compacted"):
        place = folder / name
        store, built = filled(rows_ND, threads=threads, recall=ENOUGH, folder=place)
        took = built["apply_s"] + built["seal_s"]
        if name == "compacted":
            began = time.perf_counter()
            full = [part for part in store.view.parts.values() if part.count == len(part.keep)]
            if full:
                replace(store, full)
            took += time.perf_counter() - began
        closing.append(store.close)
        parts = [
            f"{segment['kind']} {segment['rows']}"
            + (f" nprobe {segment['nprobe']}" if "nprobe" in segment else "")
            for segment in store.stats()["segments"]
        ]
        rows[f"{OURS}, {name}"] = {"what": "; ".join(parts), "build_s": round(took, 1)}
        _say(f"{OURS}, {name}: built in {took:.1f} s")
        searches[f"{OURS}, {name}"] = _search(store)
    return searches


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _at(rival: Rival, dial: int, queries_BD: Array) -> Sequence[Sequence[int]]:
    return rival.search(queries_BD, dial)


def _search(store: LiveStore) -> Search:
    return lambda queries_BD: asked(store, queries_BD)


def _tuned(
    search: Callable[[Array, int], Sequence[Sequence[int]]],
    dial: Sequence[int],
    queries_BD: Array,
    truth_BK: Found,
) -> int:
    """The least value of the dial that finds enough; the last one if none does."""
    for value in dial:
        if recall(search(queries_BD, value), truth_BK) >= ENOUGH + ROOM:
            return value
    return dial[-1]


def _turns(search: Search, queries_BD: Array, size: int) -> Callable[[], object]:
    batches = in_batches(queries_BD, size)
    return lambda: search(next(batches))


def _measure(
    searches: dict[str, Search],
    queries_BD: Array,
    truth_BK: Found,
    rows: dict[str, dict[str, Any]],
    rounds: int,
) -> None:
    for name, search in searches.items():
        rows[name]["recall"] = recall(search(queries_BD), truth_BK)
    for size in (1, 64):
        calls = {name: _turns(search, queries_BD, size) for name, search in searches.items()}
        for name, taken in timed(calls, rounds).items():
            rows[name][f"batch_{size}_queries_per_s"] = round(1000 * size / taken, 1)


if __name__ == "__main__":
    main()
