"""Picture encoders from `transformers`: ResNet, ViT, and the vision towers of CLIP and SigLIP.

Pictures are decoded like those of other encoders (whole, on white), or brought to size as the
checkpoint's own image processor does, and normalised on the device with the mean and standard
deviation of the checkpoint.

Shapes: B pictures, C channels, H and W sides, T patches or cells of the feature map, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..config import EncoderConfig
from ..decoding.pictures import Fit
from ..errors import CheckpointError
from .base import Features, joined
from .hf import (
    errors_only,
    locate,
    make,
    new_config,
    read,
    read_config,
    resolve_option,
    write_config,
)
from .image import ImageEncoder

PREPROCESSING = "preprocessing.json"
HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
Triple = Sequence[float]
PROCESSORS = (
    "BitImageProcessor",
    "BlipImageProcessor",
    "ChineseCLIPImageProcessor",
    "CLIPImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
)
"""The image processors of transformers that `Fit` describes."""


class VisionModel(ImageEncoder):
    """A vision model of transformers.

    Options:
        side: pixels; must agree with the checkpoint. With random weights: the config's
            `image_size`, or 224.
        mean, std: three numbers each, of pixels between 0 and 1; must agree with the checkpoint.
        config: with random weights (`source` is None), fields of the transformers config.
        fit: "checkpoint" brings pictures to size as the checkpoint's image processor does, by its
            resizing and cropping; None shows the whole picture on white.

    `source` is a hub name or a local folder with `preprocessor_config.json`.
    """

    model: ClassVar[str]
    """The class in transformers; `config_class` is the class of its config."""
    config_class: ClassVar[str]
    usual: ClassVar[tuple[Triple, Triple]]
    """Mean and deviation where the weights are random."""

    def __init__(self, net: nn.Module, side: int, mean: Triple, std: Triple) -> None:
        super().__init__(side)
        self.net = net
        self.settings = {**self.settings, "mean": list(mean), "std": list(std)}
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255.0 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        image_size = getattr(self.config, "image_size", None)
        resolve_option("side", side, _square(image_size), "the model's config (image_size)")

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.net.config

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """Weights and preprocessing from `config.source`, or random weights if that is None.

        Raises:
            CheckpointError: nothing there, a weight or the preprocessing is missing, or an option
                contradicts it.
        """
        options = dict(config.options)
        if (fit := options.pop("fit", None)) is None:
            return cls._create(config.source, **options)
        if config.source is None or fit != "checkpoint":
            raise CheckpointError(f"fit must be 'checkpoint', with a source, is {fit!r}")
        own_fit, mean, std = processing(config.source)
        model, more = cls.architecture(**options)
        encoder = cls(read(model, config.source, **more), own_fit.side, mean, std, **options)
        return encoder.fitting(own_fit)

    def fitting(self, fit: Fit) -> Self:
        """This encoder, for pictures that are brought to size by `fit`."""
        self.fit, self.settings = fit, {**self.settings, "fit": asdict(fit)}
        return self

    @classmethod
    def _create(
        cls,
        source: str | None,
        *,
        config: Mapping[str, Any] | None = None,
        side: int | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
        **own: Any,
    ) -> Self:
        model, more = cls.architecture(**own)
        if source is None:
            net = make(model, new_config(cls.config_class, config or {}), **more)
            size = _square(getattr(net.config, "image_size", None))
            usual_mean, usual_std = cls.usual
            return cls(net, side or size or 224, mean or usual_mean, std or usual_std, **own)
        if config is not None:
            raise CheckpointError(
                f"options config: {source!r} brings its own; it is for random weights"
            )
        options = {"side": side, "mean": mean, "std": std}
        settings = preprocessing(source, options)
        return cls(read(model, source, **more), **settings, **own)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        own = {
            k: v
            for k, v in config.options.items()
            if k not in ("config", "side", "mean", "std", "fit")
        }
        model, more = cls.architecture(**own)
        net = make(model, read_config(assets, cls.config_class), **more)
        settings = json.loads((assets / PREPROCESSING).read_text(encoding="utf-8"))
        fit = settings.pop("fit", None)
        encoder = cls(net, **settings, **own)
        return encoder if fit is None else encoder.fitting(Fit(**fit))

    def save_assets(self, folder: Path) -> None:
        write_config(self.net, folder)
        settings = {name: self.settings[name] for name in ("side", "mean", "std")}
        if self.fit is not None:
            settings["fit"] = asdict(self.fit)
        (folder / PREPROCESSING).write_text(json.dumps(settings, indent=1), encoding="utf-8")

    @classmethod
    def architecture(cls, **own: Any) -> tuple[str, dict[str, Any]]:
        """The class in transformers and its further arguments, by the encoder's own options."""
        return cls.model, {}

    def trunk(self, *batch: Tensor) -> tuple[Tensor, ...]:
        (pixels_BCHW,) = batch
        return self.see((pixels_BCHW.float() - self.mean) / self.std)

    def forward(self, *batch: Tensor) -> Features:
        pooled_BF, tokens_BTF = self.trunk(*batch)
        return Features(pooled_BF=joined(pooled_BF), tokens_BTF=tokens_BTF)

    def see(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """`pooled_BF` and `tokens_BTF` of normalised pictures."""
        raise NotImplementedError


class ResNet(VisionModel):
    """He et al. 2015, arXiv 1512.03385. The last feature map's mean; its cells are the tokens."""

    model, config_class, usual = "ResNetModel", "ResNetConfig", IMAGENET

    def __init__(self, net: nn.Module, side: int, mean: Triple, std: Triple) -> None:
        super().__init__(net, side, mean, std)
        self.width = self.token_width = int(self.config.hidden_sizes[-1])

    def trainable_blocks(self) -> list[nn.Module]:
        """The residual blocks of all stages."""
        net: Any = self.net
        return [block for stage in net.encoder.stages for block in stage.layers]

    def see(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(pixels_BCHW)
        return out.pooler_output.flatten(1), out.last_hidden_state.flatten(2).transpose(1, 2)


class Vit(VisionModel):
    """Dosovitskiy et al. 2020, arXiv 2010.11929.

    Options, besides those of `VisionModel`:
        pooler: the model's own pooler; False takes the class token's last state, for a checkpoint
            that has no pooler (one of a classifier).
    """

    model, config_class, usual = "ViTModel", "ViTConfig", (HALF, HALF)

    def __init__(
        self, net: nn.Module, side: int, mean: Triple, std: Triple, *, pooler: bool = True
    ) -> None:
        super().__init__(net, side, mean, std)
        self.pooler = pooler
        self.width = int(self.config.pooler_output_size if pooler else self.config.hidden_size)
        self.token_width = int(self.config.hidden_size)

    @classmethod
    def architecture(cls, *, pooler: bool = True, **own: Any) -> tuple[str, dict[str, Any]]:
        return cls.model, {"add_pooling_layer": pooler}

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list(net.layers)

    def see(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(pixels_BCHW)
        states_BTF = out.last_hidden_state
        return out.pooler_output if self.pooler else states_BTF[:, 0], states_BTF[:, 1:]


class ClipImage(VisionModel):
    """Radford et al. 2021, arXiv 2103.00020: the vision tower.

    Options, besides those of `VisionModel`:
        projected: into the space that CLIP's two towers share; False takes the pooler's output.
    """

    model, config_class, usual = "CLIPVisionModelWithProjection", "CLIPVisionConfig", OPENAI

    def __init__(
        self, net: nn.Module, side: int, mean: Triple, std: Triple, *, projected: bool = True
    ) -> None:
        super().__init__(net, side, mean, std)
        self.projected = projected
        self.width = int(self.config.projection_dim if projected else self.config.hidden_size)
        self.token_width = int(self.config.hidden_size)

    @classmethod
    def architecture(cls, *, projected: bool = True, **own: Any) -> tuple[str, dict[str, Any]]:
        return cls.model if projected else "CLIPVisionModel", {}

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list((net.vision_model if self.projected else net).encoder.layers)

    def see(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(pixels_BCHW)
        return out.image_embeds if self.projected else out.pooler_output, (
            out.last_hidden_state[:, 1:]
        )


class SiglipImage(VisionModel):
    """Zhai et al. 2023, arXiv 2303.15343: the vision tower. Its pooling head is the projection."""

    model, config_class, usual = "SiglipVisionModel", "SiglipVisionConfig", (HALF, HALF)

    def __init__(self, net: nn.Module, side: int, mean: Triple, std: Triple) -> None:
        super().__init__(net, side, mean, std)
        if not getattr(self.config, "vision_use_head", True):
            raise CheckpointError("this SigLIP vision tower has no pooling head")
        self.width = self.token_width = int(self.config.hidden_size)

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list(net.encoder.layers)

    def see(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(pixels_BCHW)
        return out.pooler_output, out.last_hidden_state


def processing(source: str) -> tuple[Fit, list[float], list[float]]:
    """How the image processor at `source` brings pictures to size; mean and standard deviation of
    pixels between 0 and 1.

    Raises:
        CheckpointError: there is none, or it does more than resize, crop, scale and normalise.
    """
    from transformers import AutoImageProcessor

    place, local = locate(source)
    with errors_only():
        try:
            one = AutoImageProcessor.from_pretrained(place, local_files_only=local)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(f"no image processor at {source!r}: {error}") from error
    name = type(one).__name__.removesuffix("Fast").removesuffix("Pil")
    size, crop = dict(one.size or {}), dict(one.crop_size or {})
    side = _square(crop if one.do_center_crop else size)
    shortest = size.get("shortest_edge")
    named = sorted(key for key, value in size.items() if value)
    if (
        name not in PROCESSORS
        or side is None
        or not one.do_resize
        or named not in (["shortest_edge"], ["height", "width"])
        or (shortest is not None and not one.do_center_crop)
        or (shortest is None and _square(size) != side)
    ):
        raise CheckpointError(
            f"{source!r}: pictures are resized to {size} and cropped to {crop} by "
            f"{type(one).__name__}; computed is a square that {', '.join(PROCESSORS)} makes"
        )
    scale = 255.0 * float(one.rescale_factor) if one.do_rescale else 255.0
    mean, std = (one.image_mean, one.image_std) if one.do_normalize else (0.0, 1.0)
    fit = Fit(side=side, shortest=shortest, resample=int(one.resample))
    return fit, *([v / scale for v in _three(values) or ()] for values in (mean, std))  # type: ignore[return-value]


def preprocessing(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`side`, `mean` and `std` of the checkpoint at `source`; no option may contradict them.

    Raises:
        CheckpointError: a contradiction, or one of them is set in neither.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    place, local = locate(source)
    with errors_only():
        try:
            raw, _ = ImageProcessingMixin.get_image_processor_dict(place, local_files_only=local)
            why = ""
        except OSError as error:
            raw, why = {}, f" ({error})"
    stored = _checkpoints_own(raw, source)
    where = f"{source!r} (preprocessor_config.json)"
    settings = {
        name: resolve_option(
            name, value if name == "side" else _three(value), stored.get(name), where
        )
        for name, value in options.items()
    }
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        raise CheckpointError(
            f"{where} does not say {', '.join(missing)}: give them as options{why}"
        )
    return settings


def _checkpoints_own(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A `preprocessor_config.json` as `side`, `mean` and `std`, of pixels between 0 and 1."""
    settings: dict[str, Any] = {}
    size = raw.get("crop_size") if raw.get("do_center_crop") else raw.get("size")
    if size is not None:
        settings["side"] = _square(size)
        if settings["side"] is None:
            raise CheckpointError(f"side: {source!r} takes pictures of {size}, which is no square")
    # transformers computes (pixel * factor - mean) / std; the factor is 1/255 by default, and is
    # missing in old files.
    factor = 255.0 * float(raw.get("rescale_factor") or 1 / 255)
    scale = factor if raw.get("do_rescale", True) else 255.0
    plain = {"mean": raw.get("image_mean"), "std": raw.get("image_std")}
    if raw.get("do_normalize", True) is False:
        plain = {"mean": 0.0, "std": 1.0}
    for name, values in plain.items():
        three = _three(values)
        if three is not None:
            settings[name] = [round(value / scale, 8) for value in three]
    return settings


def _three(value: Any) -> list[float] | None:
    """A mean or deviation: one number for each colour, or one for all."""
    if value is None:
        return None
    return [float(part) for part in (value if isinstance(value, Sequence) else [value] * 3)]


def _square(size: Any) -> int | None:
    """The side of a square size in any of transformers' notations; None for other sizes."""
    if isinstance(size, Mapping):
        size = [size[k] for k in ("height", "width", "shortest_edge") if size.get(k) is not None]
    sides = {int(side) for side in size} if isinstance(size, Sequence) else {size}
    return sides.pop() if len(sides) == 1 else None
