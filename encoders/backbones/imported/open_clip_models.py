"""Joint models of open_clip, with its own transforms and tokenisers
(https://github.com/mlfoundations/open_clip).

Shapes: B texts or pictures, T tokens, F features.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...config import EncoderConfig
from ...errors import CheckpointError
from ..base import Array, Features, joined
from ..hf import CONFIG, folder_of
from ..text import TextEncoder
from .libraries import library
from .networks import blocks_of, keep_parts
from .pictures import TransformedImage

OPEN_CLIP = "open_clip_config.json"
SCALES = ("logit_scale", "logit_bias")
"""Parameters of a joint model that embed nothing."""


class _Joint:
    """What both towers keep in a version: the configuration of the whole model, and that of a text
    network of transformers in it."""

    def __init__(self, folder: Path, net: nn.Module) -> None:
        self.raw = (folder / OPEN_CLIP).read_text(encoding="utf-8")
        text: Any = getattr(net, "text", None)
        config = getattr(text, "config", None)
        self.text = None if config is None else str(config.to_json_string(use_diff=False))

    def write(self, folder: Path) -> None:
        (folder / OPEN_CLIP).write_text(self.raw, encoding="utf-8")
        if self.text is not None:
            (folder / CONFIG).write_text(self.text, encoding="utf-8")


def joint_model(folder: Path) -> nn.Module:
    """The whole model in a folder of open_clip.

    Raises:
        CheckpointError: a weight is missing, open_clip is not installed, or does not know a part.
    """
    lib = library("open_clip")
    try:
        net: nn.Module = lib.create_model(f"local-dir:{folder}", require_pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise CheckpointError(f"no model of open_clip in {folder}: {error}") from error
    return net.eval()


def _restored(assets: Path) -> nn.Module:
    """The whole model with random weights; nothing is looked up on the network."""
    text = json.loads((assets / OPEN_CLIP).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    if "hf_model_name" in text:
        text = {**text, "hf_model_name": str(assets), "hf_model_pretrained": False}
    net: nn.Module = library("open_clip").create_model(
        f"local-dir:{assets}", load_weights=False, pretrained_text=False, text_cfg=text
    )
    return net.eval()


class OpenClipImage(TransformedImage):
    """The picture tower of a model of open_clip.

    `source` is a hub name or a local folder with `open_clip_config.json`.
    """

    def __init__(self, net: nn.Module, folder: Path, width: int) -> None:
        lib = library("open_clip").transform
        visual: Any = net.visual
        described = visual.preprocess_cfg
        transform = lib.image_transform_v2(lib.PreprocessCfg(**described), is_train=False)
        super().__init__(transform, {"open_clip": json.loads(json.dumps(described))})
        joint = _Joint(folder, net)
        self.net, self.joint, self.width = keep_parts(net, ("visual",)), joint, width

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """The tower at `config.source`. Raises CheckpointError as `joint_model`."""
        folder = _folder(config)
        net = joint_model(folder)
        return cls(net, folder, _width(folder))

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        return cls(_restored(assets), assets, _width(assets))

    def save_assets(self, folder: Path) -> None:
        self.joint.write(folder)

    def forward(self, *batch: Tensor) -> Features:
        net: Any = self.net
        return Features(pooled_BF=joined(net.encode_image(*batch)))


class OpenClipText(TextEncoder):
    """The text tower of a model of open_clip, behind its own tokeniser.

    `source` is a hub name or a local folder with `open_clip_config.json`.
    """

    def __init__(self, net: nn.Module, folder: Path, width: int) -> None:
        tokenizer = library("open_clip").get_tokenizer(f"local-dir:{folder}")
        super().__init__(int(tokenizer.context_length), padding=0)
        self.tokenizer = tokenizer
        self.joint = _Joint(folder, net)
        own = [*dict(net.named_children()), *dict(net.named_parameters(recurse=False))]
        self.net = keep_parts(net, [one for one in own if one not in ("visual", *SCALES)])
        self.width = width
        self.settings = {"max_tokens": self.max_tokens, "open_clip": json.loads(self.joint.raw)}
        self._lock = threading.Lock()  # a tokeniser that pads is changed by its call

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """The tower at `config.source`.

        Raises:
            CheckpointError: as `joint_model`, or there is no tokeniser.
        """
        folder = _folder(config)
        net = joint_model(folder)
        try:
            return cls(net, folder, _width(folder))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"no tokeniser at {config.source!r}: {error}") from error

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        return cls(_restored(assets), assets, _width(assets))

    def save_assets(self, folder: Path) -> None:
        self.joint.write(folder)
        save = getattr(self.tokenizer, "save_pretrained", None)
        if save is not None:  # else it is the one that open_clip ships
            save(folder)

    def trainable_blocks(self) -> list[nn.Module]:
        return blocks_of(self.net)

    def tokenize(self, text: str) -> list[int]:
        with self._lock:
            ids: list[int] = self.tokenizer([text])[0].tolist()
        return ids  # as long as the tower takes, with padding

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        return value

    def forward(self, *batch: Tensor) -> Features:
        net: Any = self.net
        return Features(pooled_BF=joined(net.encode_text(batch[0])))


def temperature(folder: Path) -> float:
    """By what the model at `folder` multiplies cosines."""
    net: Any = joint_model(folder)
    return float(torch.exp(net.logit_scale).item())


def _folder(config: EncoderConfig) -> Path:
    if config.source is None or config.options:
        raise CheckpointError(f"a {config.kind} needs a source, and takes no options")
    return folder_of(config.source)


def _width(folder: Path) -> int:
    raw = json.loads((folder / OPEN_CLIP).read_text(encoding="utf-8"))
    return int(raw["model_cfg"]["embed_dim"])
