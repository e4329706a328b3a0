"""Fixtures of this folder: a deployment on Apache Kafka, and a tiny trained model."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from braid.encoders.presets import preset
from braid.encoders.training import train
from braid.encoders.types import Sample
from braid.stream.registry.versions import Registry
from tests.conftest import made_once
from tests.object_storage import KEYS, Proxy, S3Server
from tests.stream.harness import Deployment

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def picture(colour: str, seed: int = 0, size: int = 32) -> bytes:
    """A noisy square of one colour, as a png."""
    noise = np.random.default_rng(seed).integers(-25, 25, (size, size, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def tone(colour: str, seed: int = 0, seconds: float = 0.5) -> bytes:
    """A low tone for red, a high one for blue, as a wav file at 8 kHz."""
    noise = np.random.default_rng(seed).normal(0, 0.05, int(8000 * seconds))
    hertz = {"red": 300, "blue": 2000}[colour]
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(len(noise)) / 8000) + noise
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), 8000, format="WAV")
    return file.getvalue()


def coloured(number: int) -> Sample:
    """A labelled record of all three modalities."""
    colour = sorted(COLOURS)[number % 2]
    word = random.Random(number).choice(["square", "tile", "patch"])
    return Sample(
        id=f"c{number}",
        text=f"a {colour} {word}",
        image=picture(colour, number),
        audio=tone(colour, number),
        labels={"colour": colour},
    )


@pytest.fixture(scope="session")
def _three_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "three-versions", _train_three)


def _train_three(folder: Path) -> None:
    registry = Registry(folder, base="tiny")
    samples = [coloured(number) for number in range(60)]
    for heads_only, seed in ((False, 0), (True, 1), (False, 2)):
        name, version = registry.next()
        train(
            samples,
            preset("tiny"),
            out=registry.path(name),
            name=name,
            version=version,
            parent=registry.path("tiny-0001") if heads_only else None,
            heads_only=heads_only,
            seed=seed,
        )


@pytest.fixture
def three_versions(_three_versions: Path, tmp_path: Path) -> Registry:
    """A registry of its own with two versions of one space and one of another, none champion."""
    root = tmp_path / "models"
    shutil.copytree(_three_versions, root)
    return Registry(root, base="tiny")


@pytest.fixture
def deployment(kafka: str, tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(kafka, tmp_path) as deployed:
        yield deployed


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of the tiny preset, trained for a moment on coloured squares and tones."""

    def make(folder: Path) -> None:
        train(
            [coloured(number) for number in range(60)],
            preset("tiny"),
            out=folder / "tiny-0001",
            name="tiny-0001",
            version=1,
            seed=0,
        )

    return made_once(tmp_path_factory, "tiny-model", make) / "tiny-0001"


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with Proxy(s3) as proxy:
        yield proxy
