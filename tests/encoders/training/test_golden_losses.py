"""Ten steps of the tiny preset give the losses that they gave, for every fusion and loss.

    python -m tests.encoders.training.test_golden_losses    # writes them, after a meant change

A change of the arithmetic that nobody meant shows here first. The steps are made in a process of
its own for each fusion, with the instructions that every x86 processor has: each with its own best,
an Intel's losses are up to 9e-5 from an AMD's after ten steps.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from braid.encoders import preset, train
from braid.encoders.config import TaskConfig, TrainConfig
from braid.encoders.model.fusion import FUSIONS
from braid.encoders.types import Label
from tests.encoders.material import samples

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).with_name("golden_losses.json")
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}
"""What keeps torch and the libraries below it from a processor's own instructions."""
WAYS: dict[str, dict[str, Any]] = {
    "info_nce": {},
    "siglip": {"contrast": "siglip"},
    "same label": {"same_label": 0.5},
    "learnt weights": {"learn_weights": True},
    "monotone": {"monotone": 1.0},
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
    train(samples(), short, out=folder, name="champion", version=1, seed=1, device="cpu")
    return folder


def config_of(fusion: str, way: str) -> TrainConfig:
    tiny = preset("tiny")
    tasks = {"say": TaskConfig(kind="generation", source="text", length=4)}
    model = replace(tiny.model, fusion=fusion, tasks=tasks)
    # A batch of everything: ten epochs are ten steps.
    return replace(
        tiny,
        model=model,
        epochs=10,
        batch=1000,
        encoder_batch=48,
        match=0.5,
        refit=False,
        **WAYS[way],
    )


class Trained(Exception):
    """Ends a training after its last step; half of the time would go into decisions."""


def losses(fusion: str, way: str) -> list[float]:
    given = samples(32)
    if way in LABELS:
        given = [
            replace(sample, labels=LABELS[way](i) if i % 5 else {})
            for i, sample in enumerate(given)
        ]
    result: list[float] = []

    def collect(stage: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        if stage == "train":
            result.append(figures["loss"])
            if done == total:
                raise Trained

    with tempfile.TemporaryDirectory() as place, suppress(Trained):
        train(
            given,
            config_of(fusion, way),
            out=Path(place) / "v",
            name="v",
            version=1,
            seed=0,
            device="cpu",
            champion=champion() if way == "compatible" else None,
            progress=collect,
        )
    return result


Losses = dict[str, list[float]]
"""By way."""


@contextmanager
def plainly() -> Iterator[Callable[[str], Losses]]:
    """The losses of a fusion, computed as on any machine; all fusions at the same time."""
    with ExitStack() as ended:
        children = {}
        for fusion in FUSIONS:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.encoders.training.test_golden_losses", fusion],
                cwd=ROOT,
                env={**os.environ, **PLAIN},
                stdout=subprocess.PIPE,
                text=True,
            )
            children[fusion] = ended.enter_context(child)
            ended.callback(child.kill)

        output = cache(lambda fusion: children[fusion].communicate()[0])

        def losses_of(fusion: str) -> Losses:
            lines = output(fusion).splitlines()
            assert children[fusion].returncode == 0, "see what the process wrote"
            return cast(Losses, json.loads(lines[-1]))

        yield losses_of


@pytest.fixture(scope="module")
def losses_of() -> Iterator[Callable[[str], Losses]]:
    with plainly() as one:
        yield one


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_ten_steps_give_the_golden_losses(
    losses_of: Callable[[str], Losses], fusion: str, way: str
) -> None:
    wanted = json.loads(GOLDEN.read_text())[fusion][way]
    assert losses_of(fusion)[way] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_chunks_change_nothing_but_memory() -> None:
    """Batch norm sees each chunk by itself, so this is with an encoder that has none."""
    tiny = preset("tiny")
    encoders = {name: tiny.model.encoders[name] for name in ("text", "image")}
    model = replace(tiny.model, encoders=encoders, fusion="intermediate")
    result = []
    for chunk in (0, 7):
        config = replace(tiny, model=model, epochs=3, batch=1000, chunk=chunk, refit=False)
        with tempfile.TemporaryDirectory() as place:
            made = train(samples(), config, out=Path(place) / "v", name="v", version=1, seed=0)
        result.append(made.metrics["losses"])
    assert result[0] == pytest.approx(result[1], abs=1e-5)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps({way: losses(sys.argv[1], way) for way in WAYS}))
        return
    with plainly() as losses_of:
        table = {
            fusion: {way: [round(x, 7) for x in one] for way, one in losses_of(fusion).items()}
            for fusion in FUSIONS
        }
    GOLDEN.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
