"""Pictures as the transform of a model's own library makes them, and networks of `transformers`.

Shapes: B pictures, C channels, H and W sides, T patches, F features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...config import EncoderConfig, Limits
from ...decoding.isolation import picture
from ...errors import BadInput, CheckpointError
from ...types import Cost
from ..base import Array, Features, joined
from ..hf import folder_of
from ..image import ImageEncoder
from ..image_towers import processing
from ..sub_batches import one_thread
from .networks import (
    TOWERS,
    Blueprint,
    blocks_of,
    described,
    keep_parts,
    measured,
    preprocessor,
    pretrained,
    tokens_of,
)

Transform = Callable[[Image.Image], Tensor]
"""From an RGB picture to float32[...]: of one shape, whatever the picture's."""


class TransformedImage(ImageEncoder):
    """Base class: pictures decoded whole, upright and without transparency, then transformed on the
    CPU.

    Args:
        transform: of the model's own library; called by several threads.
        settings: JSON values that describe it.
    """

    def __init__(self, transform: Transform, settings: Mapping[str, Any]) -> None:
        shape = transform(Image.new("RGB", (64, 64))).shape
        super().__init__(max(shape[-2:]))
        self.transform = transform
        self.settings = {"fit": "transform", **settings}

    @property
    def whole_files(self) -> bool:
        return self.fit is None

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        if not isinstance(value, bytes):
            raise BadInput("image", f"must be bytes, is {type(value).__name__}")
        pixels_HWC = picture(value, None, limits)
        height, width = pixels_HWC.shape[:2]
        # A transform that scales the shorter side makes a line of one pixel very long.
        scaled = max(height, width) * self.side**2 // min(height, width)
        if scaled > limits.image_pixels:
            raise BadInput(
                "image",
                f"{width}x{height} pixels become {scaled} where the shorter side has {self.side}, "
                f"the limit is {limits.image_pixels} pixels",
            )
        try:
            with torch.inference_mode(), one_thread():
                array: Array = self.transform(Image.fromarray(pixels_HWC)).numpy()
        except (ValueError, RuntimeError) as error:  # such as a side of less than one pixel
            reason = f"{width}x{height} pixels that the model's transform refuses: {error}"
            raise BadInput("image", reason) from error
        return array, Cost(pixels=self.side**2)

    def measure(self) -> tuple[int, int]:
        """The widths of the vectors and tokens, by encoding a picture."""
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (90, 120, 150)).save(file, "PNG")
        with torch.no_grad():
            return measured(self(*self.collate([self.prepare(file.getvalue(), Limits())[0]])))

    def trainable_blocks(self) -> list[nn.Module]:
        return blocks_of(self)


class ProcessedImage(TransformedImage):
    """A network of transformers behind the checkpoint's own image processor.

    Where `braid.encoders.decoding.pictures.Fit` describes the processor, the picture is brought to
    size where it is decoded and normalised on the device; else the processor is called.

    `source` is a hub name or a local folder with `preprocessor_config.json`.
    """

    parts: ClassVar[Sequence[str]] = ()
    """Of a joint model: the parts that are kept."""

    def __init__(self, net: nn.Module, blueprint: Blueprint, folder: Path) -> None:
        processor = preprocessor("image processor", folder)
        super().__init__(_transform_of(processor), {"processor": described(processor)})
        self.net, self.blueprint, self.processor = net, blueprint, processor
        mean, std = [0.0], [1.0]
        try:
            self.fit, *normal = processing(str(folder))
            mean, std = ([255.0 * value for value in values] for values in normal)
            self.settings = {**self.settings, "fit": asdict(self.fit), "scale": "uint8"}
        except CheckpointError:
            self.fit = None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.width, self.token_width = blueprint.width, blueprint.token_width

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """The network and the processor at `config.source`.

        Raises:
            CheckpointError: nothing there, a weight is missing, or there is no processor.
        """
        if config.source is None or config.options:
            raise CheckpointError(f"a {config.kind} needs a source, and takes no options")
        folder = folder_of(config.source)
        net, blueprint = pretrained(folder)
        encoder = cls(keep_parts(net, cls.parts), blueprint, folder)
        width, token_width = encoder.measure()
        return cls(net, replace(blueprint, width=width, token_width=token_width), folder)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        blueprint = Blueprint.at(assets)
        return cls(keep_parts(blueprint.make(), cls.parts), blueprint, assets)

    def save_assets(self, folder: Path) -> None:
        self.blueprint.write(folder)
        self.processor.save_pretrained(folder)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        if self.fit is None:
            return super().prepare(value, limits)
        return ImageEncoder.prepare(self, value, limits)

    def forward(self, *batch: Tensor) -> Features:
        (pixels_BCHW,) = batch
        pooled_BF, tokens_BTF = self.see((pixels_BCHW.float() - self.mean) / self.std)
        return Features(pooled_BF=joined(pooled_BF), tokens_BTF=tokens_BTF)

    def see(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors and tokens of normalised pictures."""
        raise NotImplementedError


class VisionNetwork(ProcessedImage):
    """A network for pictures alone, such as ViT or DINOv2: its pooler's output; without a pooler
    the state of its class token."""

    def see(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        out = self.net(pixels_BCHW)
        pooled = getattr(out, "pooler_output", None)
        pooled = out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return pooled, tokens_of(out)


class JointImage(ProcessedImage):
    """The picture tower of a joint model, in the space that its towers share."""

    parts = tuple(TOWERS["image"])

    def see(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        net: Any = self.net
        out = net.get_image_features(pixel_values=pixels_BCHW)
        return out.pooler_output, tokens_of(out)


class NaflexImage(ProcessedImage):
    """The picture tower of SigLIP 2 with any aspect ratio (Tschannen et al. 2025, arXiv 2502.14786,
    section 2.4.2): as many patches as the processor admits, of the picture's own shape.

    A prepared picture is float32[1 + T, F]: its rows and columns of patches, then the patches.
    """

    parts = tuple(TOWERS["image"])
    mirror = False

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        most = int(self.processor.max_num_patches)
        patches_BTF = torch.zeros(len(inputs), most, inputs[0].shape[1])
        shapes_B2 = torch.tensor([[int(side) for side in one[0, :2]] for one in inputs])
        for row, one in enumerate(inputs):
            patches_BTF[row, : len(one) - 1] = torch.from_numpy(one[1:])
        return patches_BTF, shapes_B2

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        return value

    def forward(self, *batch: Tensor) -> Features:
        net: Any = self.net
        patches_BTF, shapes_B2 = batch
        places_T = torch.arange(patches_BTF.shape[1], device=patches_BTF.device)
        mask_BT = places_T < shapes_B2.prod(1, keepdim=True)
        out = net.get_image_features(
            pixel_values=patches_BTF, pixel_attention_mask=mask_BT.int(), spatial_shapes=shapes_B2
        )
        return Features(
            pooled_BF=joined(out.pooler_output), tokens_BTF=out.last_hidden_state, mask_BT=mask_BT
        )


def _transform_of(processor: Any) -> Transform:
    def transform(image: Image.Image) -> Tensor:
        batch = processor(images=image, return_tensors="pt")
        pixels: Tensor = batch["pixel_values"][0].float()
        if "spatial_shapes" not in batch:
            return pixels
        shape_2 = batch["spatial_shapes"][0]
        head_F = torch.zeros(pixels.shape[1])
        head_F[:2] = shape_2
        return torch.cat([head_F[None], pixels[: int(shape_2.prod())]])

    return transform
