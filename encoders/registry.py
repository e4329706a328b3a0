"""Which encoders there are: dicts of classes, looked up by the `kind` of an `EncoderConfig`."""

from __future__ import annotations

from encoders.audio import LogMelCnn, LogMelRnn
from encoders.audio_towers import Ast, ClapAudio, Whisper
from encoders.base import Encoder
from encoders.config import EncoderConfig
from encoders.efficientnet import EfficientNetLite0
from encoders.image import SmallCnn
from encoders.text import HashedWords, TransformerText

ENCODERS: dict[str, dict[str, type[Encoder]]] = {
    "text": {"hashed": HashedWords, "transformer": TransformerText},
    "image": {"small-cnn": SmallCnn, "efficientnet-lite0": EfficientNetLite0},
    "audio": {
        "logmel-cnn": LogMelCnn,
        "logmel-rnn": LogMelRnn,
        "ast": Ast,
        "whisper": Whisper,
        "clap-audio": ClapAudio,
    },
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
