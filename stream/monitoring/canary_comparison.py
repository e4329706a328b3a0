"""Compares a canary's challenger with the champion, from `predictions`.

Each marked prediction carries the champion's (`braid.stream.kafka.schemas.encode_prediction`), so
that every record is a pair and the comparison can be repeated from the topic alone.

The 95 % interval of a paired difference of accuracies is Agresti and Min's (2005, "Simple improved
confidence intervals for comparing matched proportions", Statistics in Medicine 24): Wald's with
half a record more in each of the four cells, two in all, so that it is not of width zero where the
two never differ. F1 of several labels, between 0 and 1 as well, is treated likewise; that of
absolute errors is the normal interval of their mean difference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadRecord
from ..kafka.admin import Admin
from ..kafka.client import replay
from ..kafka.schemas import decode_map
from ..registry.canaries import Canary
from ..settings import Settings, configured

CLOCKS_MS = 60_000  # a worker's clock, which stamps its predictions, may be behind so much
Z = 1.959964  # of the normal distribution's middle 95 %
REASONS = 5
METRICS = {"classification": "accuracy", "multilabel": "F1", "regression": "error"}
DECISIONS = {"classification": "label", "multilabel": "labels", "generation": "text"}
"""The field of a prediction that is compared, by the task's kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryLimits:
    """What a challenger must reach; the setting `canary` changes them."""

    min_records: int = 100  # records to compare before there is a verdict
    failures: float = 0.001  # largest share of them that the challenger may fail at
    accuracy: float = 0.02  # of labels: largest fall of accuracy or F1, by the interval's lower end
    error: float = (
        0.02  # of numbers: largest rise, in the labels' standard deviations, by the upper
    )
    agreement: float = 0.0  # without labels: least share of records for which both decide alike

    def __post_init__(self) -> None:
        if self.min_records < 2:
            raise ValueError(f"min_records must be at least 2, is {self.min_records}")
        for name, most in (("failures", 1), ("accuracy", 1), ("error", math.inf), ("agreement", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be 0 to {most:g}, is {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCompared:
    """One task; pairs are (champion's, challenger's)."""

    kind: str
    records: int  # that both predicted
    missing: int  # that only the champion predicted
    agreement: float | None  # share of records for which both decide alike; None: of numbers
    confidence: tuple[float, float] | None  # mean probability of what was decided
    labelled: int  # records whose label is known; the rest is of these
    metric: str | None  # accuracy, F1 or error
    scores: tuple[float, float] | None
    difference: float | None  # challenger minus champion
    interval: tuple[float, float] | None  # 95 %
    limit: float | None  # of the interval's worse end


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The champion and the challenger on the same records."""

    records: int
    failures: int  # records that the challenger failed at, with the commonest reasons
    reasons: Mapping[str, int]
    seconds: tuple[float, float] | None  # to encode a record: the challenger's batches are smaller
    tasks: Mapping[str, TaskCompared]
    passed: bool | None  # None: too few records
    reason: str


def limits_of(settings: Settings) -> CanaryLimits:
    """The limits with those that the settings change. Raises ConfigError: unknown or invalid."""
    return configured(CanaryLimits, settings.refresh.canary, "canary")


def compared(settings: Settings, canary: Canary) -> Comparison:
    """The comparison of a canary now. Raises ConfigError, BrokerError."""
    limits, comparing = limits_of(settings), Comparing(canary)
    comparing.read(settings)
    return comparing.result(limits)


class Comparing:
    """Sums over the pairs of a canary; its memory does not grow with their number."""

    def __init__(self, canary: Canary) -> None:
        self._canary = canary
        self._admin: Admin | None = None
        self._next: dict[int, int] | None = None
        self._last: dict[int, int] = {}
        self._records = 0
        self._reasons: Counter[str] = Counter()
        self._seconds = _Pairs()
        self._tasks: dict[str, _Task] = {}

    @property
    def seen(self) -> int:
        """Records that the canary took, failures among them."""
        return self._records + self._reasons.total()

    def read(self, settings: Settings) -> None:
        """Read `predictions` up to its current end. Raises BrokerError."""
        self._admin = admin = self._admin or Admin(settings)
        topic = settings.topic("predictions")
        ends = {number: end for number, (_, end) in admin.ends(topic).items()}
        if self._next is None:
            since_ms = max(0, self._canary.since_ms - CLOCKS_MS)
            starts = admin.offsets_at(topic, len(ends), since_ms)
            self._next = {number: starts.get(number, ends[number]) for number in ends}
        for message in replay(settings, topic, stop_at=ends, start_at=self._next):
            # Not the end: a transaction may be open before it.
            self._next[message.partition] = message.offset + 1
            with suppress(BadRecord):  # another program's
                self.add(decode_map(message.value or b""))

    def add(self, prediction: Mapping[str, Any]) -> None:
        """Take a prediction, if the canary marked it; a repeated one is taken once."""
        mark = prediction.get("canary")
        if not isinstance(mark, Mapping) or mark.get("number") != self._canary.number:
            return
        if mark.get("model") != self._canary.champion:
            return  # of another registry
        source = prediction.get("source") or {}
        partition, offset = int(source.get("partition", 0)), int(source.get("offset", 0))
        if offset <= self._last.get(partition, -1):
            return  # repeated
        self._last[partition] = offset
        if "failed" in mark:
            self._reasons[str(mark["failed"])] += 1
            return
        if prediction.get("model") != self._canary.model:
            return
        self._records += 1
        if mark.get("seconds"):
            self._seconds.add(*map(float, mark["seconds"]))
        challengers, labels = prediction.get("tasks") or {}, mark.get("labels") or {}
        for name, champions in (mark.get("tasks") or {}).items():
            task = self._tasks.setdefault(name, _Task(kind=str(champions.get("kind"))))
            task.add(champions, challengers.get(name), labels.get(name))

    def result(self, limits: CanaryLimits) -> Comparison:
        """The comparison of the pairs added so far."""
        tasks = {name: task.result(limits) for name, task in sorted(self._tasks.items())}
        passed, reason = self._verdict(limits, tasks)
        return Comparison(
            records=self._records,
            failures=self._reasons.total(),
            reasons=dict(self._reasons.most_common(REASONS)),
            seconds=self._seconds.means,
            tasks=tasks,
            passed=passed,
            reason=reason,
        )

    def _verdict(
        self, limits: CanaryLimits, tasks: Mapping[str, TaskCompared]
    ) -> tuple[bool | None, str]:
        failed, seen = self._reasons.total(), self.seen
        if seen < limits.min_records:
            return None, f"not enough evidence: {seen} records, {limits.min_records} are wanted"
        within: list[str] = []
        beyond: list[str] = []
        if failed > limits.failures * seen:
            ((why, _),) = self._reasons.most_common(1)
            beyond.append(
                f"it failed at {failed} of {seen} records, {limits.failures:.2%} may be: {why}"
            )
        for name, task in tasks.items():
            if task.missing:
                beyond.append(f"it did not predict {name} of {task.missing} records")
            elif task.interval is not None and task.limit is not None:
                low, high = task.interval
                holds = high <= task.limit if task.metric == "error" else low >= task.limit
                (within if holds else beyond).append(
                    f"{task.metric} of {name} by {low:+.4f} to {high:+.4f}, limit {task.limit:+.4f}"
                )
            elif task.agreement is not None and task.agreement < limits.agreement:
                beyond.append(
                    f"both decide {name} alike for {task.agreement:.1%}, "
                    f"{limits.agreement:.1%} are wanted"
                )
        if beyond:
            return False, "; ".join(beyond)
        return True, "; ".join(within) or "no labels: it is only known that it did not fail"


@dataclass(slots=True)
class _Pairs:
    """Sums over pairs of numbers, and of their squared differences."""

    count: int = 0
    left: float = 0.0
    right: float = 0.0
    squares: float = 0.0

    def add(self, left: float, right: float) -> None:
        self.count += 1
        self.left += left
        self.right += right
        self.squares += (right - left) ** 2

    @property
    def means(self) -> tuple[float, float] | None:
        return (self.left / self.count, self.right / self.count) if self.count else None

    def interval(self, *, shares: bool) -> tuple[float, float]:
        """Of the mean of right minus left; `shares`: both are within 0 and 1."""
        # Half a record more in each of the four cells, of which two are differences of one.
        count, squares = (
            (self.count + 2, self.squares + 1) if shares else (self.count, self.squares)
        )
        mean = (self.right - self.left) / count
        half = Z * math.sqrt(max(0.0, squares / count - mean**2) / count)
        return mean - half, mean + half


@dataclass(slots=True)
class _Task:
    """Sums over the records of one task."""

    kind: str
    records: int = 0
    missing: int = 0
    alike: int = 0
    confidence: _Pairs = field(default_factory=_Pairs)
    scores: _Pairs = field(default_factory=_Pairs)
    labels: _Pairs = field(default_factory=_Pairs)  # of numbers, with their squares

    def add(
        self, champion: Mapping[str, Any], challenger: Mapping[str, Any] | None, label: Any
    ) -> None:
        if challenger is None or challenger.get("kind") != self.kind:
            self.missing += 1
            return
        self.records += 1
        self.alike += _decision(self.kind, champion) == _decision(self.kind, challenger)
        if champion.get("prob") is not None and challenger.get("prob") is not None:
            self.confidence.add(float(champion["prob"]), float(challenger["prob"]))
        scores = _score(self.kind, champion, label), _score(self.kind, challenger, label)
        if scores[0] is not None and scores[1] is not None:
            self.scores.add(scores[0], scores[1])
            if self.kind == "regression":
                self.labels.add(label, label**2)

    def result(self, limits: CanaryLimits) -> TaskCompared:
        regression, scores, known = self.kind == "regression", self.scores, self.scores.count
        interval = scores.interval(shares=not regression) if known > 1 else None
        limit = -limits.accuracy
        if regression and self.labels.means is not None:
            mean, square = self.labels.means
            limit = limits.error * math.sqrt(max(0.0, square - mean**2))
        decides = self.records > 0 and self.kind in DECISIONS
        return TaskCompared(
            kind=self.kind,
            records=self.records,
            missing=self.missing,
            agreement=self.alike / self.records if decides else None,
            confidence=self.confidence.means,
            labelled=known,
            metric=METRICS[self.kind] if known else None,
            scores=scores.means,
            difference=(scores.right - scores.left) / known if known else None,
            interval=interval,
            limit=limit if interval is not None else None,
        )


def _decision(kind: str, prediction: Mapping[str, Any]) -> object:
    decided = prediction.get(DECISIONS.get(kind, ""))
    return set(decided or ()) if kind == "multilabel" else decided


def _score(kind: str, prediction: Mapping[str, Any], label: Any) -> float | None:
    """The metric of one prediction; None: the label is missing or of another kind."""
    if kind == "classification" and isinstance(label, str):
        return float(prediction.get("label") == label)
    if kind == "regression" and isinstance(label, (int, float)) and not isinstance(label, bool):
        return abs(float(prediction.get("value") or 0.0) - label)
    if kind == "multilabel" and isinstance(label, (list, tuple)):
        chosen, expected = set(prediction.get("labels") or ()), set(label)
        total = len(chosen) + len(expected)
        return 2.0 * len(chosen & expected) / total if total else 1.0  # as the judge has it
    return None
