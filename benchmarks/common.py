"""What the benchmarks share: the command line, mean and spread, the table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def arguments(
    doc: str | None, parts: Sequence[str] = (), *, seeds: bool = True
) -> argparse.ArgumentParser:
    """`--seeds` where something is trained, `--json`, and `--part` where there are some."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if seeds:
        parser.add_argument("--seeds", type=int, default=5, help="trainings to average over")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--part", choices=parts or None, help="only this part")
    return parser


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (of the sample) of each figure over the runs."""
    return {
        name: {
            "mean": round(float(np.mean([run[name] for run in runs])), 4),
            "sd": round(float(np.std([run[name] for run in runs], ddof=min(1, len(runs) - 1))), 4),
        }
        for name in runs[0]
    }


def finish(report: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Print the report, as JSON or as a table of mean ± sd; hand it on."""
    if as_json:
        print(json.dumps(report), flush=True)
        return report
    for row, figures in report["rows"].items():
        print(row)
        for name, its in figures.items():
            if isinstance(its, Mapping) and "mean" in its:
                print(f"  {name:34s} {its['mean']:9.4f} ± {its['sd']:.4f}")
            else:
                print(f"  {name:34s} {its}")
    return report
