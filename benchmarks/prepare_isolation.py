"""What it costs to decode in processes of their own: `prepare_isolation`, thread against process.

    python -m benchmarks.prepare_isolation --json
    python -m benchmarks.prepare_isolation --rounds 3 --records 50 --part pictures

Both ways take the same records in turns within each round, with as many threads as a worker has.
`records/s` is of decoding alone, without the encoder. `CPU ms` of one record is of this process and
its children together: it says more than the time on a machine that others use too.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from benchmarks.common import arguments, finish, spread
from braid.encoders.config import Limits
from braid.encoders.decoding.isolation import DecodePool, isolate, picture, wave

THREADS = 2
LIMITS = Limits()


def pictures(count: int) -> list[bytes]:
    """Photographs as far as a codec can tell: JPEG of 1280 by 960, and PNG of 480 by 360."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        jpeg = number % 2 == 0
        small = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        large = small.resize((1280, 960) if jpeg else (480, 360), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        large.save(out, "JPEG" if jpeg else "PNG")
        made.append(out.getvalue())
    return made


def sounds(count: int) -> list[bytes]:
    """Three seconds, 22 kHz, in stereo: FLAC and WAV."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        out = io.BytesIO()
        noise_NC = rng.normal(0, 0.1, (66_150, 2)).cumsum(axis=0)
        noise_NC /= np.abs(noise_NC).max()
        soundfile.write(out, noise_NC, 22_050, format="FLAC" if number % 2 else "WAV")
        made.append(out.getvalue())
    return made


def cpu_s() -> float:
    """CPU seconds of this process and the children that run."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def run(kind: str, files: Sequence[bytes], threads: ThreadPoolExecutor) -> dict[str, float]:
    """All of them decoded: how fast, and at what cost."""

    def one(data: bytes) -> None:
        if kind == "pictures":
            picture(data, 260, LIMITS)
        else:
            wave(data, 6.0, LIMITS)

    begun, cpu_before = time.perf_counter(), cpu_s()
    list(threads.map(one, files))
    took_s, cpu = time.perf_counter() - begun, cpu_s() - cpu_before
    return {"records/s": len(files) / took_s, "CPU ms": 1000 * cpu / len(files)}


def measure(kind: str, records: int, rounds: int) -> dict[str, Any]:
    files = {"pictures": pictures, "sounds": sounds}[kind](records)
    pool = DecodePool(THREADS)
    runs_by_kind: dict[str, list[dict[str, float]]] = {"thread": [], "process": []}
    with ThreadPoolExecutor(THREADS) as threads:
        ways = {"thread": None, "process": pool}
        try:
            for number in range(rounds + 1):
                for name, way in list(ways.items())[:: -1 if number % 2 else 1]:
                    isolate(way)
                    figures = run(kind, files, threads)
                    if number > 0:  # the first round starts the children and warms the caches
                        runs_by_kind[name].append(figures)
        finally:
            isolate(None)
            pool.close()
    return {f"{kind}, {name}": spread(runs) for name, runs in runs_by_kind.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, parts=("pictures", "sounds"), seeds=False)
    parser.add_argument("--records", type=int, default=300, help="in each round")
    parser.add_argument("--rounds", type=int, default=7, help="of both ways in turns")
    options = parser.parse_args(argv)
    rows: dict[str, Any] = {}
    for kind in [options.part] if options.part else ["pictures", "sounds"]:
        rows |= measure(kind, options.records, options.rounds)
    report = {
        "benchmark": "prepare_isolation",
        "threads": THREADS,
        "cores": len(os.sched_getaffinity(0)),
        "rows": rows,
    }
    return finish(report, options.json)


if __name__ == "__main__":
    main()
