"""Filters that keep 0.1, 1, 10 and 50 % of the rows, against no filter, in the live index.

    python -m benchmarks.index_filters [--rows 1000000] [--dim 256] [--rounds 9] [--threads 1]
        [--json]

The filter is on a number in meta that is spread evenly over the rows. Recall is against a float32
search of the kept rows alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from braid.index.filters import compile_filter

from .common import finish
from .vectors import (
    asked,
    clustered,
    exact,
    filled,
    in_batches,
    machine,
    options,
    percent_of,
    recall,
    timed,
)

SHARES = (0.1, 1.0, 10.0, 50.0)  # percent
QUERIES = 128


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = options(__doc__, vectors=1_000_000, rounds=9, threads=1).parse_args(argv)
    rows_ND = clustered(given.rows, given.dim, seed=given.seed)
    queries_BD = clustered(QUERIES, given.dim, seed=given.seed, queries=True)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store, _ = filled(rows_ND, threads=given.threads, folder=Path(folder))
        filters = {share: compile_filter({"percent": {"lt": share}}) for share in SHARES}
        percent_N = percent_of(np.arange(given.rows))
        for share, filter in filters.items():
            kept_M = np.flatnonzero(percent_N < share)
            truth_BK = kept_M[exact(rows_ND[kept_M], queries_BD)[1]]
            rows[f"{share:g} %"] = {
                "recall": recall(asked(store, queries_BD, filter=filter), truth_BK)
            }
        for size in (1, 64):
            batches = in_batches(queries_BD, size)
            calls: dict[str, Callable[[], object]] = {
                f"{share:g} %": lambda filter=filter: asked(store, next(batches), filter=filter)  # type: ignore[misc]  # noqa: B023
                for share, filter in filters.items()
            }
            calls["unfiltered"] = lambda: asked(store, next(batches))  # noqa: B023
            taken = timed(calls, given.rounds)
            for name, taken_ms in taken.items():
                row = rows.setdefault(name, {})
                row[f"batch_{size}_ms"] = round(taken_ms, 2)
                row[f"batch_{size}_of_unfiltered"] = round(taken_ms / taken["unfiltered"], 2)
        store.close()
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


if __name__ == "__main__":
    main()
