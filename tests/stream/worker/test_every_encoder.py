"""Every kind of encoder: made or read from a checkpoint, trained, written, loaded and served by the
worker, under each fusion, with a prediction for each subset of the modalities."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from braid.encoders import load, preset, train
from braid.encoders.backbones.registry import ENCODERS
from braid.encoders.config import EncoderConfig, TrainConfig
from braid.encoders.model.fusion import FUSIONS
from tests.encoders.backbones.test_sounds import MADE, TOWERS, written
from tests.encoders.backbones.test_vision import WRITE
from tests.encoders.checkpoints import (
    LAYERS,
    TOKENS,
    write_clip,
    write_model,
    write_preprocessor,
    write_siglip,
    write_tokenizer,
)
from tests.encoders.joint_models import write_clap
from tests.encoders.test_importing import write_sentence_transformer
from tests.stream.conftest import coloured
from tests.stream.harness import Deployment
from tests.stream.running import running, wait_until_idle

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(540)]

TRIOS = (
    ("hashed", "small-cnn", "logmel-cnn"),
    ("transformer", "resnet", "logmel-rnn"),
    ("clip-text", "clip-image", "clap-audio"),
    ("siglip-text", "siglip-image", "whisper"),
    ("words", "vit", "ast"),
    ("sentence-transformer", "small-cnn", "logmel-cnn"),
    ("clap-text", "small-cnn", "clap-audio-projected"),
    ("hashed", "efficientnet-lite0", "logmel-cnn"),
    ("hashed", "efficientnet-lite1", "logmel-rnn"),
    ("hashed", "efficientnet-lite2", "speech-embedding"),
)
SUBSETS = [
    frozenset(subset)
    for size in (1, 2, 3)
    for subset in combinations(("text", "image", "audio"), size)
]


def write_bert(folder: Path) -> None:
    from transformers import BertConfig

    write_model("BertModel", BertConfig(**LAYERS, vocab_size=len(TOKENS)), folder)


TEXTS: dict[str, tuple[Callable[[Path], None], bool]] = {  # and whether a start mark is written
    "transformer": (write_bert, True),
    "clip-text": (write_clip, True),
    "siglip-text": (write_siglip, False),
}


WHOLE: dict[str, Callable[[Path], None]] = {  # with tokenisers and extractors of their own
    "sentence-transformer": write_sentence_transformer,
    "clap-text": write_clap,
    "clap-audio-projected": write_clap,
}


def whole(kind: str, folder: Path) -> EncoderConfig:
    WHOLE[kind](folder)
    return EncoderConfig(kind=kind, source=str(folder))


def text_encoder(kind: str, folder: Path) -> EncoderConfig:
    if kind in WHOLE:
        return whole(kind, folder)
    if kind == "words":
        vectors = folder / "vectors.txt"
        words = ("a", "red", "blue", "square", "tile", "patch")
        vectors.write_text("\n".join(f"{w} {i} {-i} 1" for i, w in enumerate(words)) + "\n")
        return EncoderConfig(kind=kind, source=str(vectors))
    if kind in TEXTS:
        write, start = TEXTS[kind]
        write(folder)
        write_tokenizer(folder, start=start)
        return EncoderConfig(kind=kind, source=str(folder))
    return EncoderConfig(kind=kind)


def image_encoder(kind: str, folder: Path) -> EncoderConfig:
    if kind in WRITE:
        WRITE[kind](folder)
        write_preprocessor(folder)
        return EncoderConfig(kind=kind, source=str(folder))
    options: dict[str, Any] = {} if kind == "small-cnn" else {"side": 64}
    return EncoderConfig(kind=kind, options=options)


def audio_encoder(kind: str, folder: Path) -> EncoderConfig:
    if kind in WHOLE:
        return whole(kind, folder)
    if kind in TOWERS:
        return EncoderConfig(kind=kind, source=str(written(kind, folder)))
    return EncoderConfig(kind=kind, options=MADE[kind])


def config(trio: tuple[str, str, str], folder: Path) -> TrainConfig:
    places = {name: folder / name for name in ("text", "image", "audio")}
    for place in places.values():
        place.mkdir(parents=True)
    text, image, audio = trio
    encoders = {
        "text": text_encoder(text, places["text"]),
        "image": image_encoder(image, places["image"]),
        "audio": audio_encoder(audio, places["audio"]),
    }
    tiny = preset("tiny")
    fusion = list(FUSIONS)[TRIOS.index(trio) % len(FUSIONS)]
    # Checkpoints stay as they are; what begins at random is trained.
    encoders = {name: replace(one, frozen=one.source is not None) for name, one in encoders.items()}
    return replace(
        tiny,
        model=replace(tiny.model, encoders=encoders, fusion=fusion),
        epochs=1,
        refit=False,
        encoder_batch=8,
    )


def test_the_trios_name_every_kind() -> None:
    named = {
        name: {trio[place] for trio in TRIOS}
        for place, name in enumerate(("text", "image", "audio"))
    }
    named["video"] = {"frame-mean"}  # has no network of its own: tests/encoders/test_video.py
    assert named == {name: set(kinds) for name, kinds in ENCODERS.items()}


@pytest.mark.parametrize("trio", TRIOS, ids="+".join)
def test_it_is_trained_written_loaded_and_served(
    deployment: Deployment, tmp_path: Path, trio: tuple[str, str, str]
) -> None:
    sources = tmp_path / "sources"
    samples = [coloured(number) for number in range(40)]
    train(samples, config(trio, sources), out=tmp_path / "v", name="v", version=1, seed=0)
    shutil.rmtree(sources)  # a version holds all that it needs
    model = load(tmp_path / "v", device="cpu")
    model.check()
    sample = coloured(7)
    deployment.produce(
        {
            "id": "+".join(sorted(subset)),
            **{name: getattr(sample, name) for name in subset},
        }
        for subset in SUBSETS
    )
    with running(deployment.settings, model) as run:
        wait_until_idle(run, deployment.lag)
    predictions = {one["id"]: one for one in deployment.predictions()}
    assert predictions.keys() == {"+".join(sorted(subset)) for subset in SUBSETS}
    for subset in SUBSETS:
        task = predictions["+".join(sorted(subset))]["tasks"]["colour"]
        assert task["label"] in ("red", "blue")
        assert set(task["by"]) == subset | {"fused"}
        assert sum(task["probs"].values()) == pytest.approx(1.0, abs=1e-3)
    assert len(deployment.vectors()) == len(SUBSETS)
    assert not deployment.read("dead-letters")
