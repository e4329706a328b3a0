"""Compares a canary's challenger with the champion, from `predictions`.

Each marked prediction carries the champion's (`braid.stream.kafka.schemas.encode_prediction`), so
that every record is a pair, and nothing has to be kept anywhere else: what is compared can be read
again.

The 95 % interval of a paired difference of accuracies is Agresti and Min's (2005, "Simple improved
confidence intervals for comparing matched proportions", Statistics in Medicine 24): Wald's with
half a record more in each of the four cells, two in all, so that it is not of width zero where the
two never differ. F1 of several labels, between 0 and 1 as well, is treated likewise; that of
absolute errors is the normal interval of their mean difference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadRecord, ConfigError
from ..kafka.admin import Admin
from ..kafka.client import replay
from ..kafka.schemas import decode_map
from ..registry.canaries import Canary
from ..settings import Settings

CLOCKS_MS = 60_000  # a worker's clock, which stamps its predictions, may be behind so much
Z = 1.959964  # of the normal distribution's middle 95 %
REASONS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryLimits:
    """What a challenger must reach; the setting `canary` changes them.

    Attributes:
        least: records that must be compared before anything is said.
        failures: largest share of them that the challenger may fail at.
        accuracy: where there are labels, how far accuracy (F1 of several labels) may fall: the
            interval's lower end may not be below. 0.01 is one point.
        error: how far the absolute error of a number may rise, in standard deviations of the
            labels: the interval's upper end may not be above.
        agreement: where there are no labels, least share of records for which both decide alike;
            0: whatever it is.
    """

    least: int = 100
    failures: float = 0.001
    accuracy: float = 0.02
    error: float = 0.02
    agreement: float = 0.0

    def __post_init__(self) -> None:
        if self.least < 2:
            raise ValueError(f"least must be at least 2, is {self.least}")
        for name, most in (("failures", 1), ("accuracy", 1), ("error", math.inf), ("agreement", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be 0 to {most:g}, is {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCompared:
    """One task; pairs are (champion's, challenger's).

    Attributes:
        records: that both predicted.
        missing: that the champion predicted and the challenger did not.
        agreement: share of them for which both decide alike; None: of numbers.
        confidence: mean probability of what was decided.
        labelled: records whose label is known; the rest is of these.
        metric: accuracy, F1 or error.
        scores: its mean.
        difference: challenger minus champion; `interval` its middle 95 %.
        limit: what the interval's worse end may be; None: there is no interval.
    """

    kind: str
    records: int
    missing: int
    agreement: float | None
    confidence: tuple[float, float] | None
    labelled: int
    metric: str | None
    scores: tuple[float, float] | None
    difference: float | None
    interval: tuple[float, float] | None
    limit: float | None

    @property
    def holds(self) -> bool:
        """Whether the interval's worse end is within the limit."""
        if self.interval is None or self.limit is None:
            return True
        low, high = self.interval
        return high <= self.limit if self.metric == "error" else low >= self.limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Both on the same records.

    Attributes:
        records: that were compared.
        failures: that the challenger failed at, with the commonest `reasons`.
        seconds: to encode a record, mean of (champion, challenger), each in its own batch: the
            challenger's are smaller, which costs it something.
        passed: None: too few records to say.
    """

    records: int
    failures: int
    reasons: Mapping[str, int]
    seconds: tuple[float, float] | None
    tasks: Mapping[str, TaskCompared]
    passed: bool | None
    reason: str


def limits_of(settings: Settings) -> CanaryLimits:
    """Raises ConfigError: a limit that there is not, or a value that it cannot have."""
    try:
        return CanaryLimits(**settings.refresh.canary)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"canary: {error}") from None


class Reading:
    """Reads on in `predictions` and compares what the canary marked there."""

    def __init__(self, settings: Settings, canary: Canary) -> None:
        self._settings, self._topic = settings, settings.topic("predictions")
        self._admin = Admin(settings)
        self._next: dict[int, int] | None = None
        self.comparing = Comparing(canary)
        self._since_ms = max(0, canary.since_ms - CLOCKS_MS)

    def on(self) -> Comparing:
        """Read up to where the topic ends now. Raises BrokerError."""
        partitions = self._admin.partition_counts().get(self._topic, 0)
        ends = {n: end for n, (_, end) in self._admin.ends(self._topic, partitions).items()}
        if self._next is None:
            starts = self._admin.offsets_at(self._topic, partitions, self._since_ms)
            self._next = {number: starts.get(number, ends[number]) for number in ends}
        messages = replay(self._settings, self._topic, stop_at=ends, start_at=self._next)
        for message in messages:
            # Not the end: a transaction may be open before it.
            self._next[message.partition] = message.offset + 1
            try:
                self.comparing.add(decode_map(message.value or b""))
            except BadRecord:
                continue  # another program's: none of ours is unreadable
        return self.comparing


def compared(settings: Settings, canary: Canary) -> Comparison:
    """What can be said of a canary now. Raises ConfigError, BrokerError."""
    limits = limits_of(settings)
    return Reading(settings, canary).on().result(limits)


class Comparing:
    """Pairs, as they are added; the memory that it takes does not grow with them."""

    def __init__(self, canary: Canary) -> None:
        self._canary = canary
        self._last: dict[int, int] = {}
        self._records = 0
        self._reasons: Counter[str] = Counter()
        self._seconds = [0.0, 0.0]
        self._tasks: dict[str, _Task] = {}

    @property
    def seen(self) -> int:
        """Records that the canary took, failures among them."""
        return self._records + self._reasons.total()

    def add(self, prediction: Mapping[str, Any]) -> None:
        """Take a prediction, if the canary marked it; a repeated one is taken once."""
        mark = prediction.get("canary")
        if not isinstance(mark, Mapping) or mark.get("number") != self._canary.number:
            return
        if mark.get("model") != self._canary.champion:
            return  # of a registry that was there before this one
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
        for position, took_s in enumerate(mark.get("seconds") or ()):
            self._seconds[position] += float(took_s)
        mine, labels = prediction.get("tasks") or {}, mark.get("labels") or {}
        for name, champions in (mark.get("tasks") or {}).items():
            task = self._tasks.setdefault(name, _Task(kind=str(champions.get("kind"))))
            task.add(champions, mine.get(name), labels.get(name))

    def result(self, limits: CanaryLimits) -> Comparison:
        """What all that was added says."""
        tasks = {name: task.result(limits) for name, task in sorted(self._tasks.items())}
        passed, reason = self._verdict(limits, tasks)
        champion_s, challenger_s = (total / max(self._records, 1) for total in self._seconds)
        return Comparison(
            records=self._records,
            failures=self._reasons.total(),
            reasons=dict(self._reasons.most_common(REASONS)),
            seconds=(champion_s, challenger_s) if self._records else None,
            tasks=tasks,
            passed=passed,
            reason=reason,
        )

    def _verdict(
        self, limits: CanaryLimits, tasks: Mapping[str, TaskCompared]
    ) -> tuple[bool | None, str]:
        failed = self._reasons.total()
        if self.seen < limits.least:
            return None, f"not enough evidence: {self.seen} records, {limits.least} are wanted"
        against: list[str] = []
        known: list[str] = []
        if failed > limits.failures * self.seen:
            ((why, _),) = self._reasons.most_common(1)
            against.append(
                f"it failed at {failed} of {self.seen} records, {limits.failures:.2%} may be: {why}"
            )
        for name, task in tasks.items():
            if task.missing:
                against.append(f"it did not predict {name} of {task.missing} records")
            elif task.interval is not None:
                low, high = task.interval
                says = f"{task.metric} of {name} by {low:+.4f} to {high:+.4f}"
                (known if task.holds else against).append(f"{says}, limit {task.limit:+.4f}")
            elif task.agreement is not None and task.agreement < limits.agreement:
                against.append(
                    f"both decide {name} alike for {task.agreement:.1%}, "
                    f"{limits.agreement:.1%} are wanted"
                )
        if against:
            return False, "; ".join(against)
        return True, "; ".join(known) or "no labels: it is only known that it did not fail"


@dataclass(slots=True)
class _Task:
    """Sums over the records of one task; lists are (champion's, challenger's)."""

    kind: str
    records: int = 0
    missing: int = 0
    alike: int = 0
    confidence: list[float] = field(default_factory=lambda: [0.0, 0.0])
    confident: int = 0
    labelled: int = 0
    scores: list[float] = field(default_factory=lambda: [0.0, 0.0])
    squares: float = 0.0
    label_sums: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(
        self, champion: Mapping[str, Any], challenger: Mapping[str, Any] | None, label: object
    ) -> None:
        if challenger is None or challenger.get("kind") != self.kind:
            self.missing += 1
            return
        self.records += 1
        decided = _DECIDED.get(self.kind)
        if decided is not None:
            self.alike += decided(champion) == decided(challenger)
        probs = champion.get("prob"), challenger.get("prob")
        if None not in probs:
            self.confident += 1
            self.confidence = [
                total + float(p or 0.0) for total, p in zip(self.confidence, probs, strict=True)
            ]
        score = _SCORES.get(self.kind)
        if score is not None and score.fits(label):
            self.labelled += 1
            ours, theirs = score.of(champion, label), score.of(challenger, label)
            self.scores = [self.scores[0] + ours, self.scores[1] + theirs]
            self.squares += (theirs - ours) ** 2
            if isinstance(label, (int, float)):
                self.label_sums = [self.label_sums[0] + label, self.label_sums[1] + label**2]

    def result(self, limits: CanaryLimits) -> TaskCompared:
        score = _SCORES.get(self.kind)
        known = self.labelled if score is not None else 0
        interval = self._interval() if known > 1 else None
        return TaskCompared(
            kind=self.kind,
            records=self.records,
            missing=self.missing,
            agreement=self.alike / self.records if self.records and self.kind in _DECIDED else None,
            confidence=_means(self.confidence, self.confident),
            labelled=known,
            metric=score.name if score is not None and known else None,
            scores=_means(self.scores, known),
            difference=(self.scores[1] - self.scores[0]) / known if known else None,
            interval=interval,
            limit=self._limit(limits) if interval is not None else None,
        )

    def _interval(self) -> tuple[float, float]:
        more = 0 if self.kind == "regression" else 2  # half a record in each of the four cells,
        squares = self.squares + more / 2  # of which two are differences of one
        count = self.labelled + more
        mean = (self.scores[1] - self.scores[0]) / count
        half = Z * math.sqrt(max(0.0, squares / count - mean**2) / count)
        return mean - half, mean + half

    def _limit(self, limits: CanaryLimits) -> float:
        if self.kind != "regression":
            return -limits.accuracy
        mean, square = (total / self.labelled for total in self.label_sums)
        return limits.error * math.sqrt(max(0.0, square - mean**2))


def _means(sums: list[float], count: int) -> tuple[float, float] | None:
    return (sums[0] / count, sums[1] / count) if count else None


@dataclass(frozen=True, slots=True)
class _Score:
    name: str
    fits: Callable[[object], bool]
    of: Callable[[Mapping[str, Any], Any], float]


def _f1(prediction: Mapping[str, Any], label: Any) -> float:
    """Of one record's labels; 1 where there are none and none is said, as the judge has it."""
    chosen, expected = set(prediction.get("labels") or ()), set(label)
    total = len(chosen) + len(expected)
    return 2.0 * len(chosen & expected) / total if total else 1.0


def _is_number(label: object) -> bool:
    return isinstance(label, (int, float)) and not isinstance(label, bool)


_SCORES = {
    "classification": _Score(
        "accuracy",
        lambda label: isinstance(label, str),
        lambda prediction, label: float(prediction.get("label") == label),
    ),
    "multilabel": _Score("F1", lambda label: isinstance(label, (list, tuple)), _f1),
    "regression": _Score(
        "error",
        _is_number,
        lambda prediction, label: abs(float(prediction.get("value") or 0.0) - label),
    ),
}
_DECIDED: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "classification": lambda prediction: prediction.get("label"),
    "multilabel": lambda prediction: set(prediction.get("labels") or ()),
    "generation": lambda prediction: prediction.get("text"),
}
