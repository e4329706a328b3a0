"""Metrics as pure functions.

Shapes: B samples, D the shared space, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


TIE = 1e-5
"""Scores of unit vectors that are this close count as equal: equal inputs differ by 1e-7 where
they were encoded in other batches."""


def recall(
    query_BD: Tensor, target_BD: Tensor, group_B: Tensor, *, ties_right: bool = False
) -> dict[str, float]:
    """recall@k of row i of `query_BD` finding row i of `target_BD`, k as a string (for JSON).

    Args:
        ties_right: as `ranks` takes it.
    """
    rank_B = ranks(query_BD, target_BD, group_B, ties_right=ties_right)
    return {str(k): float((rank_B < k).float().mean()) for k in RECALL_AT}


def ranks(
    query_BD: Tensor, target_BD: Tensor, group_B: Tensor, *, ties_right: bool = False
) -> Tensor:
    """The number of wrong targets before the right one of each query, int[B]; a hit at k: rank < k.

    Targets of the same group (identical captions) are right too. A score that is not finite counts
    as the lowest one, and a right target without a finite score has the last rank.

    Args:
        ties_right: whether wrong targets within `TIE` of the right one count as behind it; else
            they are before it. The two bound what any order of them gives.
    """
    if len(query_BD) == 0:  # no record has this modality of the model
        return torch.zeros(0, dtype=torch.long)
    scores_BB = query_BD @ target_BD.T
    scores_BB = scores_BB.masked_fill(~scores_BB.isfinite(), -torch.inf)
    right_BB = group_B[:, None] == group_B[None]
    best_B1 = scores_BB.masked_fill(~right_BB, -torch.inf).amax(1, keepdim=True)
    before_BB = scores_BB > best_B1 + TIE if ties_right else scores_BB >= best_B1 - TIE
    before_BB = (before_BB | best_B1.isinf()) & ~right_BB
    return before_BB.sum(1)


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


def calibration_interval(
    probs_BC: Tensor, label_B: Tensor, *, resamples: int = 200, seed: int = 0
) -> list[float]:
    """95 % interval of `calibration_error`: the percentiles over resampled samples."""
    if len(label_B) == 0:
        return [0.0, 0.0]
    generator = torch.Generator().manual_seed(seed)
    errors = [
        calibration_error(probs_BC[rows_B], label_B[rows_B])
        for rows_B in torch.randint(len(label_B), (resamples, len(label_B)), generator=generator)
    ]
    return torch.tensor(errors).quantile(torch.tensor([0.025, 0.975])).tolist()


def nll_of(probs_BC: Tensor, label_B: Tensor) -> Tensor:
    """Each sample's negative log-likelihood, float[B]; probabilities are at least 1e-9."""
    return -probs_BC[torch.arange(len(label_B)), label_B].clamp(min=1e-9).log()


def mean_nll(probs_BC: Tensor, label_B: Tensor) -> float:
    """The mean of `nll_of`; 0 for no sample."""
    return float(nll_of(probs_BC, label_B).mean()) if len(label_B) else 0.0


def share_interval(right_B: Tensor) -> list[float]:
    """95 % interval of a share by Wilson's score (Wilson 1927), which holds near 0 and 1 too.

    Args:
        right_B: 0 or 1, at least one.
    """
    count, z = len(right_B), 1.96
    share = float(right_B.double().mean())
    middle = share + z * z / (2 * count)
    half = z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5
    scale = 1 + z * z / count
    return [(middle - half) / scale, (middle + half) / scale]


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
