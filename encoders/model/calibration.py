"""Fits a decision's temperatures, weights and exponents on rows that its model has not learnt.

Weights have a prior: the fused vector alone, which has seen every modality that is there. A source
gets weight as far as the rows show that it adds something, else exactly 0. The prior is worth
`PRIOR` records, so that it fades as records come.

Shapes: B rows, S sources (the last is the fused vector), C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.functional import hessian

PROB_FLOOR = 1e-9  # no single source makes a class impossible
EXPONENT_MAX = 5.0
PRIOR = 1.0
ROUNDS = 60
TEMPERATURE_RANGE = (0.25, 10.0)  # a small validation split without an error would give 0


def fit_temperature(logits_BC: Tensor, label_B: Tensor) -> float:
    """The temperature in `TEMPERATURE_RANGE` with the lowest negative log-likelihood.

    Golden-section search over its logarithm: the likelihood is unimodal in 1 / temperature.
    """
    low, high = (float(torch.tensor(t).log()) for t in TEMPERATURE_RANGE)
    ratio = (5**0.5 - 1) / 2

    def loss(log_t: float) -> float:
        return float(
            F.cross_entropy(logits_BC.double() / float(torch.tensor(log_t).exp()), label_B)
        )

    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if loss(a) < loss(b):
            high = b
        else:
            low = a
    return float(torch.tensor((low + high) / 2).exp())


def fit_weights(
    right_BS: Tensor, present_BS: Tensor, *, copies: int = 1, prior: float = PRIOR
) -> Tensor:
    """Mixture weights, float[S], summing to 1, for the probability each source gave the truth.

    Maximises sum_b log(sum_s w_s right_bs / sum_s w_s) + copies prior log w_fused, both sums over
    the sources present in row b: the posterior's mode under a Dirichlet prior, `prior` records that
    only the fused vector gets right.

    Args:
        copies: how many rows there are of each record.
    """
    right_BS = right_BS.double().clamp(min=1e-12) * present_BS
    here_BS = present_BS.double()
    strength = prior * copies / len(right_BS)

    def loss(weights_S: Tensor) -> Tensor:
        total = weights_S.sum()
        mixed_B = (right_BS @ weights_S) / (here_BS @ weights_S)
        held = strength * (weights_S[-1] / total).log()
        return -mixed_B.log().mean() - held + (total - 1.0).square()  # else any scale would do

    weights_S = _minimised(loss, right_BS.shape[1])
    return (weights_S / weights_S.sum()).float()


def fit_exponents(
    probs_BSC: Tensor,
    present_BS: Tensor,
    label_B: Tensor,
    *,
    copies: int = 1,
    prior: float = PRIOR,
) -> Tensor:
    """The exponents of `logproduct`, float[S], each from 0 to `EXPONENT_MAX`.

    Minimises the negative log-likelihood of the pool, sum_b -log p_b, which is convex in them, plus
    copies prior (sum_s w_s over the modalities + (w_fused - 1)^2 / 2): the posterior's mode under
    an exponential prior for each modality, whose mode is 0, and a normal one around 1 for the fused
    vector.
    """
    logs_BSC = probs_BSC.double().clamp(min=PROB_FLOOR).log() * present_BS[:, :, None]
    strength = prior * copies / len(label_B)

    def loss(power_S: Tensor) -> Tensor:
        fit = F.cross_entropy(torch.einsum("s,bsc->bc", power_S, logs_BSC), label_B)
        return fit + strength * (power_S[:-1].sum() + (power_S[-1] - 1.0).square() / 2)

    return _minimised(loss, probs_BSC.shape[1], EXPONENT_MAX).float()


def fit_average(
    values_BS: Tensor,
    present_BS: Tensor,
    target_B: Tensor,
    *,
    copies: int = 1,
    prior: float = PRIOR,
) -> Tensor:
    """Weights of an average of numbers, float[S], summing to 1, with the least squared error.

    Over the sources present in each row. `prior` records in which a modality's error is that of the
    fused vector, and the fused vector's is 0, are added.
    """
    here_BS = present_BS.double()
    values_BS, target_B = values_BS.double() * here_BS, target_B.double()
    scale = float((values_BS[:, -1] - target_B).square().mean()) or 1.0
    strength = prior * copies / len(target_B)

    def loss(weights_S: Tensor) -> Tensor:
        total = weights_S.sum()
        mean_B = (values_BS @ weights_S) / (here_BS @ weights_S)
        held = strength * (1.0 - weights_S[-1] / total)
        return (mean_B - target_B).square().mean() / scale + held + (total - 1.0).square()

    weights_S = _minimised(loss, values_BS.shape[1])
    return (weights_S / weights_S.sum()).float()


def _minimised(
    loss: Callable[[Tensor], Tensor], sources: int, high: float = float("inf")
) -> Tensor:
    """The argument, float64[S], each from 0 to `high`, of the least loss; reaches bounds exactly.

    Projected Newton steps (Bertsekas 1982): what stands at a bound and is pushed against it is
    left out of the step; the step is damped until the loss falls.
    """
    value_S, damping = torch.full((sources,), 1.0 / sources, dtype=torch.float64), 1e-6
    for _ in range(ROUNDS):
        with torch.enable_grad():
            point_S = value_S.clone().requires_grad_()
            (slope_S,) = torch.autograd.grad(loss(point_S), point_S)
            curve_SS = hessian(loss, value_S)
        stuck_S = ((value_S <= 0) & (slope_S > 0)) | ((value_S >= high) & (slope_S < 0))
        free = torch.nonzero(~stuck_S).flatten()
        if len(free) == 0 or float(slope_S[free].abs().max()) < 1e-8:
            break
        now, moved_S = float(loss(value_S)), value_S
        while damping < 1e6:
            damped_SS = curve_SS[free][:, free] + damping * torch.eye(len(free)).double()
            moved_S = value_S.clone()
            moved_S[free] -= torch.linalg.solve(damped_SS, slope_S[free])
            moved_S = moved_S.clamp(0.0, high)
            if float(loss(moved_S)) < now:
                break
            damping *= 10
        else:
            break
        value_S, damping = moved_S, max(damping / 10, 1e-9)
    return value_S
