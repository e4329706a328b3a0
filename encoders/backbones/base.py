"""The encoder interface: `prepare` on the CPU, `collate` into tensors, `forward` into features.

Shapes: B samples, T tokens (words, patches, frames), F width of the features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    packed: bool = False
    """Whether a batch costs on a CPU what its inputs cost together: no padding is computed."""
    trunk_parts: tuple[str, ...] = ()
    """The modules that only `trunk` uses; empty where no engine can replace it."""
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

    @classmethod
    def over(cls, config: EncoderConfig, owner: Encoder) -> Encoder:
        """An encoder that uses the network of `owner`, see `EncoderConfig.shares`.

        Raises:
            CheckpointError: this kind has a network of its own, or cannot use that one.
        """
        raise CheckpointError(f"shares: a {config.kind} encoder has a network of its own")

    @property
    def owner(self) -> Encoder:
        """The encoder that has the weights of this one: itself, or that of another modality."""
        return self

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

    def prepare_query(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        """As `prepare`, for a search query: some text models tell it from what is searched."""
        return self.prepare(value, limits)

    @abstractmethod
    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        """Prepared arrays as padded CPU tensors, ready for `forward`."""

    @abstractmethod
    def forward(self, *batch: Tensor) -> Features:
        """The features of a collated batch, on the device of the weights."""

    def trunk(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """The network without pooling and normalisation: from a collated batch to the tensors that
        `forward` makes features of. `braid.encoders.engines` may replace it."""
        raise NotImplementedError

    def size(self, value: Array) -> int:
        """The size of one input in a batch's budget, by default its length. See
        `sub_batches.plan`."""
        return int(value.shape[-1])

    @property
    def budget(self) -> int:
        """The largest padded size of one sub-batch on a CPU, in units of `size`.

        Small, so that activations stay in the cache. See `sub_batches.ACCELERATOR_FACTOR`.
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


def spread(rows_N: Tensor, here_B: Tensor) -> Tensor:
    """A row for each sample: the next of `rows_N` where it has one, zeros where it has none.

    Does not index by a mask, which would synchronise the CPU with a GPU: the number of rows would
    be needed before the next kernel could be launched.

    Args:
        rows_N: [N, ...], N >= 0.
        here_B: bool[B] with N times True.
    """
    if len(rows_N) == len(here_B):
        return rows_N
    if len(rows_N) == 0:
        return rows_N.new_zeros(len(here_B), *rows_N.shape[1:])
    # Not `rows_N[...]`, whose gradient sorts and accumulates.
    taken_B = rows_N.index_select(0, (here_B.cumsum(0) - 1).clamp(min=0))
    return taken_B.masked_fill(~here_B.reshape(-1, *[1] * (rows_N.ndim - 1)), 0)


def masked_mean(tokens_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over the tokens that are real, float[B, F]."""
    weight_BT1 = mask_BT.unsqueeze(2).to(tokens_BTF.dtype)
    return (tokens_BTF * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1.0)


def channels_last(module: nn.Module, *_: Any) -> None:
    """Convolutions in the layout in which a CPU computes them faster; also a hook of
    `load_state_dict`, which takes the layout of what it loads."""
    module.to(memory_format=torch.channels_last)


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. To a GPU from pinned memory: a copy from pageable memory would wait for
    all kernels launched before."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
