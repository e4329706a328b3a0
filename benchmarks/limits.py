"""What one core of this machine does at most: products in each precision, and FAISS's kernels.

    python -m benchmarks.limits [--rows 500000] [--rounds 5] [--json]

Square products of 1024 x 1024 by torch in float32, bf16 and int8, and a search of `--rows` x 256
for 40 hits by `IndexFlat` and by 8-bit rows with one range, at each SIMD level that FAISS has here.
Rounds alternate, medians are given. They bound what `benchmarks.engines` and
`benchmarks.index_exact` can reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import faiss
import torch

from .common import arguments
from .vectors import clustered, finish_here

SIDE, PRODUCTS = 1024, 10
DIM, HITS = 256, 40
BATCHES = (1, 64)
LEVELS = ("AVX2", "AVX512")

Way = Callable[[], object]


def products() -> dict[str, Way]:
    """Products of one thread by the name of their type."""
    left, right = torch.randn(2, SIDE, SIDE).unbind()
    left16, right16 = left.bfloat16(), right.bfloat16()
    left8, right8 = torch.randint(-127, 127, (2, SIDE, SIDE), dtype=torch.int8).unbind()

    def multiply(way: Way) -> None:
        for _ in range(PRODUCTS):
            way()

    return {
        "float32": partial(multiply, partial(torch.mm, left, right)),
        "bf16": partial(multiply, partial(torch.mm, left16, right16)),
        "int8": partial(multiply, partial(torch._int_mm, left8, right8)),
    }


def searches(count: int) -> dict[str, Way]:
    """Searches of one thread by what they search, the number of queries and the SIMD level."""
    rows_ND = clustered(count, DIM, seed=0)
    queries_BD = clustered(max(BATCHES), DIM, seed=0, queries=True)
    flat = faiss.IndexFlatIP(DIM)
    uniform = faiss.ScalarQuantizer.QT_8bit_uniform
    int8 = faiss.IndexScalarQuantizer(DIM, uniform, faiss.METRIC_INNER_PRODUCT)
    int8.train(rows_ND)
    for index in (flat, int8):
        index.add(rows_ND)

    def search(index: Any, batch: int, level: int) -> None:
        faiss.omp_set_num_threads(1)
        faiss.SIMDConfig.set_level(level)
        index.search(queries_BD[:batch], HITS)

    levels = {name: getattr(faiss, f"SIMDLevel_{name}") for name in LEVELS}
    return {
        f"{name}, batch {batch}, {level}": partial(search, index, batch, number)
        for name, index in (("IndexFlat", flat), ("8 bits", int8))
        for batch in BATCHES
        for level, number in levels.items()
        if faiss.SIMDConfig.is_simd_level_available(number)
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--rows", type=int, default=500_000, help="that are searched")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    multiplied, searched = products(), searches(given.rows)
    seconds: dict[str, list[float]] = {name: [] for name in (*multiplied, *searched)}
    level = faiss.SIMDConfig.get_level()
    try:
        for turn in range(given.rounds + 1):
            for name, way in {**multiplied, **searched}.items():
                began = time.perf_counter()
                way()
                if turn > 0:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
    finally:
        faiss.SIMDConfig.set_level(level)
    took = {name: median(times) for name, times in seconds.items()}
    operations = PRODUCTS * 2.0 * SIDE**3
    rows = {
        "GFLOP a second": {name: round(operations / took[name] / 1e9, 1) for name in multiplied},
        "of float32": {name: round(took["float32"] / took[name], 2) for name in multiplied},
        "ms of a search": {name: round(1000 * took[name], 2) for name in searched},
    }
    return finish_here("limits", given, rows)


if __name__ == "__main__":
    main()
