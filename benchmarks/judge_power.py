"""How often the judge promotes a version that is worse, and refuses one that is not: a simulation.

    python -m benchmarks.judge_power [--months 500] [--changed 0.035] [--json]

One primary metric whose values are 0 or 1, such as accuracy. A share `changed` of the records is
won by chance and as many are lost; a drop comes on top of the losses, a gain on top of the wins. A
month is 120 judgements, one every six hours, each of another version with the same true difference,
on records of its own, which makes the most of chance. Three rules:

    before   passes if the upper end of the 95 % interval reaches -0.01, as it was
    after    the judge's: the lower end reaches -0.02 at the level of one judgement (`Gates`)
    refused  the judge's, for each judgement: a drop of more than 0.02 is proven

Shapes: K judgements.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from braid.encoders.evaluation.gates import Gates
from braid.encoders.evaluation.paired import Sums
from braid.encoders.evaluation.verdict import decide, paired_result

from .common import arguments

RECORDS = (30, 84, 150, 300, 500, 1000, 2000, 3000)
DROPS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
GATES = Gates()
OLD_MARGIN = 0.01
TESTS = 120

Rule = Callable[[int, int, int], str]
"""(records, won, lost) to "passed", "failed" or "not enough evidence"."""


def old_rule(records: int, won: int, lost: int) -> str:
    """Before: the interval (here that of the normal distribution) is not wholly beyond."""
    mean = (won - lost) / records
    error = np.sqrt(((won + lost) / records - mean**2) / records)
    return "passed" if mean + 1.96 * error >= -OLD_MARGIN else "failed"


def new_rule(records: int, won: int, lost: int) -> str:
    """The decision of `braid.encoders.evaluation.verdict`."""
    gain = Sums(records, won - lost, won + lost)
    gate = paired_result("m", 0.5, 0.5, gain, GATES.accuracy, level=GATES.level)
    return decide([gate], {}, GATES, GATES.level)[0]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Of months: in which the rule passed a version `once` or more often; of judgements: those that
    `passed` and that `failed`."""

    once: float
    passed: float
    failed: float


def promoted(
    rule: Rule, records: int, gain: float, changed: float, *, tests: int, months: int, seed: int
) -> Share:
    """Simulate months of judgements of versions whose true difference is `gain`."""
    rng = np.random.default_rng([seed, records, round(1000 * abs(gain)), gain > 0])
    won, lost = changed + max(gain, 0.0), changed + max(-gain, 0.0)
    counts_K3 = rng.multinomial(records, [won, lost, 1 - won - lost], size=months * tests)
    cases, case_K = np.unique(counts_K3[:, :2], axis=0, return_inverse=True)
    decisions_K = np.array([rule(records, int(w), int(n)) for w, n in cases])[case_K.ravel()]
    passed_K, failed_K = decisions_K == "passed", decisions_K == "failed"
    return Share(
        once=float(passed_K.reshape(months, tests).any(1).mean()),
        passed=float(passed_K.mean()),
        failed=float(failed_K.mean()),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--months", type=int, default=500)
    parser.add_argument("--changed", type=float, default=0.035)
    options = parser.parse_args(argv)
    rows: dict[str, dict[str, float]] = {}
    for gain in (0.03, 0.0, *(-drop for drop in DROPS)):
        for records in RECORDS:
            old, new = (
                promoted(
                    rule,
                    records,
                    gain,
                    options.changed,
                    tests=TESTS,
                    months=options.months,
                    seed=0,
                )
                for rule in (old_rule, new_rule)
            )
            rows[f"{100 * gain:+g} points, {records} records"] = {
                "before, one": old.passed,
                "before, month": old.once,
                "after, one": new.passed,
                "after, month": new.once,
                "refused, one": new.failed,
            }
    report = {
        "benchmark": "judge_power",
        "changed": options.changed,
        "months": options.months,
        "judgements": TESTS,
        "level": GATES.level,
        "rows": rows,
    }
    if options.json:
        print(json.dumps(report))
    else:
        for name, row in rows.items():
            print(f"{name:32s}", *(f"{key} {value:6.3f}" for key, value in row.items()))
    return report


if __name__ == "__main__":
    main()
