"""The live index on a GPU against the same rows on this machine's CPU.

    python -m benchmarks.index_gpu --rows 1000000 --dim 256 --threads 8 --json

Both stores hold the same unit vectors (Gaussian, seed 0), sealed by the usual policy, a growing
block at the end. Answers are compared first: ids must be the same. Then rounds alternate; medians.
`at once` is 32 threads that each ask one query after another, which the GPU's thread batches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import arguments, finish
from braid.index.filters import Range
from braid.index.segments.compaction import maintain
from braid.index.segments.gpu import gpu_found, open_gpu
from braid.index.segments.live_store import LiveStore
from braid.index.store import Array, Upsert

K = 10
APPLY = 8192
ASKERS, ASKED = 32, 8


def rows(count: int, dim: int) -> Array:
    """Unit vectors float32[count, dim]."""
    rng = np.random.default_rng(0)
    rows_ND = rng.standard_normal((count, dim), dtype=np.float32)
    rows_ND /= np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return rows_ND


def fill(stores: Sequence[LiveStore], rows_ND: Array) -> None:
    """The same writes to all, sealed as they come."""
    for begin in range(0, len(rows_ND), APPLY):
        writes = [
            Upsert(
                id=f"r{begin + n}",
                partition=0,
                version=begin + n,
                ts=0,
                model="m",
                fused=row_D,
                meta={"n": (begin + n) % 1000},
            )
            for n, row_D in enumerate(rows_ND[begin : begin + APPLY])
        ]
        for store in stores:
            store.apply(writes, positions={}, progress={})
            while maintain(store):
                pass


def same(stores: Sequence[LiveStore], queries_BD: Array) -> float:
    """recall@10 of the first store against the second."""
    ours, theirs = (store.search(queries_BD, k=K) for store in stores)
    pairs = zip(ours, theirs, strict=True)
    shares = [len({h.id for h in a} & {h.id for h in b}) / K for a, b in pairs]
    return float(np.mean(shares))


def at_once(store: LiveStore, queries_BD: Array) -> None:
    """ASKERS threads, one query at a time each."""

    def ask(number: int) -> None:
        for turn in range(ASKED):
            store.search(queries_BD[(number + turn * ASKERS) % len(queries_BD)][None], k=K)

    with ThreadPoolExecutor(ASKERS) as pool:
        list(pool.map(ask, range(ASKERS)))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--threads", type=int, default=8, help="of the CPU's search")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    gpu = open_gpu() if gpu_found() else None
    if gpu is None:
        sys.exit("no GPU that FAISS can search on: this benchmark compares one with the CPU")
    given = {"space": "s", "dim": options.dim}
    stores = [LiveStore(**given, gpu=gpu), LiveStore(**given, threads=options.threads)]
    rows_ND = rows(options.rows, options.dim)
    fill(stores, rows_ND)
    queries_BD = np.ascontiguousarray(rows(256, options.dim)[::-1] + 0.3 * rows_ND[:256])
    tenth = Range("n", "lt", 100)
    works: dict[str, tuple[int, Callable[[LiveStore], Any]]] = {
        "batch 1": (1, lambda store: store.search(queries_BD[:1], k=K)),
        "batch 64": (64, lambda store: store.search(queries_BD[:64], k=K)),
        "batch 1, filter keeps 10 %": (
            1,
            lambda store: store.search(queries_BD[:1], k=K, filter=tenth),
        ),
        "32 at once": (ASKERS * ASKED, lambda store: at_once(store, queries_BD)),
    }
    figures: dict[str, Any] = {"recall@10 against the CPU": same(stores, queries_BD)}
    for name, (queries, work) in works.items():
        seconds: list[list[float]] = [[], []]
        for turn in range(options.rounds + 1):
            for store, times in zip(stores, seconds, strict=True):
                began = time.perf_counter()
                work(store)
                if turn:  # the first warms up
                    times.append(time.perf_counter() - began)
        on_gpu, on_cpu = (queries / median(times) for times in seconds)
        figures[f"{name}: queries a second on the GPU"] = round(on_gpu, 1)
        figures[f"{name}: on the CPU"] = round(on_cpu, 1)
        figures[f"{name}: ratio"] = round(on_gpu / on_cpu, 2)
    figures["most queries together"] = gpu.together
    import torch

    report = {
        "benchmark": "index_gpu",
        "device": torch.cuda.get_device_name(),
        "rows": {f"{options.rows} x {options.dim}": figures},
        "threads": options.threads,
    }
    return finish(report, options.json)


if __name__ == "__main__":
    main()
