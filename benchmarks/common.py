"""What the benchmarks share: the command line, mean and spread, the table."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def arguments(
    doc: str | None, parts: Sequence[str] = (), *, seeds: bool = True, resume: bool = False
) -> argparse.ArgumentParser:
    """`--seeds` where something is trained, `--json`, `--part` where there are some, and `--resume`
    where finished trainings can be kept (`benchmarks.trainings`)."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if seeds:
        parser.add_argument("--seeds", type=int, default=5, help="trainings to average over")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--part", choices=parts or None, help="only this part")
    if resume:
        parser.add_argument(
            "--resume",
            type=Path,
            help="file that keeps the results of finished trainings, which are not done again; "
            "another file for other data or other code",
        )
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


Items = Mapping[str, Sequence[float]]
"""Figures by name, each of every test item, in one order in all runs."""


def by_item(runs: Sequence[Items]) -> dict[str, dict[str, float]]:
    """Mean of each figure, its standard deviation over the runs, and its standard error over items.

    The runs train differently and test the same items: `sd` is what another training changes, `se`
    what other items would (of each item's mean over the runs).
    """
    figures = {}
    for name in runs[0]:
        of_RN = np.array([run[name] for run in runs], np.float64)
        figures[name] = {
            "mean": round(float(of_RN.mean()), 4),
            "sd": round(float(of_RN.mean(1).std(ddof=min(1, len(runs) - 1))), 4),
            "se": round(_standard_error(of_RN.mean(0)), 4),
        }
    return figures


def paired(runs: Sequence[Items], name: str, other: str) -> dict[str, float]:
    """The mean of figure `name` less `other` over the same items, and half its 95 % interval.

    An item's difference is its mean over the runs, so that a run more is no item more.
    """
    of_RN = np.array([run[name] for run in runs], np.float64)
    difference_N = of_RN.mean(0) - np.array([run[other] for run in runs], np.float64).mean(0)
    half = 1.96 * _standard_error(difference_N)
    return {"mean": round(float(difference_N.mean()), 4), "half": round(half, 4)}


def _standard_error(values_N: NDArray[np.float64]) -> float:
    return float(values_N.std(ddof=min(1, len(values_N) - 1))) / math.sqrt(len(values_N))


def finish(report: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Print the report, as JSON or as a table of mean ± sd (and standard error); hand it on."""
    if as_json:
        print(json.dumps(report), flush=True)
        return report
    for row, figures in report["rows"].items():
        print(row)
        for name, figure in figures.items():
            if isinstance(figure, Mapping) and "half" in figure:
                print(f"  {name:34s} {figure['mean']:+9.4f} ± {figure['half']:.4f} (95 %)")
            elif isinstance(figure, Mapping) and "mean" in figure:
                error = f", se {figure['se']:.4f}" if "se" in figure else ""
                print(f"  {name:34s} {figure['mean']:9.4f} ± {figure['sd']:.4f}{error}")
            else:
                print(f"  {name:34s} {figure}")
    return report
