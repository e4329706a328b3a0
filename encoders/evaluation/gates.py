"""Limits of the judge (`Gates`) and of the choice of a space (`Compatibility`). No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import check_minima

ADAPTERS = ("procrustes", "affine", "mlp")
"""The kinds of adapter, simplest first; see `braid.encoders.model.adapter`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """The limits of `braid.encoders.evaluation.judge`.

    The first three are margins of non-inferiority: a version passes only if the interval of each
    metric that decides shows that it did not fall by more (`braid.encoders.evaluation.verdict`).

    Attributes:
        accuracy: how far accuracy (F1 of several labels) may fall, 0.01 being one point.
        error: how far the mean absolute error of a number may rise, in spreads of its task.
        recall: how far recall@k may fall.
        calibration: how far the expected calibration error may rise.
        rank: least effective rank of the vectors, as a share of the champion's; a lower one means
            that the space collapses.
        latency: most time to embed a record, as a multiple of the champion's.
        min_records: judge records that a metric needs; with fewer there is not enough evidence,
            and the verdict is not passed.
        budget: how likely one of the judgements of 30 days may pass a version that is worse by more
            than a margin, all together.
        planned: judgements in 30 days that the budget is spread over; the others do not pass. One
            every six hours by default.
        most: judge records that are used at most; those with the lowest hashes of their ids.
        resamples: of the bootstrap.
        rounds: of the latency, alternating; `batch` records each.
    """

    accuracy: float = 0.02
    error: float = 0.02
    recall: float = 0.02
    calibration: float = 0.02
    rank: float = 0.8
    latency: float = 1.5
    min_records: int = 30
    budget: float = 0.05
    planned: int = 120
    most: int = 5000
    resamples: int = 2000
    rounds: int = 9
    batch: int = 16

    def __post_init__(self) -> None:
        shares = ("accuracy", "error", "recall", "calibration", "rank", "latency")
        counts = {"min_records": 2, "most": 2, "resamples": 100, "rounds": 1, "batch": 1}
        counts |= {"planned": 1, "budget": 0}
        check_minima(self, dict.fromkeys(shares, 0) | counts, "gates.")
        if self.budget > 0.5:
            raise ValueError(f"gates.budget must be at most 0.5, is {self.budget}")

    @property
    def level(self) -> float:
        """The error that one judgement may make."""
        return self.budget / self.planned


@dataclass(frozen=True, kw_only=True, slots=True)
class Compatibility:
    """When a challenger may stay in the champion's space; see
    `braid.encoders.evaluation.compatibility`.

    Attributes:
        ratio: least cross-version recall R, by the lower end of its 95 % interval.
        even: how far the share of old vectors in the top k of a gallery that is half old may be
            from a half.
        cost: most recall that may be lost against a space of its own, or without an adapter if that
            is better. R only ensures that recall does not fall; a much better model would lose more
            by old vectors or an adapter.
        k: of the recall.
        adapters: the kinds that are tried, in this order; if empty, the space is new.
        stored: whether an adapter that maps stored vectors into the new space may be chosen, where
            none that maps the new model's vectors into the old space passes. It is measured anyway.
        pairs: most training records that an adapter is fitted on.
        rank: of the low-rank adapter's correction.
        hidden, steps: width and steps of the MLP.
    """

    ratio: float = 0.97
    even: float = 0.05
    cost: float = 0.01
    k: int = 10
    adapters: tuple[str, ...] = ADAPTERS
    stored: bool = False
    pairs: int = 4096
    rank: int = 32
    hidden: int = 256
    steps: int = 300

    def __post_init__(self) -> None:
        for kind in self.adapters:
            if kind not in ADAPTERS:
                raise ValueError(f"adapters must be of {', '.join(ADAPTERS)}, one is {kind!r}")
        counts = ("k", "pairs", "rank", "hidden", "steps")
        check_minima(self, dict.fromkeys(counts, 1), "compatibility.")
