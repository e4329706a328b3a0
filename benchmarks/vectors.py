"""What the index's benchmarks share: made vectors, a filled store, interleaved timing.

`clustered` makes vectors as encoders do, in a seeded way that can be stated in full: the centres of
1,000 clusters are drawn from a normal distribution whose i-th principal axis has the standard
deviation 1/sqrt(i); a row is a centre (the c-th is taken with a weight of 1/sqrt(c)) plus 0.8 times
another draw from the same distribution; all are turned by one random rotation, so that no
coordinate is privileged, and made unit vectors. Queries are further draws, not rows.

Shapes: B queries, D dimensions, K hits, N rows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from braid.index.segments.compaction import maintain
from braid.index.segments.live_store import LiveStore
from braid.index.store import Array, Upsert

from .common import arguments, finish

Found = npt.NDArray[np.int64]

K = 10
CLUSTERS = 1000
SPREAD = 0.8
PIECE = 65_536  # rows drawn at once
APPLY = 2000  # rows of one apply, about what the index node reads at once


def options(
    doc: str | None, *, vectors: int, rounds: int, threads: int = 2, parts: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """The command line of a benchmark of the index."""
    parser = arguments(doc, parts, seeds=False)
    parser.add_argument("--rows", type=int, default=vectors, help="vectors in the index")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=rounds, help="medians are of so many")
    parser.add_argument("--threads", type=int, default=threads, help="of each search")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def clustered(count: int, dim: int, *, seed: int, queries: bool = False) -> Array:
    """float32[count, dim], unit vectors: rows, or queries of the same distribution."""
    rng = np.random.default_rng([seed, 0])
    axis_D = (1.0 / np.sqrt(np.arange(1, dim + 1))).astype(np.float32)
    turn_DD = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    centre_CD = rng.standard_normal((CLUSTERS, dim), dtype=np.float32) * axis_D
    weight_C = 1.0 / np.sqrt(np.arange(1, CLUSTERS + 1))
    weight_C /= weight_C.sum()
    made_ND = np.empty((count, dim), np.float32)
    for number, begin in enumerate(range(0, count, PIECE)):
        rng = np.random.default_rng([seed, 2 if queries else 1, number])
        piece_MD = made_ND[begin : begin + PIECE]
        which = rng.choice(CLUSTERS, len(piece_MD), p=weight_C)
        noise_MD = rng.standard_normal(piece_MD.shape, dtype=np.float32) * axis_D
        np.matmul(centre_CD[which] + np.float32(SPREAD) * noise_MD, turn_DD, out=piece_MD)
        piece_MD /= np.linalg.norm(piece_MD, axis=1, keepdims=True)
    return made_ND


def name_of(row: int) -> str:
    return f"r{row:08d}"


def percent_of(row: Any) -> Any:
    """What `index_filters` filters on: 0, 0.1 ... 99.9, spread evenly over the rows."""
    return (row * 7919) % 1000 / 10


def upserts(rows_ND: Array, begin: int) -> list[Upsert]:
    """Writes of the rows from number `begin`."""
    return [
        Upsert(
            id=name_of(row),
            partition=0,
            version=row,
            ts=0,
            model="m",
            fused=row_D,
            meta={"percent": percent_of(row), "lang": ("en", "de", "fr")[row % 3]},
        )
        for row, row_D in enumerate(rows_ND, start=begin)
    ]


def filled(rows_ND: Array, *, threads: int, **options: Any) -> tuple[LiveStore, dict[str, float]]:
    """A store of these rows with nothing left to seal; how long applying and sealing took."""
    store = LiveStore(space="s", dim=rows_ND.shape[1], threads=threads, **options)
    applying = sealing = 0.0
    for begin in range(0, len(rows_ND), APPLY):
        writes = upserts(rows_ND[begin : begin + APPLY], begin)
        at = time.perf_counter()
        store.apply(writes, positions={0: begin + len(writes)}, progress={})
        now = time.perf_counter()
        maintain(store)
        applying, sealing = applying + now - at, sealing + time.perf_counter() - now
    at = time.perf_counter()
    while maintain(store):
        pass
    sealing += time.perf_counter() - at
    return store, {"apply_s": round(applying, 2), "seal_s": round(sealing, 2)}


def exact(rows_ND: Array, queries_BD: Array, k: int = K) -> tuple[Array, Found]:
    """Scores and rows of the true hits, best first."""
    score_BK = np.zeros((len(queries_BD), 0), np.float32)
    row_BK = np.zeros((len(queries_BD), 0), np.int64)
    for begin in range(0, len(rows_ND), PIECE):
        piece_MD = rows_ND[begin : begin + PIECE]
        score_BM, row_BM = faiss.knn(
            queries_BD, piece_MD, min(k, len(piece_MD)), metric=faiss.METRIC_INNER_PRODUCT
        )
        score_BM = np.concatenate([score_BK, score_BM], axis=1)
        row_BM = np.concatenate([row_BK, row_BM + begin], axis=1)
        order_BK = np.argsort(-score_BM, axis=1, kind="stable")[:, :k]
        score_BK = np.take_along_axis(score_BM, order_BK, 1)
        row_BK = np.take_along_axis(row_BM, order_BK, 1)
    return score_BK, row_BK


def recall(answers: Sequence[Sequence[int]], truth_BK: Found) -> float:
    """Recall@K: the share of the true hits that were found."""
    hit = sum(
        len(set(rows) & set(truth.tolist())) for rows, truth in zip(answers, truth_BK, strict=True)
    )
    return round(hit / truth_BK.size, 4)


def asked(store: LiveStore, queries_BD: Array, k: int = K, **options: Any) -> list[list[int]]:
    """The rows that the store finds."""
    return [[int(hit.id[1:]) for hit in hits] for hits in store.search(queries_BD, k=k, **options)]


def in_batches(queries_BD: Array, size: int) -> Iterator[Array]:
    """Batches of one size, over and over."""
    while True:
        for begin in range(0, len(queries_BD) - size + 1, size):
            yield queries_BD[begin : begin + size]


def timed(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, least_s: float = 0.2
) -> dict[str, float]:
    """Median milliseconds of a call; the calls take turns, so that a busy machine slows all alike.

    Each turn repeats a call for about `least_s` seconds and counts with its mean; the first turn
    warms up and says how often that is.
    """
    often: dict[str, int] = {}
    for name, call in calls.items():
        call()
        began = time.perf_counter()
        call()
        often[name] = max(1, int(least_s / (time.perf_counter() - began)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(often[name]):
                call()
            taken[name].append(1000 * (time.perf_counter() - began) / often[name])
    return {name: statistics.median(times) for name, times in taken.items()}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(np.asarray(seconds) * 1000, (50, 99))
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def finish_here(name: str, given: argparse.Namespace, rows: dict[str, Any]) -> dict[str, Any]:
    """Print the rows with the arguments and the machine that they were measured with."""
    asked = {key: value for key, value in vars(given).items() if key != "json"}
    report = {"benchmark": name, **asked, "machine": machine(), "rows": rows}
    return finish(report, given.json)


def machine() -> dict[str, Any]:
    """Where this ran, and how busy it was."""
    model = "unknown"
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        lines = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "faiss": faiss.__version__,
    }


def resident() -> int:
    """Bytes of this process in memory that are its own, mapped files left out."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon")
