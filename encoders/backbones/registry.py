"""The registry of encoders: classes by modality and by the `kind` of an `EncoderConfig`.

Installed packages may add kinds (see `GROUP`), but not replace one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points

from ..config import EncoderConfig
from ..errors import CheckpointError
from .audio import LogMelCnn, LogMelRnn
from .audio_towers import Ast, ClapAudio, ClapProjectedAudio, Whisper
from .base import Encoder
from .efficientnet import EfficientNetLite0, EfficientNetLite1, EfficientNetLite2
from .image import FrameMean, SmallCnn
from .image_towers import ClipImage, ResNet, SiglipImage, Vit
from .imported.open_clip_models import OpenClipImage, OpenClipText
from .imported.perception import PerceptionSound, PerceptionVideo, SoundCaption, VideoCaption
from .imported.pictures import JointImage, NaflexImage, VisionNetwork
from .imported.sounds import SoundNetwork
from .imported.texts import CausalText, JointText, WholeText
from .imported.timm_models import TimmImage
from .imported.videos import JointVideo, VideoNetwork
from .sentence_transformer import SentenceTransformerText
from .speech_embedding import SpeechEmbedding
from .text import HashedWords, TransformerText
from .text_towers import ClapText, ClipText, SiglipText
from .word_vectors import StaticWords

ENCODERS: dict[str, dict[str, type[Encoder]]] = {
    "text": {
        "hashed": HashedWords,
        "transformer": TransformerText,
        "sentence-transformer": SentenceTransformerText,
        "clip-text": ClipText,
        "siglip-text": SiglipText,
        "clap-text": ClapText,
        "words": StaticWords,
    },
    "image": {
        "small-cnn": SmallCnn,
        "efficientnet-lite0": EfficientNetLite0,
        "efficientnet-lite1": EfficientNetLite1,
        "efficientnet-lite2": EfficientNetLite2,
        "resnet": ResNet,
        "vit": Vit,
        "clip-image": ClipImage,
        "siglip-image": SiglipImage,
    },
    "audio": {
        "logmel-cnn": LogMelCnn,
        "logmel-rnn": LogMelRnn,
        "speech-embedding": SpeechEmbedding,
        "ast": Ast,
        "whisper": Whisper,
        "clap-audio": ClapAudio,
        "clap-audio-projected": ClapProjectedAudio,
    },
    "video": {
        "frame-mean": FrameMean,
    },
}
IMPORTED: dict[str, dict[str, type[Encoder]]] = {
    "text": {
        "joint-text": JointText,
        "causal-text": CausalText,
        "whole-text": WholeText,
        "open-clip-text": OpenClipText,
        "sound-caption": SoundCaption,
        "video-caption": VideoCaption,
    },
    "image": {
        "joint-image": JointImage,
        "naflex-image": NaflexImage,
        "vision-network": VisionNetwork,
        "open-clip-image": OpenClipImage,
        "timm": TimmImage,
    },
    "audio": {"sound-network": SoundNetwork, "perception-sound": PerceptionSound},
    "video": {
        "joint-video": JointVideo,
        "video-network": VideoNetwork,
        "perception-video": PerceptionVideo,
    },
}
"""Kinds that `braid.encoders.importing` makes of models of other libraries."""


def encoders_of(
    configs: Mapping[str, EncoderConfig], make: Callable[[str, EncoderConfig], Encoder]
) -> dict[str, Encoder]:
    """The encoders by modality: `make` for each that has a network, then those that share one.

    Raises:
        CheckpointError: `shares` names no encoder that has a network, or one that does not fit.
    """
    made = {name: make(name, one) for name, one in configs.items() if one.shares is None}
    shared = {}
    for name, one in configs.items():
        if one.shares is not None:
            if one.shares not in made:
                raise CheckpointError(f"shares: {name} shares with {one.shares}, which has none")
            shared[name] = encoder_class(name, one).over(one, made[one.shares])
    return {**made, **shared}


GROUP = "braid.encoders"
"""The entry points by which another package adds a kind: "MODALITY.KIND" = "module:Class"."""


def encoder_class(modality: str, config: EncoderConfig) -> type[Encoder]:
    """The class that `config.kind` names, here or in an installed package.

    Raises:
        ValueError: no such modality or kind, two packages that both have it, or one whose class
            does not load.
    """
    if modality not in ENCODERS:
        raise ValueError(f"no modality {modality!r}; there are {', '.join(ENCODERS)}")
    added: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        point_modality, _, kind = point.name.partition(".")
        if point_modality == modality:
            added.setdefault(kind, []).append(point)
    known = {**ENCODERS[modality], **IMPORTED.get(modality, {})}
    own, others = known.get(config.kind), added.get(config.kind, [])
    if own is not None and not others:
        return own
    claims = ["braid itself"] * (own is not None) + [_package(point) for point in others]
    if len(claims) > 1:
        raise ValueError(
            f"{modality} encoder {config.kind!r} comes from {' and from '.join(claims)}: "
            f"one of them must go, or be called otherwise in its entry points ({GROUP})"
        )
    if not others:
        kinds = dict.fromkeys([*ENCODERS[modality], *added])
        raise ValueError(f"no {modality} encoder {config.kind!r}; there are {', '.join(kinds)}")
    return _load(others[0], modality)


def _load(point: EntryPoint, modality: str) -> type[Encoder]:
    what = f"encoder {point.name!r} of {_package(point)} ({point.value})"
    try:
        encoder = point.load()
    except Exception as error:
        raise ValueError(f"{what} does not load: {type(error).__name__}: {error}") from error
    if not (isinstance(encoder, type) and issubclass(encoder, Encoder)):
        raise ValueError(f"{what} is no subclass of braid.encoders.plugin.Encoder")
    if getattr(encoder, "modality", None) != modality:
        actual = getattr(encoder, "modality", None)
        raise ValueError(f"{what} is for the modality {actual!r}, not for {modality!r}")
    return encoder


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist is not None else "an unknown package"
