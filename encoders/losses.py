"""Losses as pure functions.

Shapes: B samples, D the shared space, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

LOG_SCALE_START = math.log(1 / 0.07)
LOG_SCALE_MAX = math.log(100.0)
"""Start and cap of the learnt temperature, as in CLIP (arXiv 2103.00020) and open_clip."""


def positives(group_B: Tensor, label_B: Tensor, same_label: float) -> Tensor:
    """Where InfoNCE should put its probability: float[B, B], each row sums to 1.

    Samples of the same `group_B` (identical content) are equally the right answer. A share of
    `same_label` is spread over all samples of the same label, these included: soft targets after
    supervised contrastive learning (arXiv 2004.11362).

    Args:
        group_B: int, equal for samples that cannot be told apart.
        label_B: int, -1 where the label is unknown; such a sample has no positives by label.
        same_label: 0 to 1.
    """
    same_BB = (group_B[:, None] == group_B[None]).float()
    target_BB = same_BB / same_BB.sum(1, keepdim=True)
    if same_label == 0.0:
        return target_BB
    alike_BB = (label_B[:, None] == label_B[None]) & (label_B >= 0)[:, None]
    wide_BB = torch.maximum(alike_BB.float(), same_BB)
    return (1 - same_label) * target_BB + same_label * wide_BB / wide_BB.sum(1, keepdim=True)


def info_nce(left_BD: Tensor, right_BD: Tensor, log_scale: Tensor, target_BB: Tensor) -> Tensor:
    """Symmetric InfoNCE with soft targets, a scalar.

    With S = exp(log_scale) * left @ right.T and Q the targets:
    1/2 [mean_i CE(S_i, Q_i) + mean_j CE(S.T_j, Q.T_j / sum)]; with Q the identity it is CLIP's loss
    (arXiv 2103.00020, figure 3).

    Args:
        left_BD, right_BD: unit vectors of one modality each, row i of both from one sample. Only
            samples that have both: the caller has masked the others out.
        log_scale: the logarithm of 1 / temperature.
        target_BB: rows sum to 1, see `positives`.

    Fewer than two rows have no negatives: the loss is then 0, with a gradient of 0.
    """
    if len(left_BD) < 2:
        return (left_BD.sum() + right_BD.sum()) * 0.0
    scores_BB = log_scale.exp() * left_BD @ right_BD.T
    back_BB = target_BB.T / target_BB.T.sum(1, keepdim=True)
    forth = F.cross_entropy(scores_BB, target_BB)
    return 0.5 * (forth + F.cross_entropy(scores_BB.T, back_BB))


def masked_cross_entropy(logits_BC: Tensor, label_B: Tensor) -> Tensor:
    """Mean cross-entropy over the samples whose label is known (not -1); 0 where none is."""
    known = int((label_B >= 0).sum())
    if known == 0:
        return logits_BC.sum() * 0.0
    return F.cross_entropy(logits_BC, label_B, ignore_index=-1, reduction="sum") / known


def masked_binary_cross_entropy(logits_BC: Tensor, target_BC: Tensor, known_B: Tensor) -> Tensor:
    """Mean binary cross-entropy over the samples whose labels are known; 0 where none is."""
    if not bool(known_B.any()):
        return logits_BC.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits_BC[known_B], target_BC[known_B])


def masked_regression(value_B: Tensor, target_B: Tensor) -> Tensor:
    """Mean smooth L1 over the samples whose number is known (not NaN); 0 where none is."""
    known_B = ~target_B.isnan()
    if not bool(known_B.any()):
        return value_B.sum() * 0.0
    return F.smooth_l1_loss(value_B[known_B], target_B[known_B])


def caption_loss(logits_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean cross-entropy a word over the words that are real; 0 where none is."""
    if not bool(mask_BT.any()):
        return logits_BTV.sum() * 0.0
    return F.cross_entropy(logits_BTV[mask_BT], ids_BT[mask_BT])
