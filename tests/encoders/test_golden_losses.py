"""Ten steps of the tiny preset give the losses that they gave, for every fusion and loss.

    python -m tests.encoders.test_golden_losses    # writes them anew, after a change that is meant

A change of the arithmetic that nobody meant shows here first.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from encoders import preset, train
from encoders.config import TaskConfig, TrainConfig
from encoders.fusion import FUSIONS
from encoders.types import Label
from tests.encoders.material import samples

GOLDEN = Path(__file__).with_name("golden_losses.json")
WAYS: dict[str, dict[str, Any]] = {
    "info_nce": {},
    "siglip": {"contrast": "siglip"},
    "same label": {"same_label": 0.5},
    "learnt weights": {"learn_weights": True},
    "balance": {"balance": 0.5},
    "monotone": {"monotone": 1.0},
    "teach": {"teach": 1.0},
    "ema": {"ema": 0.9},
    "chunks": {"chunk": 16},
    "several labels": {},
    "number": {},
    "compatible": {"compatible": 1.0},
}
LABELS: dict[str, Callable[[int], dict[str, Label]]] = {
    "several labels": lambda i: {"marks": [mark for mark in "ab" if (i + ord(mark)) % 3]},
    "number": lambda i: {"size": float(i % 7)},
}
"""The labels of a way, where they are not the material's own; every fifth sample has none."""


@cache
def champion() -> Path:
    """A version of one epoch, whose vectors the way "compatible" pulls towards."""
    folder = Path(tempfile.mkdtemp(prefix="golden-")) / "champion"
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    short = replace(preset("tiny"), epochs=1, refit=False)
    train(samples(), short, out=folder, name="champion", version=1, seed=1)
    return folder


def config_of(fusion: str, way: str) -> TrainConfig:
    tiny = preset("tiny")
    tasks = {"say": TaskConfig(kind="generation", source="text", length=4)}
    model = replace(tiny.model, fusion=fusion, tasks=tasks)
    # A batch of everything: ten epochs are ten steps.
    return replace(
        tiny, model=model, epochs=10, batch=1000, encoder_batch=48, match=0.5, refit=False,
        **WAYS[way],
    )  # fmt: skip


def losses(fusion: str, way: str) -> list[float]:
    given = samples()
    if way in LABELS:
        given = [
            replace(sample, labels=LABELS[way](i) if i % 5 else {})
            for i, sample in enumerate(given)
        ]
    with tempfile.TemporaryDirectory() as place:
        manifest = train(
            given, config_of(fusion, way), out=Path(place) / "v", name="v", version=1, seed=0,
            champion=champion() if way == "compatible" else None,
        )  # fmt: skip
    found: list[float] = manifest.metrics["losses"]
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_ten_steps_give_the_golden_losses(fusion: str, way: str) -> None:
    wanted = json.loads(GOLDEN.read_text())[fusion][way]
    assert losses(fusion, way) == pytest.approx(wanted, abs=1e-5)


def test_chunks_change_nothing_but_memory() -> None:
    """Batch norm sees each chunk by itself, so this is with an encoder that has none."""
    tiny = preset("tiny")
    encoders = {name: tiny.model.encoders[name] for name in ("text", "image")}
    model = replace(tiny.model, encoders=encoders, fusion="intermediate")
    found = []
    for chunk in (0, 7):
        config = replace(tiny, model=model, epochs=3, batch=1000, chunk=chunk, refit=False)
        with tempfile.TemporaryDirectory() as place:
            made = train(samples(), config, out=Path(place) / "v", name="v", version=1, seed=0)
        found.append(made.metrics["losses"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def main() -> None:
    table = {
        fusion: {way: [round(x, 7) for x in losses(fusion, way)] for way in WAYS}
        for fusion in FUSIONS
    }
    GOLDEN.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
