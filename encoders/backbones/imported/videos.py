"""Networks of `transformers` for videos: VideoMAE, and X-CLIP's video tower.

Shapes: B videos, T frames, C channels, H and W sides, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...config import EncoderConfig, Limits
from ...decoding.isolation import video
from ...decoding.videos import EXTRA
from ...errors import BadInput, CheckpointError
from ...types import Cost
from ..base import Array, Encoder, Features, joined
from ..hf import folder_of
from ..sub_batches import one_thread
from .networks import (
    Blueprint,
    blocks_of,
    described,
    keep_parts,
    measured,
    preprocessor,
    pretrained,
)


class VideoNetwork(Encoder):
    """A network for videos alone behind the checkpoint's own processor, such as VideoMAE (Tong et
    al. 2022, arXiv 2203.12602): the mean of its last states. It sees as many frames as its config
    says, the middles of as many equal parts of the film.

    `source` is a hub name or a local folder with `preprocessor_config.json`.
    """

    modality = "video"
    part: ClassVar[str | None] = None
    """Where a larger model has this one."""
    parts: ClassVar[Sequence[str]] = ()
    """Of a joint model: the parts that are kept."""
    preprocessing = "image processor"
    of = "middles"
    """The frames that are seen, see `braid.encoders.decoding.videos.SAMPLED`."""

    def __init__(self, net: nn.Module, blueprint: Blueprint, folder: Path) -> None:
        super().__init__()
        if find_spec("av") is None:  # else each video would be a dead letter
            raise CheckpointError(EXTRA)
        self.net, self.blueprint, self.width = net, blueprint, blueprint.width
        self.processor = preprocessor(self.preprocessing, folder)
        self.frames = self.count()
        shapes = [(64, 48, 3), (48, 64, 3)]
        made = {self.transform(np.zeros(shape, dtype=np.uint8)).shape for shape in shapes}
        if len(made) > 1:
            raise CheckpointError(f"frames have the sides {made}; computed are those of one shape")
        self.pixels = self.frames * made.pop()[1:].numel()
        self.settings = {
            "frames": self.frames,
            "of": self.of,
            "processor": described(self.processor),
            "scale": "float32",
        }

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """The network and the processor at `config.source`.

        Raises:
            CheckpointError: nothing there, a weight is missing, there is no processor, or one
                whose frames have no fixed number or shape.
        """
        if config.source is None or config.options:
            raise CheckpointError(f"a {config.kind} needs a source, and takes no options")
        folder = folder_of(config.source)
        net, blueprint = pretrained(folder, cls.part)
        encoder = cls(keep_parts(net, cls.parts), blueprint, folder)
        black_THWC = np.zeros((encoder.frames, 64, 64, 3), dtype=np.uint8)
        with torch.no_grad():
            width, _ = measured(encoder(*encoder.collate([encoder.processed(black_THWC)])))
        return cls(net, replace(blueprint, width=width), folder)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        blueprint = Blueprint.at(assets)
        return cls(keep_parts(blueprint.make(), cls.parts), blueprint, assets)

    def save_assets(self, folder: Path) -> None:
        self.blueprint.write(folder)
        self.processor.save_pretrained(folder)

    def trainable_blocks(self) -> list[nn.Module]:
        return blocks_of(self)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        """A video file as float32[T, C, H, W]."""
        if not isinstance(value, bytes):
            raise BadInput("video", f"must be bytes, is {type(value).__name__}")
        frames_THWC = video(value, self.frames, None, limits, self.of)
        return self.processed(frames_THWC), Cost(pixels=self.pixels)

    def processed(self, frames_THWC: Array) -> Array:
        """What the processor makes of frames: one after the other, since it copies them."""
        with torch.inference_mode(), one_thread():
            return torch.stack([self.transform(one) for one in frames_THWC]).numpy()

    def transform(self, frame_HWC: Array) -> Tensor:
        """What the processor makes of a frame, float32[C, H, W]."""
        batch = self.processor([Image.fromarray(frame_HWC)], return_tensors="pt")
        pixels_CHW: Tensor = batch["pixel_values"][0, 0]
        return pixels_CHW

    def count(self) -> int:
        """The frames of a video."""
        config = self.blueprint.config
        return int(config.get("vision_config", config)["num_frames"])

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(np.stack(inputs)),)

    def size(self, value: Array) -> int:
        return self.pixels

    @property
    def budget(self) -> int:
        return 4 * self.pixels

    def forward(self, *batch: Tensor) -> Features:
        return Features(pooled_BF=joined(self.see(*batch)))

    def see(self, pixels_BTCHW: Tensor) -> Tensor:
        """The vectors of processed frames, float32[B, F]."""
        states_BTF: Tensor = self.net(pixel_values=pixels_BTCHW).last_hidden_state
        return states_BTF.mean(1)


class JointVideo(VideoNetwork):
    """The video tower of X-CLIP (Ni et al. 2022, arXiv 2208.02816), in the space that it shares
    with the texts. X-CLIP's own scores change each text by the video that it is compared with; a
    vector for search cannot."""

    parts = ("vision_model", "visual_projection", "mit")

    def see(self, pixels_BTCHW: Tensor) -> Tensor:
        net: Any = self.net
        pooled_BF: Tensor = net.get_video_features(pixel_values=pixels_BTCHW).pooler_output
        return pooled_BF
