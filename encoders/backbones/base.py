"""The encoder interface: `prepare` on the CPU, `collate` into tensors, `forward` into features.

Shapes: B samples, T tokens (words, patches, frames), F width of the features.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..errors import CheckpointError
from ..types import Cost

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """An encoder's output.

    Attributes:
        pooled_BF: one vector a sample: one or more parts of length 1 each, see `joined`.
        tokens_BTF: one vector a word, patch or frame, where the encoder has them.
        mask_BT: True where a token is real, False where it is padding.
    """

    pooled_BF: Tensor
    tokens_BTF: Tensor | None = None
    mask_BT: Tensor | None = None

    @property
    def length(self) -> int:
        """T, 0 without tokens."""
        return 0 if self.tokens_BTF is None else self.tokens_BTF.shape[1]


def joined(*parts: Tensor) -> Tensor:
    """Parts, float[B, F1], float[B, F2], ..., each scaled to length 1, side by side.

    So one learning rate suits every encoder, and no layer dominates another.
    """
    return torch.cat([F.normalize(part_BF, dim=1) for part_BF in parts], dim=1)


ACCELERATOR_FACTOR = 16
"""Factor of the sub-batch budget on a device that is not a CPU."""


class Encoder(nn.Module, ABC):
    """Converts values of one modality to features.

    A subclass sets `modality`, `width` (F), `token_width` and `settings` in its constructor, which
    takes `(options, assets)`: the JSON options of its `EncoderConfig`, and the folder that holds
    the files `save_assets` wrote (None when it is made anew, from a source or at random).
    """

    modality: str
    width: int
    token_width: int = 0
    """Width of `Features.tokens_BTF`; 0 where the encoder gives no tokens."""
    settings: Mapping[str, Any]
    """All settings that the output of `prepare` depends on, except limits. They are hashed."""

    @classmethod
    @abstractmethod
    def create(cls, config: EncoderConfig) -> Encoder:
        """A new encoder: pretrained weights from `config.source`, or random ones if it is None."""

    @classmethod
    @abstractmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Encoder:
        """The architecture from a version folder; its weights are loaded later."""

    def save_assets(self, folder: Path) -> None:
        """Write the files that `restore` needs beside the weights. None by default."""

    def trainable_blocks(self) -> list[nn.Module]:
        """The encoder's blocks from input to output, for training only the last n of them."""
        return []

    @abstractmethod
    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        """One value as an array, with its cost. CPU only, thread-safe.

        Raises:
            BadInput: the value cannot be used.
        """

    @abstractmethod
    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        """Prepared arrays as padded CPU tensors, ready for `forward`."""

    @abstractmethod
    def forward(self, *batch: Tensor) -> Features:
        """The features of a collated batch, on the device of the weights."""

    def size(self, value: Array) -> int:
        """The size of one input in a batch's budget, by default its length. See `plan`."""
        return int(value.shape[-1])

    @property
    def budget(self) -> int:
        """The largest padded size of one sub-batch on a CPU, in units of `size`.

        Small, so that activations stay in the cache. See `ACCELERATOR_FACTOR`.
        """
        return 1 << 30

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        """An augmented copy of a prepared value for training; the value itself by default."""
        return value


def no_source(config: EncoderConfig) -> None:
    """For an encoder that is trained from scratch only.

    Raises:
        CheckpointError: a source is set, which would be ignored.
    """
    if config.source is not None:
        raise CheckpointError(
            f"source of a {config.kind} encoder must be None (it has no pretrained weights), "
            f"is {config.source!r}"
        )


def plan(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Positions grouped into sub-batches of similar size, so that there is little padding.

    Positions are sorted by size; a group is closed before (members x longest) passes `budget`. A
    single one larger than the budget is a group by itself. After the token budget of
    text-embeddings-inference's queue.
    """
    groups: list[list[int]] = []
    for position in sorted(range(len(sizes)), key=lambda p: (sizes[p], p)):
        longest = max(1, sizes[position])
        if groups and (len(groups[-1]) + 1) * longest <= budget:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


def encode_all(
    encoder: Encoder, inputs: Sequence[Array], device: torch.device, *, tokens: bool = False
) -> Features:
    """Features of prepared inputs, in their order, in sub-batches of similar size. No gradient.

    The largest sub-batch comes first, so that a batch that does not fit in memory fails at once. On
    a CPU the sub-batches run in parallel, one core each; see `one_thread`.

    Args:
        tokens: also give the tokens, padded to the longest, and their mask.
    """
    on_cpu = device.type == "cpu"
    budget = encoder.budget * (1 if on_cpu else ACCELERATOR_FACTOR)
    sizes = [encoder.size(value) for value in inputs]
    if on_cpu and len(inputs) > 1:  # also split a small batch over the cores
        budget = min(budget, max(max(sizes), math.ceil(sum(sizes) / cores())))
    groups = plan(sizes, budget)[::-1]

    def run(group: list[int]) -> Features:
        with torch.inference_mode(), one_thread(on_cpu):
            batch = encoder.collate([inputs[position] for position in group])
            features: Features = encoder(*(uploaded(tensor, device) for tensor in batch))
            return Features(
                pooled_BF=features.pooled_BF.float(),
                tokens_BTF=features.tokens_BTF if tokens else None,
                mask_BT=features.mask_BT if tokens else None,
            )

    parallel = on_cpu and len(groups) > 1
    parts = list((_cores(os.getpid()).map if parallel else map)(run, groups))
    pooled_BF = torch.empty(len(inputs), encoder.width, device=device)
    longest = max((part.length for part in parts), default=0)
    tokens_BTF = torch.zeros(len(inputs), longest, encoder.token_width, device=device)
    mask_BT = torch.zeros(len(inputs), longest, dtype=torch.bool, device=device)
    for group, part in zip(groups, parts, strict=True):
        rows = uploaded(torch.tensor(group), device)
        pooled_BF[rows] = part.pooled_BF
        if part.tokens_BTF is not None:
            tokens_BTF[rows, : part.length] = part.tokens_BTF.float()
            mask_BT[rows, : part.length] = True if part.mask_BT is None else part.mask_BT
    if longest == 0:
        return Features(pooled_BF=pooled_BF)
    return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF, mask_BT=mask_BT)


def spread(rows_N: Tensor, here_B: Tensor) -> Tensor:
    """A row for each sample: the next of `rows_N` where it has one, zeros where it has none.

    Does not index by a mask, which would synchronise the CPU with a GPU: the number of rows would
    be needed before the next kernel could be launched.

    Args:
        rows_N: [N, ...], N >= 0.
        here_B: bool[B] with N times True.
    """
    if len(rows_N) == 0:
        return rows_N.new_zeros(len(here_B), *rows_N.shape[1:])
    # Not `rows_N[...]`, whose gradient sorts and accumulates.
    taken_B = rows_N.index_select(0, (here_B.cumsum(0) - 1).clamp(min=0))
    return taken_B.masked_fill(~here_B.reshape(-1, *[1] * (rows_N.ndim - 1)), 0)


def masked_mean(tokens_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over the tokens that are real, float[B, F]."""
    weight_BT1 = mask_BT.unsqueeze(2).to(tokens_BTF.dtype)
    return (tokens_BTF * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1.0)


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. To a GPU from pinned memory: a copy from pageable memory would wait for
    all kernels launched before."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def one_thread(enabled: bool = True) -> Iterator[None]:
    """Inside, this thread's torch operations use one core.

    torch splits every small operation over all cores and spins until the slowest is done. On a busy
    machine that is slower than one core: on 2 busy cores EfficientNet encodes 7 pictures a second
    on both, 15 on one, and 33 with one core for each sub-batch.
    """
    if not enabled:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0))


@lru_cache(maxsize=1)
def _cores(pid: int) -> ThreadPoolExecutor:
    """The thread pool of this process; a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(cores(), "encode")
