"""Run the benchmarks of speed that need no GPU and no peer; compare the figures with their targets.

    python -m benchmarks [--only NAME ...] [--json]      # make bench

Each benchmark is a process of its own, one after the other: about 20 minutes on two cores of a
machine with nothing else at work; the runs are shorter than those that RESULTS.md was made with.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from .vectors import machine

TIMEOUT_S = 900
PACKAGES = ("torch", "faiss-cpu", "confluent-kafka", "transformers")

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A figure of a benchmark.

    Attributes:
        of: takes the figure out of the benchmark's rows.
        bound: what is to be reached: at least, or with `most` at most.
    """

    name: str
    of: Callable[[Rows], float]
    bound: float
    most: bool = False

    def reached(self, value: float) -> bool:
        return value <= self.bound if self.most else value >= self.bound


def figure(row: str, name: str) -> Callable[[Rows], float]:
    return lambda rows: float(rows[row][name])


OPERATIONS = Target(
    name="text, worker's operations / float32 product",
    of=figure("text", "worker, operations / product"),
    bound=0.75,
)
TARGETS: Mapping[tuple[str, ...], Sequence[Target]] = {
    **{
        ("throughput", "--part", part, "--records", records): [
            Target(
                name=f"worker / plain loop, {part}", of=figure(part, "worker / loop"), bound=0.95
            ),
            *more,
        ]
        for part, records, more in (
            ("text", "500", [OPERATIONS]),
            ("image", "200", []),
            ("audio", "600", []),
            ("all", "120", []),
        )
    },
    ("engines", "--rounds", "2"): [
        Target(
            name="best engine / torch, picture network, float32",
            of=figure("image", "best in float32 / torch"),
            bound=1.3,
        ),
        Target(
            name="MiniLM in int8 / torch (1.5 without VNNI)",
            of=figure("text", "best in int8 / torch"),
            bound=3,
        ),
        *(
            Target(
                name=f"best engine in bf16 / torch, {part}",
                of=figure(part, "best in bf16 / torch"),
                bound=2,
            )
            for part in ("image", "text")
        ),
    ],
    ("training", "--rounds", "4", "--steps", "20"): [
        Target(
            name="training step written plainly / ours", of=figure("step", "plain / ours"), bound=1
        ),
        *(
            Target(
                name=f"open_clip's InfoNCE / ours, batch {batch}",
                of=figure(f"InfoNCE, batch {batch}", "open_clip's / ours"),
                bound=1,
            )
            for batch in (256, 1024)
        ),
    ],
    ("null_worker",): [
        Target(
            name="null worker / bare loop", of=figure("worker / bare loop", "median"), bound=0.8
        ),
        Target(
            name="null worker, CPU ms a record",
            of=figure("worker", "CPU ms a record"),
            bound=0.08,
            most=True,
        ),
    ],
    ("scaling", "--rounds", "2"): [
        *(
            Target(
                name=f"{workers} workers / 1, of what cores allow",
                of=figure(f"{workers} workers", "times one worker / expected"),
                bound=0.9,
            )
            for workers in (2, 4)
        ),
        *(
            Target(
                name=f"10 times the {what}: rate / before",
                of=figure(f"10 times the {what}", "rate / before"),
                bound=0.9,
            )
            for what in ("records", "text")
        ),
    ],
    ("queries", "--seconds", "4"): [
        Target(
            name="text queries a second, 32 at once / 1",
            of=figure("ratios", "queries a second, 32 at once / 1"),
            bound=5,
        ),
        Target(
            name="p99 of 8 text queries at once / p50 of 1",
            of=figure("ratios", "p99 of 8 at once / p50 of 1"),
            bound=3,
            most=True,
        ),
    ],
    ("start",): [
        Target(name=f"{name}, s to ready", of=figure(name, "median s"), bound=5, most=True)
        for name in ("worker", "index node")
    ],
    ("poison", "--records", "2000", "--rounds", "1"): [
        Target(
            name=f"one of 100 fails, MiniLM, {way} / without",
            of=figure(f"throughput {way} / without", "median"),
            bound=0.7,
        )
        for way in ("raises", "late")
    ],
    ("index_exact", "--rounds", "2"): [
        Target(
            name=f"exact search / IndexFlat, {row}",
            of=figure(row, "ratio"),
            bound=3,
        )
        for row in ("batch 1, 1 thread", "batch 64, 1 thread", "batch 64, 2 threads")
    ],
    ("index_ingest", "--rows", "300000", "--rounds", "2", "--seconds", "7", "--encode", "10"): [
        Target(
            name="searches while rows come in and queries are encoded / idle",
            of=figure("ingesting / idle", "queries_per_s"),
            bound=0.85,
        ),
    ],
    ("index_freshness", "--rounds", "3", "--seconds", "10", "--model", "demo", "--burst", "3000"): [
        Target(
            name="produced to searchable, p99 / full micro-batch",
            of=figure("full micro-batch", "p99 / full micro-batch"),
            bound=3,
            most=True,
        ),
    ],
    ("step_load", "--seconds", "10", "--burst", "400"): [
        Target(
            name=f"step of the load, {phase}: kept or said",
            of=figure(phase, "kept or said"),
            bound=1,
        )
        for phase in ("phase 1, 10 %", "phase 2, 100 %", "phase 3, 10 %")
    ],
    ("cache", "--part", "text", "--records", "120", "--rounds", "2", "--shares", "0", "90"): [
        Target(
            name=f"cache of features, {row} / without",
            of=figure(row, "memory and Redis / without"),
            bound=bound,
        )
        for row, bound in (("0 % repeat", 0.98), ("90 % repeat", 2))
    ],
}


def run(command: Sequence[str]) -> dict[str, Any]:
    """The report of one benchmark, or `error`; and its `seconds`."""
    began = time.monotonic()
    report = _report([sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], "--json"])
    return {**report, "seconds": round(time.monotonic() - began)}


def _report(command: Sequence[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took over {TIMEOUT_S} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return {"error": lines[-1]}
    try:
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        return {"error": f"printed no report: {error}"}
    return report


def verdicts(report: Mapping[str, Any], targets: Sequence[Target]) -> list[dict[str, Any]]:
    """A row of the table for each target; `error` instead of a value where there is none."""
    rows = []
    for target in targets:
        value, error = None, report.get("error")
        if error is None:
            try:
                value = target.of(report["rows"])
            except KeyError as missing:
                error = f"no figure {missing}"
        rows.append(
            {
                "figure": target.name,
                "value": value,
                "target": f"{'<=' if target.most else '>='} {target.bound:g}",
                "reached": value is not None and target.reached(value),
                **({} if error is None else {"error": error}),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    names = list(dict.fromkeys(command[0] for command in TARGETS))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args(argv)
    began = time.monotonic()
    table: list[dict[str, Any]] = []
    reports: dict[str, Any] = {}
    for command, targets in TARGETS.items():
        if command[0] not in given.only:
            continue
        name = " ".join(command)
        print(f"{name} ...", file=sys.stderr, flush=True)
        reports[name] = report = run(command)
        table += verdicts(report, targets)
        print(f"{name}: {report['seconds']} s", file=sys.stderr, flush=True)
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if given.json:
        print(json.dumps({**about, "table": table, "reports": reports}))
    else:
        print(json.dumps(about))
        for row in table:
            value = "failed" if row["value"] is None else f"{row['value']:g}"
            verdict = "reached" if row["reached"] else row.get("error", "missed")
            print(f"{row['figure']:60s} {value:>9s}  {row['target']:>8s}  {verdict}")
    return 0 if all("error" not in row for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
