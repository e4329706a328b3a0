"""Videos as X-CLIP of `transformers` embeds them.

Shapes: B videos, T frames, C channels, H and W sides, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...config import EncoderConfig, Limits
from ...decoding.isolation import video
from ...decoding.pictures import Fit
from ...decoding.videos import EXTRA
from ...errors import BadInput, CheckpointError
from ...types import Cost
from ..base import Array, Encoder, Features, joined
from ..hf import folder_of
from ..image_towers import processing
from .networks import Blueprint, blocks_of, keep_parts, measured, pretrained

SETTINGS = "video.json"


class JointVideo(Encoder):
    """The video tower of X-CLIP (Ni et al. 2022, arXiv 2208.02816), in the space that it shares
    with the texts. X-CLIP's own scores change each text by the video that it is compared with; a
    vector for search cannot.

    It sees as many frames as its config says, the middles of as many equal parts of the film, each
    brought to size as the checkpoint's image processor does.

    `source` is a hub name or a local folder with `preprocessor_config.json`.
    """

    modality = "video"
    parts = ("vision_model", "visual_projection", "mit")

    def __init__(self, net: nn.Module, blueprint: Blueprint, settings: Mapping[str, Any]) -> None:
        super().__init__()
        if find_spec("av") is None:  # else each video would be a dead letter
            raise CheckpointError(EXTRA)
        self.net, self.blueprint, self.width = net, blueprint, blueprint.width
        self.settings = {"of": "middles", **settings}
        self.frames, self.fit = int(settings["frames"]), Fit(**settings["fit"])
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            row_C = 255.0 * torch.tensor(settings[name])
            self.register_buffer(name, row_C.view(1, 1, -1, 1, 1), persistent=False)

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """The network and the processor at `config.source`.

        Raises:
            CheckpointError: nothing there, a weight is missing, there is no processor, or one that
                does more than resize, crop, scale and normalise.
        """
        if config.source is None or config.options:
            raise CheckpointError(f"a {config.kind} needs a source, and takes no options")
        folder = folder_of(config.source)
        net, blueprint = pretrained(folder)
        fit, mean, std = processing(str(folder))
        frames = blueprint.config["vision_config"]["num_frames"]
        settings = {"frames": frames, "fit": asdict(fit), "mean": mean, "std": std}
        encoder = cls(keep_parts(net, cls.parts), blueprint, settings)
        black_TCHW = np.zeros((encoder.frames, 3, fit.side, fit.side), dtype=np.uint8)
        with torch.no_grad():
            width, _ = measured(encoder(*encoder.collate([black_TCHW])))
        return cls(net, replace(blueprint, width=width), settings)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        blueprint = Blueprint.at(assets)
        net = blueprint.make()
        settings = json.loads((assets / SETTINGS).read_text(encoding="utf-8"))
        return cls(keep_parts(net, cls.parts), blueprint, settings)

    def save_assets(self, folder: Path) -> None:
        self.blueprint.write(folder)
        own = {name: self.settings[name] for name in ("frames", "fit", "mean", "std")}
        (folder / SETTINGS).write_text(json.dumps(own), encoding="utf-8")

    def trainable_blocks(self) -> list[nn.Module]:
        return blocks_of(self)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        """A video file as uint8[T, 3, H, W]."""
        if not isinstance(value, bytes):
            raise BadInput("video", f"must be bytes, is {type(value).__name__}")
        frames_TCHW = video(value, self.frames, self.fit, limits)
        return frames_TCHW, Cost(pixels=self.frames * self.fit.side**2)

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(np.stack(inputs)),)

    def size(self, value: Array) -> int:
        return self.frames * self.fit.side**2

    @property
    def budget(self) -> int:
        return 4 * self.frames * self.fit.side**2

    def forward(self, *batch: Tensor) -> Features:
        (pixels_BTCHW,) = batch
        net: Any = self.net
        out = net.get_video_features(pixel_values=(pixels_BTCHW.float() - self.mean) / self.std)
        return Features(pooled_BF=joined(out.pooler_output))
