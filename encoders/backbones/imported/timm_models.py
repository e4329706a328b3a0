"""Picture encoders of timm, with its own transforms (https://github.com/huggingface/pytorch-image-models).

Shapes: B pictures, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from zlib import crc32

from torch import Tensor, nn

from ...config import EncoderConfig
from ...errors import CheckpointError
from ..base import Features, joined
from ..hf import CONFIG, folder_of
from .libraries import library
from .pictures import TransformedImage

WIDTH = "width.json"


class TimmImage(TransformedImage):
    """A model of timm without its classifier: the vector that the classifier would get.

    `source` is a hub name or a local folder with a `config.json` of timm.
    """

    def __init__(self, net: nn.Module, config: str, width: int) -> None:
        data = library("timm").data
        described: Mapping[str, Any] = data.resolve_model_data_config(net)
        super().__init__(
            data.create_transform(**described, is_training=False),
            {"timm": f"{crc32(config.encode()):08x}", **json.loads(json.dumps(described))},
        )
        self.net, self._config, self.width = net, config, width

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """The model at `config.source`.

        Raises:
            CheckpointError: nothing there, a weight is missing, timm is not installed, or does not
                know the architecture.
        """
        if config.source is None or config.options:
            raise CheckpointError("a timm model needs a source, and takes no options")
        folder = folder_of(config.source)
        try:
            net = _made(folder, pretrained=True)
            text = (folder / CONFIG).read_text(encoding="utf-8")
            width, _ = cls(net, text, 0).measure()
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"no model of timm at {config.source!r}: {error}") from error
        return cls(net, text, width)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        text = (assets / CONFIG).read_text(encoding="utf-8")
        width = json.loads((assets / WIDTH).read_text(encoding="utf-8"))
        return cls(_made(assets, pretrained=False), text, width)

    def save_assets(self, folder: Path) -> None:
        (folder / CONFIG).write_text(self._config, encoding="utf-8")
        (folder / WIDTH).write_text(json.dumps(self.width), encoding="utf-8")

    def forward(self, *batch: Tensor) -> Features:
        return Features(pooled_BF=joined(self.net(*batch)))


def _made(folder: Path, *, pretrained: bool) -> nn.Module:
    net: nn.Module = library("timm").create_model(
        f"local-dir:{folder}", pretrained=pretrained, num_classes=0
    )
    return net.eval()
