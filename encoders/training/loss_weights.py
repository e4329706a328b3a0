"""Learnt weights of the loss terms, and modulation of the modalities' updates.

Shapes: M modalities, K terms of the loss.
"""

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


def update_scales(confidence_M: Tensor, alpha: float) -> Tensor:
    """Scale of the updates of each modality's encoder and projector, float[M] in (0, 1].

    On-the-fly gradient modulation (OGM-GE, Peng et al. 2022, arXiv 2203.15332, equation 10): with
    rho_m = confidence_m / mean of the others' confidence, 1 - tanh(alpha rho_m) where rho_m > 1,
    else 1; for two modalities this is their equation. (Without their added noise, "GE".) They scale
    gradients, for SGD; Adam divides a constant scale of the gradient out, so learning rates are
    scaled here, which is the same under SGD.

    Args:
        confidence_M: the mean probability that each modality's own head gives the true class; NaN
            where a modality was not in the batch; its scale is 1, and it is left out of the means.
        alpha: strength of the modulation; 0.1 to 1 in the paper.
    """
    scales_M = torch.ones_like(confidence_M)
    known = [m for m in range(len(confidence_M)) if not bool(confidence_M[m].isnan())]
    for m in known:
        others = [confidence_M[other] for other in known if other != m]
        if not others:
            continue
        rho = confidence_M[m] / torch.stack(others).mean().clamp(min=1e-6)
        if rho > 1.0:
            scales_M[m] = 1.0 - torch.tanh(alpha * rho)
    return scales_M
