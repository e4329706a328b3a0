"""Restart of a large index: seconds to the first answer, bytes a row, how long a snapshot stalls.

    python -m benchmarks.index_restart [--rows 1000000] [--dim 256] [--rounds 3] [--threads 1]
        [--json]

`saving` writes a snapshot while another thread applies PER_SECOND rows a second and compaction
seals them: the longest apply is what a writer may notice of it. `restart` is a new process each
time: it restores the snapshot and answers one query; imports are not counted. Memory is what a
process holds of its own (RssAnon), without mapped files, which the kernel may drop and read again.
`at most` is the highest of many looks, so that a copy of the rows that is made for a moment would
be seen.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from braid.index.segments.compaction import Compactor
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import restore, save, segments_folder
from braid.index.store import Array

from .common import finish
from .vectors import K, clustered, filled, machine, options, resident, upserts

LOOK_S = 0.01
PER_SECOND, APPLIES = 1000, 10
BEFORE_S = 1.0  # applies that are timed before a snapshot begins


class Highest:
    """The most memory that this process held between two moments, looked at again and again."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.nbytes = 0

    def __enter__(self) -> Highest:
        self.nbytes = resident()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self.nbytes = max(self.nbytes, resident())

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            self.nbytes = max(self.nbytes, resident())


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = options(__doc__, vectors=1_000_000, rounds=3, threads=1)
    parser.add_argument("--restore", help="restore this folder and say how that went; used within")
    given = parser.parse_args(argv)
    if given.restore is not None:
        report = _restored(Path(given.restore), given)
        print(json.dumps(report), flush=True)
        return report
    with tempfile.TemporaryDirectory() as folder:
        report = _measured(Path(folder), given)
    return finish(report, given.json)


def _measured(folder: Path, given: Any) -> dict[str, Any]:
    rows_ND = clustered(given.rows, given.dim, seed=given.seed)
    store, built = filled(rows_ND, threads=given.threads, folder=segments_folder(folder))
    saving = _saving(store, rows_ND, folder)
    save(store, folder, generation="g0001")
    store.close()
    rounds = []
    for _ in range(given.rounds):
        command = [sys.executable, "-m", "benchmarks.index_restart", "--restore", str(folder)]
        for name in ("dim", "threads", "seed"):
            command += [f"--{name}", str(getattr(given, name))]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        rounds.append(json.loads(done.stdout))
    return {
        "machine": machine(),
        "vectors": given.rows,
        "dim": given.dim,
        "threads": given.threads,
        "rounds": given.rounds,
        **built,
        "rows": {
            "saving": saving,
            "restart": {
                name: round(statistics.median(figures[name] for figures in rounds), 3)
                for name in rounds[0]
            },
        },
    }


def _saving(store: LiveStore, rows_ND: Array, folder: Path) -> dict[str, Any]:
    """A snapshot of a store that is being written to."""
    stopping = threading.Event()
    applied: list[tuple[float, float]] = []  # when it ended, how long it took

    def write() -> None:
        at = len(rows_ND)
        while not stopping.is_set():
            writes = upserts(rows_ND[: PER_SECOND // APPLIES], at)
            began = time.perf_counter()
            store.apply(writes, positions={0: at}, progress={})
            ended = time.perf_counter()
            applied.append((ended, ended - began))
            at += len(writes)
            stopping.wait(1 / APPLIES)

    compactor = Compactor(store)
    compactor.start()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(BEFORE_S)
        before = resident()
        began = time.perf_counter()
        with Highest() as highest:
            info = save(store, folder, generation="g0001")
        took = time.perf_counter() - began
    finally:
        stopping.set()
        writer.join()
        compactor.stop()
    assert info is not None
    quiet = [taken for ended, taken in applied if ended <= began]
    during = [taken for ended, taken in applied if ended > began]
    return {
        "seconds": round(took, 2),
        "stall_ms": round(1000 * info.stall_s, 3),
        "longest_apply_ms": round(1000 * max(during, default=0.0), 1),
        "longest_apply_before_ms": round(1000 * max(quiet, default=0.0), 1),
        "snapshot_mb": round(info.nbytes / 1e6, 1),
        "more_memory_at_most_mb": round((highest.nbytes - before) / 1e6, 1),
        "rows_applied_meanwhile": PER_SECOND // APPLIES * len(during),
    }


def _restored(folder: Path, given: Any) -> dict[str, Any]:
    query_BD = clustered(1, given.dim, seed=given.seed, queries=True)
    before = resident()
    with Highest() as highest:
        began = time.perf_counter()
        restored = restore(folder, threads=given.threads)
        assert restored is not None
        ready = time.perf_counter()
        (hits,) = restored.store.search(query_BD, k=K)
        ended = time.perf_counter()
    assert len(hits) == K
    count = len(restored.store)
    raw = count * 4 * given.dim
    restored.store.close()
    return {
        "seconds_to_first_answer": ended - began,
        "restore_s": ready - began,
        "records": count,
        "bytes_a_row": (resident() - before) / count,
        "at_most_bytes_a_row": (highest.nbytes - before) / count,
        "of_float32": (resident() - before) / raw,
    }


if __name__ == "__main__":
    main()
