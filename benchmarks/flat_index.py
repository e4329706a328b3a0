"""FlatStore's blocks against one float32 faiss.IndexFlat holding the same rows.

    python -m benchmarks.flat_index [--rows 100000] [--dim 256] [--rounds 15] [--threads 1] [--json]

Rounds are interleaved, so that a busy machine slows both alike; medians over the rounds. The
answers are compared before anything is timed. `filtered` admits every second record,
`replaced` has 1 % of the rows dead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from index.flat import BLOCK, FlatStore
from index.store import FUSED, Array, Upsert

K = 10
APPLY = 2000  # rows of one apply, as the index node reads them


def units(rng: np.random.Generator, count: int, dim: int) -> Array:
    rows_RD = rng.standard_normal((count, dim), dtype=np.float32)
    rows_RD /= np.linalg.norm(rows_RD, axis=1, keepdims=True)
    return rows_RD


def filled(rows_RD: Array, *, threads: int) -> tuple[FlatStore, float]:
    """A store of these rows, and how many it took a second."""
    store = FlatStore(space="s", dim=rows_RD.shape[1], threads=threads)
    began = time.perf_counter()
    for start in range(0, len(rows_RD), APPLY):
        writes = [
            Upsert(
                id=f"r{start + n:08d}",
                partition=0,
                version=start + n,
                ts=0,
                model="m",
                fused=row_D,
                meta={"even": (start + n) % 2 == 0},
            )
            for n, row_D in enumerate(rows_RD[start : start + APPLY])
        ]
        store.apply(writes, positions={}, progress={})
    return store, len(rows_RD) / (time.perf_counter() - began)


def replaced(store: FlatStore, rows_RD: Array) -> None:
    """Write every hundredth row again, as it is: its old place is dead."""
    again = [
        Upsert(id=f"r{n:08d}", partition=0, version=n + len(rows_RD), ts=0, model="m", fused=row_D)
        for n, row_D in enumerate(rows_RD)
        if n % 100 == 0
    ]
    store.apply(again, positions={}, progress={})


def check(store: FlatStore, flat: Any, queries_BD: Array) -> None:
    """Both find the same rows with the same scores."""
    scores_BK, rows_BK = flat.search(queries_BD, K)
    for hits, scores, rows in zip(store.search(queries_BD, k=K), scores_BK, rows_BK, strict=True):
        assert [hit.id for hit in hits] == [f"r{row:08d}" for row in rows]
        np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-5)


def medians_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - began) * 1000)
    return {name: round(statistics.median(taken), 3) for name, taken in times.items()}


def measure(*, rows: int, dim: int, rounds: int, threads: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows_RD = units(rng, rows, dim)
    store, rows_per_s = filled(rows_RD, threads=threads)
    worn, _ = filled(rows_RD, threads=threads)
    replaced(worn, rows_RD)
    faiss.omp_set_num_threads(threads)
    flat = faiss.IndexFlat(dim, faiss.METRIC_INNER_PRODUCT)
    flat.add(rows_RD)
    result: dict[str, Any] = {
        "rows": rows,
        "dim": dim,
        "k": K,
        "block": BLOCK,
        "threads": threads,
        "rounds": rounds,
        "applied_rows_per_s": round(rows_per_s),
    }
    for size in (1, 64):
        queries_BD = units(rng, size, dim)
        for each in (store, worn):
            check(each, flat, queries_BD)
        calls: dict[str, Callable[[], object]] = {
            "store": lambda q=queries_BD: store.search(q, k=K, vector=FUSED),  # type: ignore[misc]
            "index_flat": lambda q=queries_BD: flat.search(q, K),  # type: ignore[misc]
            "replaced": lambda q=queries_BD: worn.search(q, k=K),  # type: ignore[misc]
            "filtered": lambda q=queries_BD: store.search(  # type: ignore[misc]
                q, k=K, filter=lambda meta: meta["even"]
            ),
        }
        taken = medians_ms(calls, rounds)
        ratio = round(taken["index_flat"] / taken["store"], 2)
        result[f"batch_{size}"] = {"ms": taken, "index_flat_over_store": ratio}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    given = parser.parse_args()
    result = measure(rows=given.rows, dim=given.dim, rounds=given.rounds, threads=given.threads)
    if given.json:
        print(json.dumps(result))
        return
    print(f"{result['rows']} x {result['dim']}, k {K}, {result['threads']} thread(s); ms, medians")
    for size in (1, 64):
        batch = result[f"batch_{size}"]
        told = ", ".join(f"{name} {taken:.2f}" for name, taken in batch["ms"].items())
        print(f"batch {size}: {told}; IndexFlat / FlatStore {batch['index_flat_over_store']}")
    print(f"apply: {result['applied_rows_per_s']} rows/s")


if __name__ == "__main__":
    main()
