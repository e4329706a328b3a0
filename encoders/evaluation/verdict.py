"""The decision of the judge: which gates decide, and what they decide together.

    primary   one metric of each task and of each direction of retrieval. Non-inferiority: it passes
              only if the lower end of its paired interval is at least -margin
    limit     values that are not finite, and latency: beyond it for sure, the version is refused
    warning   all others: they are reported

A version passes if every primary metric passes: the union of the hypotheses "this one fell" is
rejected only if each is, at its own level, so that several metrics need no correction (Berger 1982,
"Multiparameter hypothesis testing and acceptance sampling", Technometrics 24). It is refused where
a drop beyond a margin is proven for some primary metric, by Holm's correction over all. Anything
else is not enough evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .gates import Gates
from .paired import Sums, holm

PASSED, FAILED, REFUSED = "passed", "failed", "refused"
TOO_LITTLE = "not enough evidence"
PRIMARY, LIMIT, WARNING = "primary", "limit", "warning"

_LEAST = 1e-9
"""The level of bounds that are shown where no error may be made any more."""


def verdict(
    decision: str,
    reason: str,
    gates: Gates,
    *,
    champion: str,
    records: int = 0,
    learnt: int = 0,
    level: float = 0.0,
    gate_results: Sequence[Mapping[str, Any]] = (),
    unjudged: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """A verdict as the manifest keeps it, plain JSON."""
    return {
        "passed": decision == PASSED,
        "decision": decision,
        "reason": reason,
        "champion": champion,
        "records": records,
        "learnt": learnt,
        "level": level,
        "power": power_of(gate_results),
        "limits": asdict(gates),
        "gates": [dict(gate) for gate in gate_results],
        "unjudged": dict(unjudged or {}),
    }


def gate_result(
    metric: str,
    champion: float,
    challenger: float,
    limit: float,
    passed: bool,
    records: int,
    interval: tuple[float, float] | None = None,
    *,
    role: str = WARNING,
    **more: Any,
) -> dict[str, Any]:
    """One gate's result; numbers that JSON cannot hold become None.

    A primary metric has `failed` and figures of its power, too (`primary_result`).
    """

    def plain(value: float) -> float | None:
        return round(float(value), 6) if math.isfinite(value) else None

    return {
        "metric": metric,
        "role": role,
        "champion": plain(champion),
        "challenger": plain(challenger),
        "difference": plain(challenger - champion),
        "limit": plain(limit),
        "passed": bool(passed),
        "interval": None if interval is None else [plain(value) for value in interval],
        "records": records,
        **more,
    }


def paired_result(
    metric: str,
    champion: float,
    challenger: float,
    gain: Sums,
    margin: float,
    *,
    falls: bool = False,
    level: float | None = None,
) -> dict[str, Any]:
    """The gate of a metric that is a mean over records.

    Args:
        gain: of the paired differences, better being positive.
        falls: lower is better.
        level: of a primary metric, the error that this verdict may make; None: a warning.
    """
    low = gain.lower_bound() if level is None else gain.lower_bound(max(level, _LEAST))
    high = -gain.negated().lower_bound()
    interval = (-high, -low) if falls else (low, high)
    limit, records = margin if falls else -margin, gain.count
    if level is None:
        passed = high >= -margin
        return gate_result(metric, champion, challenger, limit, passed, records, interval)
    return gate_result(
        metric,
        champion,
        challenger,
        limit,
        level > 0 and low >= -margin,
        records,
        interval,
        role=PRIMARY,
        failed=False,
        p_worse=gain.p_below(-margin),
        detectable=round(gain.detectable(), 6),
        records_needed=gain.records_needed(margin, max(level, _LEAST)),
    )


def decide(
    results: Sequence[dict[str, Any]], short: Mapping[str, int], gates: Gates, level: float
) -> tuple[str, str]:
    """The decision and its reason; sets `failed` of the primary metrics.

    Args:
        short: primary metrics that some records have, but too few of them.
        level: the error that this verdict may make; 0: none is left.
    """
    primary = [gate for gate in results if gate["role"] == PRIMARY]
    for gate, worse in zip(primary, holm([gate["p_worse"] for gate in primary]), strict=True):
        gate["failed"] = worse
    lost = [
        gate["metric"]
        for gate in results
        if (gate["role"] == LIMIT and not gate["passed"]) or gate.get("failed")
    ]
    if lost:
        return FAILED, f"failed: {', '.join(lost)}"
    if level <= 0:
        spent = f"the error of {100 * gates.budget:.3g} % in 30 days is spent"
        return TOO_LITTLE, f"{TOO_LITTLE}: {spent} (gates.budget over gates.planned judgements)"
    for metric, records in short.items():
        has = f"{metric} has {records} judge records, the gates want {gates.min_records}"
        return TOO_LITTLE, f"{TOO_LITTLE}: {has}"
    if not primary:
        reason = "no metric that decides has as many judge records as the gates want"
        return TOO_LITTLE, f"{TOO_LITTLE}: {reason}"
    open_ = [gate for gate in primary if not gate["passed"]]
    if open_:
        worst = max(open_, key=lambda gate: _fall(gate) - abs(gate["limit"]))
        may = f"{worst['metric']} may be worse by {_amount(worst, _fall(worst))}"
        reason = f"{may}, {_amount(worst, abs(worst['limit']))} is allowed; {power_of(results)}"
        return TOO_LITTLE, f"{TOO_LITTLE}: {reason}"
    warned = [gate["metric"] for gate in results if not gate["passed"]]
    reason = "no metric that decides fell by more than its margin"
    return PASSED, f"{reason}; warnings: {', '.join(warned)}" if warned else reason


def outcome(gate: Mapping[str, Any]) -> str:
    """What became of a gate, for a table; also of those of an earlier braid, without a role."""
    if gate.get("passed"):
        return "ok"
    if gate.get("role") == WARNING:
        return "warning"
    return "FAILED" if gate.get("failed", True) else "too little evidence"


def power_of(results: Sequence[Mapping[str, Any]]) -> str:
    """What the records of the primary metric with the least power can show."""
    primary = [gate for gate in results if gate["role"] == PRIMARY]
    if not primary:
        return ""
    weakest = max(primary, key=lambda gate: gate["detectable"] / max(abs(gate["limit"]), 1e-9))
    least = _amount(weakest, weakest["detectable"])
    line = f"with {weakest['records']} records a drop under {least} cannot be seen"
    needed = weakest["records_needed"]
    return line if needed is None else f"{line}, and an equal version needs about {needed} to pass"


def _fall(gate: Mapping[str, Any]) -> float:
    """How far the metric may have become worse, by its interval."""
    low, high = gate["interval"]
    return float(high if gate["limit"] > 0 else -low)


def _amount(gate: Mapping[str, Any], value: float) -> str:
    if gate["metric"].startswith("error "):
        return f"{value:.3f} standard deviations"
    return f"{100 * value:.1f} points"
