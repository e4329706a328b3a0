"""Exact search of the live index against one float32 faiss.IndexFlat holding the same rows.

    python -m benchmarks.index_exact [--rows 1000000] [--dim 256] [--rounds 9] [--threads 2]
        [--json]

Both may use `--threads` threads. IndexFlat takes one query on one thread whatever it is allowed;
the store shares its parts among the threads, so batch 1 is also measured with one thread for both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import restore, save, segments_folder
from braid.index.store import Array

from .common import finish
from .vectors import K, asked, clustered, filled, in_batches, machine, options, recall, timed

QUERIES = 256


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = options(__doc__, vectors=1_000_000, rounds=9).parse_args(argv)
    rows_ND = clustered(given.rows, given.dim, seed=given.seed)
    queries_BD = clustered(QUERIES, given.dim, seed=given.seed, queries=True)
    flat: Any = faiss.IndexFlat(given.dim, faiss.METRIC_INNER_PRODUCT)
    flat.add(rows_ND)
    with tempfile.TemporaryDirectory() as folder:
        report = _measured(rows_ND, queries_BD, flat, Path(folder), given)
    return finish(report, given.json)


def _measured(
    rows_ND: Array, queries_BD: Array, flat: Any, folder: Path, given: Any
) -> dict[str, Any]:
    store, built = filled(rows_ND, threads=1, folder=segments_folder(folder))
    stores = {1: store}
    if given.threads > 1:  # the same segments, another number of threads
        save(store, folder, generation="g0001")
        restored = restore(folder, threads=given.threads)
        assert restored is not None
        stores[given.threads] = restored.store
    faiss.omp_set_num_threads(given.threads)
    _, truth_BK = flat.search(queries_BD, K)
    rows: dict[str, dict[str, Any]] = {}
    for size in (1, 64):
        for threads, store in stores.items():
            taken = timed(_calls(store, flat, queries_BD, size, threads), given.rounds)
            count = 64 if size == 1 else len(queries_BD)
            batches = np.split(queries_BD[:count], count // size)
            answers = [rows for batch_BD in batches for rows in asked(store, batch_BD)]
            rows[f"batch {size}, {threads} thread{'s' * (threads > 1)}"] = {
                "store_queries_per_s": round(1000 * size / taken["store"], 1),
                "flat_queries_per_s": round(1000 * size / taken["flat"], 1),
                "ratio": round(taken["flat"] / taken["store"], 2),
                "store_ms": round(taken["store"], 4),
                "flat_ms": round(taken["flat"], 4),
                "recall": recall(answers, truth_BK[:count]),
            }
    kinds = [part["kind"] for part in store.stats()["segments"]]
    report = {
        "machine": machine(),
        "vectors": len(store),
        "dim": given.dim,
        "k": K,
        "rounds": given.rounds,
        "parts": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "unproven": store.stats()["unproven"],
        **built,
        "rows": rows,
    }
    for store in stores.values():
        store.close()
    return report


def _calls(
    store: LiveStore, flat: Any, queries_BD: Array, size: int, threads: int
) -> dict[str, Callable[[], object]]:
    ours, theirs = in_batches(queries_BD, size), in_batches(queries_BD, size)

    def search_flat() -> object:
        faiss.omp_set_num_threads(threads)
        return flat.search(next(theirs), K)

    return {"store": lambda: store.search(next(ours), k=K), "flat": search_flat}


if __name__ == "__main__":
    main()
