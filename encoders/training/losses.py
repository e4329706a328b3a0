"""Losses as pure functions.

Shapes: B samples, D the shared space, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

LOG_SCALE_START = math.log(1 / 0.07)
LOG_SCALE_MAX = math.log(100.0)
"""Start and cap of the learnt temperature, as in CLIP (arXiv 2103.00020) and open_clip."""
SIGMOID_LOG_SCALE, SIGMOID_BIAS = math.log(10.0), -10.0
"""Initial scale and bias of SigLIP (arXiv 2303.15343, section 3)."""


def _scores(left_BD: Tensor, right_BD: Tensor) -> Tensor:
    """left @ right.T in float32: autocast would compute the product in bf16."""
    with torch.autocast(left_BD.device.type, enabled=False):
        return left_BD.float() @ right_BD.float().T


def positives(group_B: Tensor, label_B: Tensor, same_label: float) -> Tensor:
    """Target probabilities of InfoNCE, float[B, B]; each row sums to 1.

    Samples of the same `group_B` (identical content) are equal positives. A share of
    `same_label` is spread over all samples of the same label, these included: soft targets after
    supervised contrastive learning (arXiv 2004.11362).

    Args:
        group_B: int, equal for samples with the same content.
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
    scores_BB = _scores(log_scale.exp() * left_BD.float(), right_BD)
    loss: Tensor = _BothCrossEntropies.apply(scores_BB, target_BB)
    return loss


class _BothCrossEntropies(torch.autograd.Function):
    """1/2 [mean_i CE(S_i, Q_i) + mean_j CE(S.T_j, Q.T_j / sum)], computed without S.T.

    A transposed copy of the scores, and of its log-softmax, costs as much as the product that makes
    them. dS_ij = (softmax_j S_ij + softmax_i S_ij - Q_ij - Q_ij / sum_i Q_ij) / 2B.
    """

    @staticmethod
    def forward(ctx: Any, scores_BB: Tensor, target_BB: Tensor) -> Tensor:
        row_B1 = scores_BB.logsumexp(1, keepdim=True)
        column_B = scores_BB.logsumexp(0)
        weight_BB = target_BB + target_BB / target_BB.sum(0)
        ctx.save_for_backward(scores_BB, row_B1, column_B, weight_BB)
        true = torch.dot(scores_BB.flatten(), weight_BB.flatten())
        return (row_B1.sum() + column_B.sum() - true) / (2 * len(scores_BB))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        scores_BB, row_B1, column_B, weight_BB = ctx.saved_tensors
        grad_BB = (scores_BB - row_B1).exp_().add_((scores_BB - column_B).exp_()).sub_(weight_BB)
        return grad_BB.mul_(grad / (2 * len(scores_BB))), None


def sigmoid_loss(
    left_BD: Tensor, right_BD: Tensor, log_scale: Tensor, bias: Tensor, target_BB: Tensor
) -> Tensor:
    """SigLIP's loss, a scalar: every pair of a left and a right is a yes-or-no question.

    -(1/B) sum_ij log sigmoid(y_ij (exp(log_scale) left_i . right_j + bias)), y_ij = 1 where
    `target_BB` is positive, else -1 (Zhai et al. 2023, arXiv 2303.15343, algorithm 1). The sum is
    divided by B, not by B^2.

    Args:
        left_BD, right_BD: unit vectors, as for `info_nce`.
        log_scale, bias: learnable; see `SIGMOID_LOG_SCALE`, `SIGMOID_BIAS`.
        target_BB: only its sign counts.

    Fewer than two rows give 0, with a gradient of 0, as `info_nce` does.
    """
    if len(left_BD) < 2:
        return (left_BD.sum() + right_BD.sum()) * 0.0
    scores_BB = _scores(log_scale.exp() * left_BD.float(), right_BD) + bias
    sign_BB = torch.where(target_BB > 0, 1.0, -1.0)
    return -F.logsigmoid(sign_BB * scores_BB).sum() / len(left_BD)


def compatibility_loss(new_BD: Tensor, old_BD: Tensor, target_BB: Tensor) -> Tensor:
    """Distance of a new model's vectors from an old one's of the same records, a scalar >= 0.

    mean_b (1 - new_b . old_b) + CE(s new old', target): each new vector is pulled to the old one of
    its record and contrasted with the old ones of the batch, as a new query is with stored vectors
    (the influence loss of backward-compatible training, Shen et al. 2020, arXiv 2003.11942, with
    InfoNCE as the old model's criterion). s is 1 / 0.07, fixed: a learnt one could grow until
    the gallery has no influence.

    Args:
        new_BD, old_BD: unit vectors; no gradient flows into the old ones.
        target_BB: rows sum to 1, see `positives`.

    Fewer than one row give 0, with a gradient of 0.
    """
    if len(new_BD) == 0:
        return new_BD.sum() * 0.0
    scores_BB = _scores(math.exp(LOG_SCALE_START) * new_BD.float(), old_BD)
    pull = (1.0 - (new_BD.float() * old_BD.float()).sum(1)).mean()
    return pull + F.cross_entropy(scores_BB, target_BB)


def confidence_penalty(fewer_BC: Tensor, more_BC: Tensor) -> Tensor:
    """The rise of confidence when modalities are removed, a scalar >= 0.

    mean_b max(0, max_c softmax(fewer_b) - max_c softmax(more_b)): the confidence from a subset of
    the modalities must not exceed that from a superset (Ma et al., "Calibrating Multimodal
    Learning", ICML 2023, arXiv 2306.01265).

    Args:
        fewer_BC, more_BC: logits of the same samples from a subset and from its superset.
    """
    fewer_B = torch.softmax(fewer_BC.float(), dim=1).amax(1)
    more_B = torch.softmax(more_BC.float(), dim=1).amax(1)
    return F.relu(fewer_B - more_B).mean()


def masked_cross_entropy(logits_BC: Tensor, label_B: Tensor) -> Tensor:
    """-(1/n) sum_b log softmax(logits_b)[label_b] over the n samples whose label is known (not -1),
    a scalar; 0 where none is (cross-entropy, Bishop 2006, "Pattern Recognition and Machine
    Learning", equation 4.108).

    Args:
        logits_BC: float[B, C].
        label_B: int[B].
    """
    known = int((label_B >= 0).sum())
    if known == 0:
        return logits_BC.sum() * 0.0
    return F.cross_entropy(logits_BC.float(), label_B, ignore_index=-1, reduction="sum") / known


def masked_binary_cross_entropy(logits_BC: Tensor, target_BC: Tensor, known_B: Tensor) -> Tensor:
    """Mean over classes and known samples of -[t log p + (1 - t) log(1 - p)], p = sigmoid(logit), a
    scalar; 0 where no sample is known (Bishop 2006, "Pattern Recognition and Machine Learning",
    equation 4.90, each class a yes-or-no question of its own).

    Args:
        logits_BC, target_BC: float[B, C], targets 0 or 1.
        known_B: bool[B].
    """
    if not bool(known_B.any()):
        return logits_BC.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits_BC[known_B].float(), target_BC[known_B])


def masked_regression(value_B: Tensor, target_B: Tensor) -> Tensor:
    """Mean smooth L1 over the samples whose number is known (not NaN), a scalar; 0 where none is.

    d^2 / 2 where |d| < 1, else |d| - 1/2 (Girshick 2015, arXiv 1504.08083, equation 3): a far
    outlier among the labels does not dominate the loss.

    Args:
        value_B, target_B: float[B], scaled to spread 1.
    """
    known_B = ~target_B.isnan()
    if not bool(known_B.any()):
        return value_B.sum() * 0.0
    return F.smooth_l1_loss(value_B[known_B].float(), target_B[known_B])


def caption_loss(logits_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of -log softmax(logits_bt)[id_bt] over the real words, a scalar; 0 where none is (each
    word given the true ones before it, Vinyals et al. 2015, "Show and Tell", arXiv 1411.4555,
    section 3).

    Args:
        logits_BTV: of each word given those before it, float[B, T, V].
        ids_BT: int[B, T]; mask_BT: bool[B, T], True where a word is real.
    """
    if not bool(mask_BT.any()):
        return logits_BTV.sum() * 0.0
    return F.cross_entropy(logits_BTV[mask_BT].float(), ids_BT[mask_BT])
