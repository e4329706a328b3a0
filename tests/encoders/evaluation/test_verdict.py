"""What decides, what it decides, and the power of so many records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.judge_power import new_rule, old_rule, promoted
from braid.encoders.evaluation.gates import Gates
from braid.encoders.evaluation.paired import Sums, holm
from braid.encoders.evaluation.verdict import decide, gate_result, outcome, paired_result

LEVEL = Gates().level


def primary(records: int, gains: int, losses: int, margin: float = 0.02, **more: Any) -> Any:
    sums = Sums(records, gains - losses, gains + losses)
    before, after = 0.9, 0.9 + (gains - losses) / records
    return paired_result(
        more.pop("metric", "accuracy kind: as it comes"),
        before,
        after,
        sums,
        margin,
        **{"level": LEVEL, **more},
    )


def decided(*gates: dict[str, Any], level: float = LEVEL) -> tuple[str, str]:
    return decide(gates, {}, Gates(), level)


def test_few_records_are_not_enough_evidence_even_if_none_changed() -> None:
    decision, reason = decided(primary(84, 0, 0))
    assert decision == "not enough evidence"
    assert "accuracy kind: as it comes may be worse by" in reason
    assert "2.0 points is allowed; with 84 records a drop under" in reason
    assert reason.endswith("points cannot be seen, and an equal version needs about 390 to pass")
    assert decided(primary(389, 0, 0))[0] == "not enough evidence"
    assert decided(primary(390, 0, 0))[0] == "passed"


def test_a_drop_is_refused_where_it_is_proven_and_left_open_where_it_is_not() -> None:
    decision, reason = decided(primary(1000, 30, 90))
    assert (decision, reason) == ("failed", "failed: accuracy kind: as it comes")
    assert decided(primary(1000, 30, 60))[0] == "not enough evidence"
    assert decided(primary(1000, 65, 35))[0] == "passed"


def test_each_primary_metric_must_pass_and_a_warning_does_not_decide() -> None:
    good = primary(1000, 65, 35)
    open_ = primary(1000, 30, 40, metric="recall@10 text->image")
    assert decided(good, open_)[0] == "not enough evidence"
    worse = gate_result("effective rank fused", 10, 1, 8, False, 1000)
    decision, reason = decided(good, worse)
    assert decision == "passed"
    assert reason.endswith("warnings: effective rank fused")
    assert [outcome(gate) for gate in (good, open_, worse)] == [
        "ok",
        "too little evidence",
        "warning",
    ]
    slow = gate_result("embed ms a record", 1, 9, 1.5, False, 16, role="limit")
    assert decided(good, slow) == ("failed", "failed: embed ms a record")


def test_of_an_error_a_rise_is_the_loss() -> None:
    gain = Sums.of(torch.tensor([0.1, -0.3] * 500))  # better by 0.1 or worse by 0.3
    gate = paired_result("error size: as it comes", 1.0, 1.1, gain, 0.02, falls=True, level=LEVEL)
    assert gate["limit"] == 0.02
    low, high = gate["interval"]
    assert low < 0.1 < high
    assert decided(gate)[0] == "failed"
    assert not gate["passed"]


def test_without_any_error_left_nothing_passes() -> None:
    decision, reason = decided(primary(5000, 0, 0, level=0.0), level=0.0)
    assert decision == "not enough evidence"
    assert "the error of 5 % in 30 days is spent" in reason


def test_a_family_refuses_by_holm() -> None:
    assert holm([0.004, 0.03, 0.012, 0.001], 0.05) == [True, True, True, True]
    assert holm([0.004, 0.03, 0.02, 0.001], 0.05) == [True, True, True, True]
    assert holm([0.004, 0.03, 0.026, 0.001], 0.05) == [True, False, False, True]
    assert holm([], 0.05) == []
    # One in forty metrics is as bad by chance; as the only one it would be refused.
    bad = primary(1000, 30, 79)
    assert decided(dict(bad))[0] == "failed"
    others = [primary(1000, 30, 30, metric=f"recall@10 {n}") for n in range(9)]
    assert decided(dict(bad), *others)[0] == "not enough evidence"


@pytest.mark.parametrize("level", [LEVEL, 0.0125, 0.05])
def test_where_nothing_changed_as_many_records_are_needed_as_by_the_exact_test(
    level: float,
) -> None:
    exact = np.log(level) / np.log(0.98)  # so many records without a loss, if one in fifty is lost
    least = next(n for n in range(1, 9999) if Sums(n, 0, 0).lower_bound(level) >= -0.02)
    assert exact <= least < exact + 6
    assert Sums(1, 0, 0).records_needed(0.02, level) == least


def test_what_can_be_seen_is_seen_in_four_of_five_cases() -> None:
    sums = Sums(1000, 0, 100)
    drop, rng = sums.detectable(), np.random.default_rng(0)
    draws = rng.multinomial(1000, [0.05 - drop / 2, 0.05 + drop / 2, 0.9], size=4000)
    seen = [-Sums(1000, lost - won, won + lost).lower_bound() < 0 for won, lost, _ in draws]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)
    needed = sums.records_needed(0.02, LEVEL)
    assert needed is not None
    draws = rng.multinomial(needed, [0.05, 0.05, 0.9], size=4000)
    passed = [
        Sums(needed, won - lost, won + lost).lower_bound(LEVEL) >= -0.02 for won, lost, _ in draws
    ]
    assert np.mean(passed) == pytest.approx(0.8, abs=0.03)
    assert sums.records_needed(0.0, LEVEL) is None


@pytest.mark.parametrize("records", [30, 84, 300, 400, 1000, 3000])
@pytest.mark.parametrize("changed", [0.0, 0.035, 0.1])
def test_a_month_of_schedules_hardly_promotes_a_drop_of_five_points(
    records: int, changed: float
) -> None:
    month = promoted(new_rule, records, -0.05, changed, tests=120, months=1000, seed=1)
    assert month.once <= 0.05
    if (records, changed) == (84, 0.035):
        assert promoted(old_rule, records, -0.05, changed, tests=1, months=4000, seed=1).once > 0.6


def test_a_version_that_is_three_points_better_passes_with_a_thousand_records() -> None:
    assert promoted(new_rule, 1000, 0.03, 0.035, tests=1, months=4000, seed=1).once >= 0.8
