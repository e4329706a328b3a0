"""Picture encoders: the base class, a small CNN trained from scratch, videos as means of frames.

`braid.encoders.decoding.pictures` decodes, `braid.encoders.backbones.efficientnet` holds the
pretrained network.

Shapes: B pictures, C channels, H and W sides, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..decoding.isolation import picture, video
from ..decoding.pictures import Fit
from ..decoding.videos import EXTRA
from ..errors import BadInput, CheckpointError
from ..types import Cost
from .base import Array, Encoder, Features, joined, no_source

FRAMES = 8  # of a video, as many as X-CLIP takes


class ImageEncoder(Encoder):
    """Base class of the picture encoders: decoding, stacking, augmentation.

    Attributes:
        mirror: while training, half of the pictures are mirrored; not for digits and letters.
        fit: how a picture is brought to size; None: whole, on white.
        shift: while training, pictures are shifted by up to this share of the side; the edge that
            comes in is repeated.
    """

    modality = "image"
    mirror = True
    shift = 0.0
    fit: Fit | None = None

    @property
    def whole_files(self) -> bool:
        """Whether only a whole picture file can be prepared, not pixels of the side."""
        return False

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.settings = {"side": side, "fit": "contain on white", "scale": "uint8"}

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        if not isinstance(value, bytes):
            raise BadInput("image", f"must be bytes, is {type(value).__name__}")
        return picture(value, self.fit or self.side, limits), Cost(pixels=self.side**2)

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(np.stack(inputs)),)

    def size(self, value: Array) -> int:
        return self.side**2

    @property
    def budget(self) -> int:
        return 4 * self.side**2  # EfficientNet: 44 pictures a second and core, with 32 it is 24

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        """Mirrored and moved, see `mirror` and `shift`."""
        if self.mirror and rng.random() < 0.5:
            value = value[:, :, ::-1]
        most = int(self.shift * self.side)
        if most > 0:
            down, right = (int(v) for v in rng.integers(-most, most + 1, 2))
            wide = np.pad(value, ((0, 0), (most, most), (most, most)), mode="edge")
            rows = slice(most - down, most - down + self.side)
            columns = slice(most - right, most - right + self.side)
            value = wide[:, rows, columns]
        return np.ascontiguousarray(value)


class SmallCnn(ImageEncoder):
    """Three strided convolutions, average pooling. For tests and for training from scratch.

    Options:
        side: of the picture, in pixels; channels: of the first layer, they double twice.
        grid: the last maps are averaged over a grid of this many cells a side; 1 discards
            positions.
        mirror, shift: see `ImageEncoder`.
    """

    trunk_parts = ("layers",)

    def __init__(
        self,
        side: int = 32,
        channels: int = 16,
        grid: int = 1,
        mirror: bool = True,
        shift: float = 0.0,
    ) -> None:
        super().__init__(side)
        self.mirror, self.shift, self.grid = mirror, shift, grid
        widths = (3, channels, 2 * channels, 4 * channels)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.GELU()
                )
                for a, b in pairwise(widths)
            )
        )
        self.token_width = widths[-1]
        self.width = widths[-1] * grid**2

    @classmethod
    def create(cls, config: EncoderConfig) -> SmallCnn:
        no_source(config)
        return cls(**config.options)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> SmallCnn:
        return cls(**config.options)

    def trainable_blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def trunk(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """The maps of the last layer."""
        (pixels_BCHW,) = batch
        return (self.layers(pixels_BCHW.float() / 127.5 - 1.0),)

    def forward(self, *batch: Tensor) -> Features:
        (maps_BFHW,) = self.trunk(*batch)
        return Features(
            pooled_BF=joined(F.adaptive_avg_pool2d(maps_BFHW, self.grid).flatten(1)),
            tokens_BTF=maps_BFHW.flatten(2).transpose(1, 2),
        )


class FrameMean(Encoder):
    """Videos by the picture encoder of the same version: the mean of the unit vectors of some
    frames, at length 1 (CLIP4Clip, arXiv 2104.08860). The network is in memory and in the version's
    weights once, as the picture encoder's.

    Options:
        frames: T; see `braid.encoders.decoding.videos`.
    """

    modality = "video"

    def __init__(self, owner: ImageEncoder, frames: int = FRAMES) -> None:
        super().__init__()
        if find_spec("av") is None:  # else each video would be a dead letter
            raise CheckpointError(EXTRA)
        self._owner = (owner,)  # not as a module: its weights are in the picture encoder
        self.frames = frames
        self.width = owner.width
        self.settings = {"frames": frames, "of": "middles", "picture": dict(owner.settings)}

    @property
    def owner(self) -> ImageEncoder:
        return self._owner[0]

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        raise CheckpointError(f"{config.kind} has no network of its own: shares must name one")

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        return cls.create(config)

    @classmethod
    def over(cls, config: EncoderConfig, owner: Encoder) -> Self:
        if not isinstance(owner, ImageEncoder):
            raise CheckpointError(f"{config.kind} must share the network of a picture encoder")
        if owner.whole_files:
            raise CheckpointError(
                f"{config.kind}: the transform of this model's own library takes picture files, "
                "not frames"
            )
        return cls(owner, **config.options)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        """A video file as uint8[T, 3, S, S]."""
        if not isinstance(value, bytes):
            raise BadInput("video", f"must be bytes, is {type(value).__name__}")
        owner = self.owner
        frames_TCHW = video(value, self.frames, owner.fit or owner.side, limits)
        return frames_TCHW, Cost(pixels=self.frames * owner.side**2)

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        return self.owner.collate(
            [frame_CHW for frames_TCHW in inputs for frame_CHW in frames_TCHW]
        )

    def forward(self, *batch: Tensor) -> Features:
        pooled_NF = self.owner(*batch).pooled_BF
        mean_BF = pooled_NF.unflatten(0, (-1, self.frames)).mean(1)
        return Features(pooled_BF=F.normalize(mean_BF, dim=1))

    def size(self, value: Array) -> int:
        return self.frames * self.owner.side**2

    @property
    def budget(self) -> int:
        return self.owner.budget
