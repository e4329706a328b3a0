"""Which encoders there are: dicts of classes, looked up by the `kind` of an `EncoderConfig`."""

from __future__ import annotations

from encoders.audio import LogMelCnn
from encoders.base import Encoder
from encoders.config import EncoderConfig
from encoders.efficientnet import EfficientNetLite0
from encoders.image import SmallCnn
from encoders.text import HashedWords, TransformerText
from encoders.towers import ClipText, SiglipText
from encoders.vision import ClipImage, ResNet, SiglipImage, Vit
from encoders.words import StaticWords

ENCODERS: dict[str, dict[str, type[Encoder]]] = {
    "text": {
        "hashed": HashedWords,
        "transformer": TransformerText,
        "clip-text": ClipText,
        "siglip-text": SiglipText,
        "words": StaticWords,
    },
    "image": {
        "small-cnn": SmallCnn,
        "efficientnet-lite0": EfficientNetLite0,
        "resnet": ResNet,
        "vit": Vit,
        "clip-image": ClipImage,
        "siglip-image": SiglipImage,
    },
    "audio": {"logmel-cnn": LogMelCnn},
}


def encoder_class(modality: str, config: EncoderConfig) -> type[Encoder]:
    """The class that `config.kind` names.

    Raises:
        ValueError: no such modality or kind.
    """
    if modality not in ENCODERS:
        raise ValueError(f"no modality {modality!r}; there are {', '.join(ENCODERS)}")
    kinds = ENCODERS[modality]
    if config.kind not in kinds:
        raise ValueError(f"no {modality} encoder {config.kind!r}; there are {', '.join(kinds)}")
    return kinds[config.kind]
