"""Metrics as pure functions.

Shapes: B samples, D the shared space, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


def recall(query_BD: Tensor, target_BD: Tensor, group_B: Tensor) -> dict[str, float]:
    """recall@k of row i of `query_BD` finding row i of `target_BD`, k as a string (for JSON)."""
    rank_B = ranks(query_BD, target_BD, group_B)
    return {str(k): float((rank_B < k).float().mean()) for k in RECALL_AT}


def ranks(query_BD: Tensor, target_BD: Tensor, group_B: Tensor) -> Tensor:
    """The number of wrong targets before the right one of each query, int[B]; a hit at k: rank < k.

    Targets of the same group (identical captions) are right too. A wrong target with the same score
    as the right one counts as before it.
    """
    if len(query_BD) == 0:  # no record has this modality of the model
        return torch.zeros(0, dtype=torch.long)
    scores_BB = query_BD @ target_BD.T
    right_BB = group_B[:, None] == group_B[None]
    best_B1 = scores_BB.masked_fill(~right_BB, -2.0).amax(1, keepdim=True)
    return ((scores_BB >= best_B1) & ~right_BB).sum(1)


def effective_rank(vectors_BD: Tensor) -> float:
    """The effective rank of the vectors: exp of the entropy of their singular values, scaled to
    sum 1 (Roy and Vetterli 2007, "The effective rank"; as a measure of embeddings: RankMe, Garrido
    et al. 2023, arXiv 2210.02885). 1 if they are all alike, at most min(B, D)."""
    values_R = torch.linalg.svdvals(vectors_BD.double())
    share_R = values_R / values_R.sum().clamp(min=1e-12)
    return float(torch.special.entr(share_R).sum().exp())


def calibration_error(probs_BC: Tensor, label_B: Tensor, bins: int = 15) -> float:
    """Expected calibration error: |accuracy - confidence| by bins of confidence, weighted by their
    size (Guo et al. 2017, arXiv 1706.04599, equation 3). 0 to 1; 0 for no sample."""
    if len(label_B) == 0:
        return 0.0
    confidence_B, predicted_B = probs_BC.max(1)
    right_B = (predicted_B == label_B).float()
    bin_B = bins_of(confidence_B, bins)
    error = 0.0
    for number in range(1, bins + 1):
        here_B = bin_B == number
        if bool(here_B.any()):
            gap = (right_B[here_B].mean() - confidence_B[here_B].mean()).abs()
            error += float(here_B.float().mean() * gap)
    return error


def bins_of(confidence_B: Tensor, bins: int = 15) -> Tensor:
    """The bin of each confidence, int[B], from 1."""
    return (confidence_B * bins).ceil().long().clamp(1, bins)


def interval(right_B: Tensor, other_B: Tensor) -> tuple[float, float]:
    """The mean of right - other over the same samples, and half its 95 % interval.

    Paired, by the normal approximation: 1.96 standard errors of the mean difference.
    """
    difference_B = right_B.double() - other_B.double()
    spread = float(difference_B.std(unbiased=True)) if len(difference_B) > 1 else 0.0
    return float(difference_B.mean()), 1.96 * spread / max(len(difference_B), 1) ** 0.5


def label_f1(predicted_BC: Tensor, target_BC: Tensor) -> float:
    """F1 over all labels of all samples together (micro-averaged); 1 if there are none at all."""
    both = float((predicted_BC.bool() & target_BC.bool()).sum())
    total = float(predicted_BC.sum() + target_BC.sum())
    return 1.0 if total == 0 else 2.0 * both / total


def mean_error(value_B: Tensor, target_B: Tensor) -> float:
    """Mean absolute error."""
    return float((value_B - target_B).abs().mean())
