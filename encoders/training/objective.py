"""The joint loss: task + align + fuse, weighted as the configuration says.

    task   each modality's own heads, on the samples that have the modality and the label
    align  InfoNCE between the unit vectors of every pair of modalities
    fuse   the fused vector's head under random subsets of the modalities, and InfoNCE between
           fuse(A) and fuse(B) of one sample for random subsets A and B, so that a query with one
           modality finds records with three

Shapes: B samples, M modalities, S sources, C classes, D the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from encoders.config import TrainConfig
from encoders.fusion import Tokens
from encoders.losses import (
    LOG_SCALE_MAX,
    LOG_SCALE_START,
    caption_loss,
    info_nce,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    masked_regression,
    positives,
)
from encoders.model import Net
from encoders.training.batches import Batch
from encoders.types import FUSED


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
"""By kind of task: the loss of one source, from its outputs, the targets, and where it is."""


class Objective(nn.Module):
    """The joint loss with its learnable temperatures, one for each pair and one for the fused."""

    def __init__(
        self, modalities: Sequence[str], config: TrainConfig, *, heads_only: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.heads_only = heads_only
        names = [] if heads_only else [*(f"{a}-{b}" for a, b in combinations(modalities, 2)), FUSED]
        self.log_scale = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(LOG_SCALE_START)) for name in names}
        )

    def clamp(self) -> None:
        """Keep the temperatures in their range; after each step."""
        for log_scale in self.log_scale.values():
            log_scale.data.clamp_(0.0, LOG_SCALE_MAX)

    def forward(
        self, net: Net, batch: Batch, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss, a scalar, and its three terms."""
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
        # The fused head sees random subsets: at work any modality may be missing, or know nothing.
        fused_BD = net.fusion(unit_BMD, subset(present_BM, 1.0 - config.drop, rng), tokens)
        if self.heads_only:
            unit_BMD, fused_BD = unit_BMD.detach(), fused_BD.detach()
        task = fuse = zero
        for name, target in batch.target.items():
            if net.tasks[name].kind == "generation":
                fuse = fuse + self._captions(net, name, batch, unit_BMD, rng)
                continue
            loss_of = LOSSES[net.tasks[name].kind]
            logits_BSC = net.logits(name, batch.features, unit_BMD, fused_BD, present_BM)
            for position in range(len(net.modalities)):
                task = task + loss_of(logits_BSC[:, position], target, present_BM[:, position])
            every_B = torch.ones_like(present_BM[:, 0])
            fuse = fuse + loss_of(logits_BSC[:, net.sources.index(FUSED)], target, every_B)
        fuse = fuse + config.match * match
        loss = config.task * task + config.align * align + config.fuse * fuse
        return loss, {"task": task.item(), "align": align.item(), "fuse": fuse.item()}

    def _align(self, net: Net, unit_BMD: Tensor, batch: Batch) -> Tensor:
        """The contrast summed over the pairs of modalities; each over the samples with both."""
        total = torch.zeros((), device=unit_BMD.device)
        for left, right in combinations(range(len(net.modalities)), 2):
            both_B = batch.present_BM[:, left] & batch.present_BM[:, right]
            pair = f"{net.modalities[left]}-{net.modalities[right]}"
            total = total + self.config.pairs.get(pair, 1.0) * self._contrast(
                unit_BMD[:, left], unit_BMD[:, right], pair, both_B, batch
            )
        return total

    def _match(
        self, net: Net, unit_BMD: Tensor, tokens: Tokens, batch: Batch, rng: np.random.Generator
    ) -> Tensor:
        """The contrast of fuse(A) with fuse(B), over the samples with two modalities or more."""
        left_BD, right_BD = (
            cast(Tensor, net.fusion(unit_BMD, subset(batch.present_BM, 0.5, rng), tokens))
            for _ in range(2)
        )
        return self._contrast(left_BD, right_BD, FUSED, batch.present_BM.sum(1) > 1, batch)

    def _contrast(
        self, left_BD: Tensor, right_BD: Tensor, pair: str, kept_B: Tensor, batch: Batch
    ) -> Tensor:
        """InfoNCE of two columns of unit vectors over the samples kept."""
        target_BB = positives(
            batch.group_B[kept_B], self._label(batch)[kept_B], self.config.same_label
        )
        return info_nce(left_BD[kept_B], right_BD[kept_B], self.log_scale[pair], target_BB)

    def _captions(
        self, net: Net, task: str, batch: Batch, unit_BMD: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """The captioner's loss, from a random subset of what captions may be made from."""
        kept_BM = subset(batch.present_BM, 1.0 - self.config.drop, rng)
        fused_BD = net.caption_input(task, batch.features, unit_BMD, kept_BM, batch.present_BM)
        ids_BL = batch.target[task]
        mask_BL = ids_BL >= 0
        if self.heads_only:
            fused_BD = fused_BD.detach()
        logits_BLV = net.heads.captioner(task)(fused_BD, ids_BL.clamp(min=0))
        return caption_loss(logits_BLV, ids_BL, mask_BL)

    def _label(self, batch: Batch) -> Tensor:
        """Labels that make positives: those of the first classification task, if any count."""
        for target in batch.target.values() if self.config.same_label > 0 else ():
            if target.dtype == torch.long and target.ndim == 1:
                return target
        return torch.full_like(batch.group_B, -1)


def subset(present_BM: Tensor, keep: float, rng: np.random.Generator) -> Tensor:
    """A random non-empty subset of the modalities present, bool[B, M].

    Args:
        keep: the probability of each to stay; where none would, one of them is drawn.
    """
    chance_BM = torch.from_numpy(rng.random(tuple(present_BM.shape))).to(present_BM.device)
    kept_BM = present_BM & (chance_BM < keep)
    last_B = chance_BM.masked_fill(~present_BM, 2.0).argmin(1, keepdim=True)
    one_BM = torch.zeros_like(present_BM).scatter_(1, last_B, True) & present_BM
    return torch.where(kept_BM.any(1, keepdim=True), kept_BM, one_BM)
