"""Learnt weights of the loss terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

BOUND = 4.0
"""Bound of |s| of a learnt weight: e^-4 to e^4. Without it, the s of a term that fits well goes to
minus infinity, and the term dominates the loss."""


class LearnedWeights(nn.Module):
    """sum_k exp(-s_k) L_k + s_k / 2, s_k = log sigma_k^2 learnt, kept in [-BOUND, BOUND].

    Kendall, Gal and Cipolla 2018 (arXiv 1705.07115), the form for classification, equation 10;
    terms of weight 0 are left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.log_variance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in names}
        )

    def clamp(self) -> None:
        """Keep every s in its range; after each step."""
        for s in self.log_variance.values():
            s.data.clamp_(-BOUND, BOUND)

    def forward(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, a scalar. `terms` are the losses, the configured weights in them."""
        parts = [
            (-self.log_variance[name]).exp() * term + 0.5 * self.log_variance[name]
            for name, term in terms.items()
            if name in self.log_variance
        ]
        return torch.stack(parts).sum()
