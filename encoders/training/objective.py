"""The joint loss: task + align + fuse, weighted by the configuration.

    task   each modality's own heads, on the samples that have the modality and the label
    align  InfoNCE (or SigLIP) between the unit vectors of every pair of modalities
    fuse   the fused vector's head under random subsets of the modalities, captions, InfoNCE between
           fuse(A) and fuse(B) of one sample for random subsets A and B (so that a query with one
           modality retrieves records with three), and the penalty on confidence that falls with
           more modalities

Shapes: B samples, M modalities, S sources, C classes, L words, D the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..model.fusion import Tokens
from ..model.net import Net
from ..types import FUSED
from .batches import Batch
from .loss_weights import LearnedWeights
from .losses import (
    LOG_SCALE_MAX,
    LOG_SCALE_START,
    SIGMOID_BIAS,
    SIGMOID_LOG_SCALE,
    caption_loss,
    compatibility_loss,
    confidence_penalty,
    info_nce,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    masked_regression,
    positives,
    sigmoid_loss,
)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The result of the objective.

    Attributes:
        loss: the weighted sum, a scalar.
        parts: "task", "align", "fuse" (and "compatible") without their weights.
    """

    loss: Tensor
    parts: dict[str, float]


def _class_loss(logits_BC: Tensor, label_B: Tensor, here_B: Tensor) -> Tensor:
    return masked_cross_entropy(logits_BC, torch.where(here_B, label_B, -1))


def _labels_loss(logits_BC: Tensor, target_BC: Tensor, here_B: Tensor) -> Tensor:
    known_B = here_B & ~target_BC.isnan().any(1)
    return masked_binary_cross_entropy(logits_BC, target_BC, known_B)


def _number_loss(value_B1: Tensor, target_B: Tensor, here_B: Tensor) -> Tensor:
    return masked_regression(value_B1[:, 0], target_B.masked_fill(~here_B, float("nan")))


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "classification": _class_loss,
    "multilabel": _labels_loss,
    "regression": _number_loss,
}
"""Kind of task to the loss of one source, from its outputs, the targets, and its presence."""


class Objective(nn.Module):
    """The joint loss with its learnt parameters: a temperature for each pair and one for the fused
    subsets, SigLIP's biases, and the weights of the terms."""

    def __init__(
        self, modalities: Sequence[str], config: TrainConfig, *, heads_only: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.heads_only = heads_only
        names = [] if heads_only else [*(f"{a}-{b}" for a, b in combinations(modalities, 2)), FUSED]
        sigmoid = config.contrast == "siglip"
        start = SIGMOID_LOG_SCALE if sigmoid else LOG_SCALE_START
        self.log_scale = _scalars(names, start)
        self.bias = _scalars(names if sigmoid else [], SIGMOID_BIAS)
        weights = {"task": config.task, "align": 0.0 if heads_only else config.align}
        weights["fuse"] = config.fuse
        self.fixed = weights
        learnt = [name for name, weight in weights.items() if weight > 0 and config.learn_weights]
        self.weights = LearnedWeights(learnt)

    def clamp(self) -> None:
        """Keep what is learnt in its range; after each step."""
        for log_scale in self.log_scale.values():
            log_scale.data.clamp_(0.0, LOG_SCALE_MAX)
        self.weights.clamp()

    def forward(self, net: Net, batch: Batch, rng: np.random.Generator) -> Terms:
        """The loss of one batch.

        Args:
            rng: draws the subsets of the modalities.
        """
        config = self.config
        present_BM = batch.present_BM
        unit_BMD = net.units(batch.features, present_BM)
        tokens = net.tokens(batch.features, present_BM)
        zero = torch.zeros((), device=unit_BMD.device)
        align = match = zero
        if not self.heads_only:
            if config.align > 0:
                align = self._align(net, unit_BMD, batch)
            if config.match > 0:
                match = self._match(net, unit_BMD, tokens, batch, rng)
        # Random subsets for the fused head: in use, any modality may be missing or uninformative.
        kept_BM = subset(present_BM, 1.0 - config.drop, rng)
        fused_BD = net.fusion(unit_BMD, kept_BM, tokens)
        whole_BD = None if config.monotone == 0 else net.fusion(unit_BMD, present_BM, tokens)
        if self.heads_only:
            unit_BMD, fused_BD = unit_BMD.detach(), fused_BD.detach()
            whole_BD = None if whole_BD is None else whole_BD.detach()
        task = fuse = zero
        every_B = torch.ones_like(present_BM[:, 0])
        for name, target in batch.target.items():
            kind = net.tasks[name].kind
            if kind == "generation":
                fuse = fuse + self._captions(net, name, batch, unit_BMD, rng)
                continue
            logits_BSC = net.logits(name, batch.features, unit_BMD, fused_BD, present_BM, kept_BM)
            *own, fused_BC = logits_BSC.unbind(1)
            for logits_BC, here_B in zip(own, present_BM.unbind(1), strict=True):
                task = task + LOSSES[kind](logits_BC, target, here_B)
            fuse = fuse + LOSSES[kind](fused_BC, target, every_B)
            if kind == "classification" and whole_BD is not None:
                whole_BC = net.fused_logits(name, logits_BSC[:, :-1], whole_BD, present_BM)
                fuse = fuse + config.monotone * confidence_penalty(fused_BC, whole_BC)
        fuse = fuse + config.match * match
        terms = {"task": task, "align": align, "fuse": fuse}
        weighed = {name: self.fixed[name] * term for name, term in terms.items()}
        loss = self.weights(weighed) if self.config.learn_weights else sum(weighed.values(), zero)
        if config.compatible > 0 and batch.old_BSD is not None and not self.heads_only:
            terms["compatible"] = self._compatible(net, unit_BMD, tokens, batch)
            loss = loss + config.compatible * terms["compatible"]
        return Terms(
            loss=loss,
            parts={name: float(term.detach()) for name, term in terms.items()},
        )

    def _align(self, net: Net, unit_BMD: Tensor, batch: Batch) -> Tensor:
        """The contrast summed over the pairs of modalities; each over the samples with both."""
        total = torch.zeros((), device=unit_BMD.device)
        # Unbound at once: the gradient of each column taken alone is as large as all of them.
        columns = zip(net.modalities, unit_BMD.unbind(1), batch.present_BM.unbind(1), strict=True)
        for (a, left_BD, has_a_B), (b, right_BD, has_b_B) in combinations(columns, 2):
            total = total + self.config.pair_weight(a, b) * self._contrast(
                left_BD, right_BD, f"{a}-{b}", has_a_B & has_b_B, batch
            )
        return total

    def _match(
        self, net: Net, unit_BMD: Tensor, tokens: Tokens, batch: Batch, rng: np.random.Generator
    ) -> Tensor:
        """The contrast of fuse(A) with fuse(B), over the samples with two modalities or more."""
        left_BD, right_BD = (
            cast(Tensor, net.fusion(unit_BMD, kept_BM, tokens))
            for kept_BM in two_subsets(batch.present_BM, rng)
        )
        return self._contrast(left_BD, right_BD, FUSED, batch.present_BM.sum(1) > 1, batch)

    def _contrast(
        self, left_BD: Tensor, right_BD: Tensor, pair: str, kept_B: Tensor, batch: Batch
    ) -> Tensor:
        """The loss that aligns two columns of unit vectors, over the samples kept."""
        target_BB = positives(
            batch.group_B[kept_B], self._label(batch)[kept_B], self.config.same_label
        )
        if not bool(kept_B.all()):  # the gradient of indexing by a mask costs as much as the loss
            left_BD, right_BD = left_BD[kept_B], right_BD[kept_B]
        if pair in self.bias:
            return sigmoid_loss(left_BD, right_BD, self.log_scale[pair], self.bias[pair], target_BB)
        return info_nce(left_BD, right_BD, self.log_scale[pair], target_BB)

    def _compatible(self, net: Net, unit_BMD: Tensor, tokens: Tokens, batch: Batch) -> Tensor:
        """The compatibility loss summed over the modalities and the fused vector. The fused vector
        counts where the batch has the same modalities as the champion's."""
        old_BSD = cast(Tensor, batch.old_BSD)
        had_BM = old_BSD[:, :-1].norm(dim=2) > 0
        whole_B = (had_BM == batch.present_BM).all(1)
        new_BSD = torch.cat(
            [unit_BMD, net.fusion(unit_BMD, batch.present_BM, tokens)[:, None]], dim=1
        )
        kept_BS = torch.cat([had_BM & batch.present_BM, whole_B[:, None]], dim=1)
        total = torch.zeros((), device=unit_BMD.device)
        label_B = torch.full_like(
            batch.group_B, -1
        )  # positives are the same records, not the same classes
        for place in range(new_BSD.shape[1]):
            kept_B = kept_BS[:, place]
            target_BB = positives(batch.group_B[kept_B], label_B[kept_B], 0.0)
            total = total + compatibility_loss(
                new_BSD[kept_B, place], old_BSD[kept_B, place], target_BB
            )
        return total

    def _captions(
        self, net: Net, task: str, batch: Batch, unit_BMD: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """The captioner's loss, from a random subset of the modalities that captions may use."""
        kept_BM = subset(batch.present_BM, 1.0 - self.config.drop, rng)
        fused_BD = net.caption_input(task, batch.features, unit_BMD, kept_BM, batch.present_BM)
        if self.heads_only:
            fused_BD = fused_BD.detach()
        ids_BL = batch.target[task]
        logits_BLV = net.heads.captioner(task)(fused_BD, ids_BL.clamp(min=0))
        return caption_loss(logits_BLV, ids_BL, ids_BL >= 0)

    def _label(self, batch: Batch) -> Tensor:
        """Labels that make positives: those of the first classification task, if any count."""
        for target in batch.target.values() if self.config.same_label > 0 else ():
            if target.dtype == torch.long and target.ndim == 1:
                return target
        return torch.full_like(batch.group_B, -1)


def _scalars(names: Sequence[str], start: float) -> nn.ParameterDict:
    return nn.ParameterDict({name: nn.Parameter(torch.tensor(start)) for name in names})


def subset(present_BM: Tensor, keep: float, rng: np.random.Generator) -> Tensor:
    """A random non-empty subset of the modalities present, bool[B, M].

    Args:
        keep: the probability of each to be kept; if none is kept, one of them is drawn.
    """
    chance_BM = _chances(present_BM, rng)
    kept_BM = present_BM & (chance_BM < keep)
    return torch.where(kept_BM.any(1, keepdim=True), kept_BM, _lowest(chance_BM))


def two_subsets(present_BM: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Two random non-empty subsets of the modalities present, bool[B, M] each. Where a sample has
    two modalities or more they differ: equal ones would have nothing to learn."""
    chance_BM = _chances(present_BM, rng)
    left_BM = present_BM & (chance_BM < 0.5)
    left_BM = torch.where(left_BM.any(1, keepdim=True), left_BM, _lowest(chance_BM))
    right_BM = subset(present_BM, 0.5, rng)
    others_BM = present_BM & ~left_BM
    others_BM = torch.where(others_BM.any(1, keepdim=True), others_BM, _lowest(chance_BM))
    same_B1 = (left_BM == right_BM).all(1, keepdim=True)
    return left_BM, torch.where(same_B1, others_BM, right_BM)


def _chances(present_BM: Tensor, rng: np.random.Generator) -> Tensor:
    """A number from 0 to 1 for each modality; 2 where it is absent."""
    chance_BM = torch.from_numpy(rng.random(tuple(present_BM.shape))).to(present_BM.device)
    return chance_BM.masked_fill(~present_BM, 2.0)


def _lowest(chance_BM: Tensor) -> Tensor:
    """The modality with the lowest number, bool[B, M]; none where all are absent."""
    lowest_B1 = chance_BM.argmin(1, keepdim=True)
    return torch.zeros_like(chance_BM, dtype=torch.bool).scatter_(1, lowest_B1, True) & (
        chance_BM < 2
    )
