"""Paired differences of two versions: bounds of their mean, and the power of so many records.

A difference is challenger minus champion, record by record, within -1 and 1 for shares (hits, right
or wrong, F1). With few records the plain interval mean +- z s / sqrt(n) is too narrow: it has no
width where no record changed. So z^2 / 2 records are added, half of them -1 and half +1, as Agresti
and Min add half a record to each cell (2005, "Simple improved confidence intervals for comparing
matched proportions", Statistics in Medicine 24). And no bound is closer to the mean than the exact
one where no record is lost, 1 - level^(1 / n).

Shapes: n records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

POWER = 0.8
"""The power that "can be seen" means, by convention (Cohen 1988, "Statistical Power Analysis")."""
REFUSAL = 0.025
"""One-sided level of refusals, all primary metrics of a verdict together; of warnings, each."""

_normal = NormalDist()


def z_of(level: float) -> float:
    """The normal quantile with `level` above it."""
    return -_normal.inv_cdf(level)


@dataclass(frozen=True, slots=True)
class Sums:
    """Number, sum and sum of squares of paired differences."""

    count: int
    total: float
    squares: float

    @classmethod
    def of(cls, difference_n: Tensor) -> Sums:
        kept_n = difference_n.double()
        return cls(len(kept_n), float(kept_n.sum()), float(kept_n.square().sum()))

    def negated(self) -> Sums:
        """Of the differences with the other sign."""
        return replace(self, total=-self.total)

    def moments(self, z: float) -> tuple[float, float]:
        """The mean and its standard error, with the records that are added for the quantile `z`."""
        added = z * z / 2
        mean = self.total / (self.count + added)
        variance = (self.squares + added) / (self.count + added) - mean**2
        return mean, math.sqrt(max(variance, 0.0) / (self.count + added))

    def lower_bound(self, level: float = REFUSAL) -> float:
        """The lower end of the interval of the mean, at a one-sided `level`."""
        z = z_of(level)
        mean, error = self.moments(z)
        return min(mean - z * error, self.total / self.count - 1 + math.pow(level, 1 / self.count))

    def p_below(self, limit: float) -> float:
        """The p-value of "the mean is at least `limit`": small where it is below for sure."""
        mean, error = self.moments(z_of(REFUSAL))
        return _normal.cdf((mean - limit) / error)

    def detectable(self) -> float:
        """The smallest drop whose interval is wholly below 0 in `POWER` of the cases."""
        z = z_of(REFUSAL)
        return (z + z_of(1 - POWER)) * self.moments(z)[1]

    def records_needed(self, margin: float, level: float) -> int | None:
        """How many records let a version that is as good, and changes as many of them, pass in
        `POWER` of the cases at a one-sided `level`; None: no number does, the margin is 0."""
        if margin <= 0:
            return None
        z = z_of(level)
        variance = self.squares / self.count - (self.total / self.count) ** 2
        with_changes = ((z + z_of(1 - POWER)) / margin) ** 2 * variance
        added = z * z * (math.sqrt(0.5) / margin - 0.5)  # where no record changes
        exact = math.log(level) / math.log(1 - margin) if margin < 1 else 1.0
        return math.ceil(max(with_changes, added, exact))


def holm(p_values: Sequence[float], level: float = REFUSAL) -> list[bool]:
    """Which hypotheses are rejected, with an error of the family within `level` (Holm 1979, "A
    simple sequentially rejective multiple test procedure")."""
    rejected = [False] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[place] > level / (len(p_values) - rank):
            break
        rejected[place] = True
    return rejected
