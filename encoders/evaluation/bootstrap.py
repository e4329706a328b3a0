"""The paired bootstrap: confidence intervals of the difference of two versions.

Shapes: N records, R resamples, K bins.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Bootstrap:
    """Resamples of N records with replacement, the same ones for every metric and both versions
    (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13: percentiles).

    Attributes:
        weight_RN: the count of each record in each resample; rows sum to N.
    """

    def __init__(self, records: int, *, resamples: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 95])
        share_N = np.full(records, 1.0 / max(records, 1))
        self.weight_RN = torch.from_numpy(
            rng.multinomial(records, share_N, size=resamples).astype(np.float32)
        )

    def mean(self, value_N: Tensor, known_N: Tensor) -> Tensor:
        """The mean of the known values in each resample, float[R]; NaN where none is known."""
        here_N = known_N.float()
        value_N = torch.where(known_N, value_N.float(), 0.0)
        return (self.weight_RN @ value_N) / (self.weight_RN @ here_N)

    def calibration_error(self, gap_N: Tensor, bin_N: Tensor, known_N: Tensor) -> Tensor:
        """The expected calibration error of each resample, float[R].

        Args:
            gap_N: right (0 or 1) minus confidence.
            bin_N: the bin of the confidence, int. Over bins b the error is
                sum_b |sum of the gaps in b| / n, which is `measures.calibration_error`.
        """
        bins = int(bin_N.max()) + 1 if len(bin_N) else 1
        kept_N = torch.where(known_N, gap_N.float(), 0.0)
        gap_NK = torch.zeros(len(kept_N), bins)
        gap_NK[torch.arange(len(kept_N)), bin_N] = kept_N
        return (self.weight_RN @ gap_NK).abs().sum(1) / (self.weight_RN @ known_N.float())


def interval_of(values_R: Tensor) -> tuple[float, float]:
    """The middle 95 % of the resamples, those without a value left out."""
    kept_R = values_R[~values_R.isnan()].double()
    if len(kept_R) == 0:
        return float("nan"), float("nan")
    low, high = torch.quantile(kept_R, torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high
