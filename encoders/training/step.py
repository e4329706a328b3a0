"""The gradient of one step: encode, joint loss, backward.

With `chunk`, a trained encoder processes a part of its inputs at a time, and needs the memory of
one part: the features are computed without a graph, the loss of the whole batch gives their
gradients, and each part is encoded again to propagate them (GradCache, Gao et al. 2021, arXiv
2101.06983). The gradient is exact if a sample's features do not depend on the rest of its batch;
batch norms, and the mixing of sounds' statistics, see each part separately. Randomness is seeded
for each step and part, so that both passes use the same dropout masks.

Shapes: B samples of a batch, n of them with a modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import Encoder, Features, uploaded
from ..config import TrainConfig
from ..model.net import Net
from . import parallel
from .batches import assemble
from .data import Dataset
from .objective import Objective, Terms

Inputs = Mapping[str, tuple[tuple[Tensor, ...], Tensor]]


def seeded(seed: int, step: int, *more: int) -> None:
    """Seed torch for one part of one step: equal after a resumption, in a second pass, and in
    every process."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, *more]).generate_state(1)[0]))


def backward(
    net: Net,
    objective: Objective,
    data: Dataset,
    config: TrainConfig,
    batch_B: Tensor,
    inputs: Inputs,
    *,
    seed: int,
    step: int,
) -> Terms:
    """Accumulate the gradient of the batch's loss in the parameters; returns the loss terms.

    Args:
        inputs: for each trained encoder its collated batch and which rows of `batch_B` are in it.
    """
    device = next(net.parameters()).device
    amp = (
        torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
    )
    parts = {
        name: _EncoderPass(net, name, batch, (seed, step, place), device, config.chunk)
        for place, name in enumerate(net.modalities)
        if name in inputs
        for batch in [inputs[name][0]]
    }
    with amp:
        features = {name: part.encode() for name, part in parts.items()}
        rows = {name: inputs[name][1] for name in parts}
        batch = assemble(net, data, batch_B, features, rows, device)
        seeded(seed, step, 1000)
        terms = objective(net, batch, np.random.default_rng([seed, step]))
    if terms.loss.requires_grad:  # False for a last batch of one sample without encoder input
        terms.loss.backward()
    with amp:
        for part in parts.values():
            part.finish()
    for name in parts:
        parallel.sum_gradients(net.encoder(name).parameters())
    result: Terms = terms
    return result


class _EncoderPass:
    """One trained encoder's way through a step."""

    def __init__(
        self,
        net: Net,
        name: str,
        batch: tuple[Tensor, ...],
        key: Sequence[int],
        device: torch.device,
        chunk: int,
    ) -> None:
        self.encoder: Encoder = net.encoder(name)
        rank, size = parallel.world()
        mine = parallel.rank_slice(len(batch[0]), rank, size)
        self.batch = tuple(uploaded(part[mine], device) for part in batch)
        self.key = (*key, rank)
        self.device, self.chunk = device, chunk
        self.leaves: list[Tensor] = []

    def encode(self) -> Features:
        """The features of all processes' shares."""
        if (
            len(self.batch[0]) == 0
        ):  # fewer samples than processes: an empty batch has no spectrogram
            return _gather_features(_empty_features(self.encoder, self.device))
        if self.chunk <= 0 or self.chunk >= len(self.batch[0]):
            self.chunk = 0
            local = self._run(self.batch, 0)
        else:
            with torch.no_grad():
                pieces = [self._run(piece, place) for place, piece in enumerate(self._pieces())]
            local = _concatenated(pieces)
            self.leaves = [t.requires_grad_() for t in _tensors(local)]
        return _gather_features(local)

    def finish(self) -> None:
        """Propagate the features' gradients through the encoder, piece by piece."""
        start = 0
        for place, piece in enumerate(self._pieces() if self.leaves else ()):
            again = _tensors(self._run(piece, place))
            end = start + len(again[0])
            pairs = [
                (tensor, leaf.grad[start:end, : tensor.shape[1]])
                for tensor, leaf in zip(again, self.leaves, strict=True)
                if leaf.grad is not None
            ]
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
            start = end

    def _run(self, batch: tuple[Tensor, ...], place: int) -> Features:
        seeded(*self.key, place)
        features: Features = self.encoder(*batch)
        return features

    def _pieces(self) -> list[tuple[Tensor, ...]]:
        return list(zip(*(part.split(self.chunk) for part in self.batch), strict=True))


def _tensors(features: Features) -> list[Tensor]:
    """The tensors with a gradient."""
    return [t for t in (features.pooled_BF, features.tokens_BTF) if t is not None]


def _concatenated(pieces: Sequence[Features]) -> Features:
    def column(name: str) -> Any:
        values = [getattr(piece, name) for piece in pieces]
        return None if values[0] is None else torch.cat(values)

    return Features(
        pooled_BF=column("pooled_BF"), tokens_BTF=column("tokens_BTF"), mask_BT=column("mask_BT")
    )


def _empty_features(encoder: Encoder, device: torch.device) -> Features:
    """The features of no sample."""
    width = encoder.token_width
    return Features(
        pooled_BF=torch.zeros(0, encoder.width, device=device),
        tokens_BTF=torch.zeros(0, 0, width, device=device) if width else None,
    )


def _gather_features(local: Features) -> Features:
    """The features of all processes, tokens padded to the longest; in float32, since all processes
    need one dtype."""
    if parallel.world()[1] == 1:
        return local
    tokens, mask = local.tokens_BTF, local.mask_BT
    if tokens is not None:
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        extra = parallel.all_reduce_max(tokens.shape[1], tokens.device) - tokens.shape[1]
        tokens = torch.nn.functional.pad(tokens.float(), (0, 0, 0, extra))
        mask = torch.nn.functional.pad(mask, (0, extra))
    return Features(
        pooled_BF=parallel.all_gather_rows(local.pooled_BF.float()),
        tokens_BTF=None if tokens is None else parallel.all_gather_rows(tokens),
        mask_BT=None if mask is None else parallel.all_gather_rows(mask),
    )
