"""Fits a decision's temperatures, weights and exponents on validation data.

Shapes: B samples, S sources, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

PROB_FLOOR = 1e-9  # no single source makes a class impossible
EXPONENT_RANGE = (1e-3, 5.0)
REGULARIZATION = 1e-3
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


def fit_weights(right_BS: Tensor, present_BS: Tensor, rounds: int = 200) -> Tensor:
    """Mixture weights, float[S], summing to 1, for the probability each source gave the truth.

    Maximises sum_b log(sum_s w_s right_bs / sum_s w_s), both sums over the sources present in row
    b, by minorisation: each round raises it (Hunter and Lange 2004, "A tutorial on MM algorithms").
    Sources present in no row keep an equal share.
    """
    present = present_BS.double()
    right = right_BS.double() * present
    seen_S = present.sum(0)
    weights_S = torch.full((present.shape[1],), 1.0 / present.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        joint = right * weights_S + 1e-12 * present
        share_S = (joint / joint.sum(1, keepdim=True)).sum(0)
        at_stake_S = (present / (present @ weights_S)[:, None].clamp(min=1e-12)).sum(0)
        updated_S = torch.where(seen_S > 0, share_S / at_stake_S.clamp(min=1e-12), weights_S)
        weights_S = updated_S / updated_S.sum()
    return weights_S.float()


def fit_exponents(
    probs_BSC: Tensor, present_BS: Tensor, label_B: Tensor, steps: int = 50
) -> Tensor:
    """The exponents of `logproduct`, float[S], each in `EXPONENT_RANGE`, of the highest likelihood.

    Minimises, by L-BFGS over the exponents' logarithms, the negative log-likelihood of the pool
    plus `REGULARIZATION` times the mean square of the logarithms, which keeps the exponents near 1
    where there are few data. Sources present in no row keep 1.
    """
    low, high = EXPONENT_RANGE
    logs_BSC = probs_BSC.double().clamp(min=PROB_FLOOR).log() * present_BS[:, :, None]
    log_power_S = torch.zeros(probs_BSC.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_power_S], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        power_S = log_power_S.exp().clamp(low, high)
        pooled_BC = torch.einsum("s,bsc->bc", power_S, logs_BSC)
        value = F.cross_entropy(pooled_BC, label_B) + REGULARIZATION * log_power_S.square().mean()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return log_power_S.detach().exp().clamp(low, high).float()


def fit_average(values_BS: Tensor, present_BS: Tensor, target_B: Tensor, steps: int = 50) -> Tensor:
    """Weights of an average of numbers, float[S], summing to 1, with the least squared error.

    Over the sources present in each row; by L-BFGS over the weights' logits. `REGULARIZATION` times
    the mean square of the logits is added to the error.
    """
    here_BS = present_BS.double()
    values, target = values_BS.double() * here_BS, target_B.double()
    logits_S = torch.zeros(values.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits_S], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights_BS = logits_S.exp() * here_BS
        mean_B = (weights_BS * values).sum(1) / weights_BS.sum(1).clamp(min=1e-12)
        value = F.mse_loss(mean_B, target) + REGULARIZATION * logits_S.square().mean()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return torch.softmax(logits_S.detach(), dim=0).float()
