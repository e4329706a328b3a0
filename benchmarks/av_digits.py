"""Handwritten and spoken digits: fusion against the best single modality, clean, noisy, missing.

    python -m benchmarks.av_digits --json                    # five trainings of each row
    python -m benchmarks.av_digits --resume FILE --json      # keeps finished trainings
    python -m benchmarks.av_digits --part known --seeds 1
    python -m benchmarks.av_digits --part pretrained-unseen --jobs 8   # trainings side by side
    python -m benchmarks.av_digits --data DIR                # the folder of mnist.npz and fsdd.npz

Parts and their rows (accuracy, but for recall):

    known    speakers heard in training; pictures as 4 principal components see them; clean, with
             white noise on the sound at 0, -6 and -10 dB, and with either modality missing
    unseen   the same, the mean over trainings that each leave one speaker out: all but that of
             `development`, by whom the settings for unseen voices are chosen
    development
             the settings of `known` and of `unseen` for the first speaker by name, left out
    pretrained-known, pretrained-unseen
             known and unseen again, the sound heard by a pretrained network, its last three blocks
             trained on
    align    picture, sound and caption in one space, whole pictures: recall@1 of all six
             directions, any record of the same digit being right

`decision` is what applications read, `cross-attention` the fused vector's own head; `decision -
sound` and so on are their differences to the better single modality of that row, `decision - best
source` that to the best of all three, with half the 95 % interval, paired by recording: each seed
tests the same recordings with other pictures and noise, so a recording counts once, with its mean
over the seeds (`benchmarks.common`).
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import data_digits
from benchmarks.common import arguments, by_item, finish, paired, spread
from benchmarks.data_digits import (
    TASK,
    Digits,
    Pixels,
    default_folder,
    held_out_pictures,
    known_split,
    load,
    reduced,
    unseen_split,
)
from benchmarks.trainings import Finished, key_of, trained
from braid.encoders import Embedder, Embedding, Sample, TrainConfig
from braid.encoders.config import EncoderConfig, ModelConfig
from braid.encoders.training.metrics import ranks

PARTS = (
    "known",
    "unseen",
    "development",
    "pretrained-known",
    "pretrained-unseen",
    "align",
)
SNRS_DB = (0.0, -6.0, -10.0)
SINGLE = ("image", "audio")
NAMES = {"image": "picture", "audio": "sound", "text": "caption", "fused": "cross-attention"}
EPOCHS = {
    "known": 24,
    "unseen": 18,
    "development": 18,
    "pretrained-known": 12,
    "pretrained-unseen": 12,
    "align": 18,
}
Split = tuple[NDArray[np.int64], NDArray[np.int64]]  # recordings to train on and to test on
Right = dict[str, dict[str, list[bool]]]  # row -> source -> whether right, record by record


KNOWN: dict[str, Any] = {
    "hop": 128,
    "strides": [[2, 2], [2, 2], [2, 1], [2, 1]],
    "cut": 0.1,
    "variation": {"pitch": 0.05, "tempo": 0.15, "masks": 2},
}
UNSEEN: dict[str, Any] = {
    "hop": 80,
    "strides": [[2, 1], [2, 2], [2, 2], [2, 1]],
    "cut": 0.25,
    "variation": {"pitch": 0.15, "tempo": 0.3, "masks": 2, "mix": 1.0},
}
"""Voices as they are, or voices drawn away from those at hand: what helps with a new speaker costs
with a known one."""


PRETRAINED = EncoderConfig(
    kind="speech-embedding",
    source="package:openwakeword",
    train_last=3,
    options={
        "seconds": 1.2,
        "cut": 0.1,
        "noise_db": [-12, 30],
        "noise_share": 0.6,
        "speed": [1, 1],
        "lead": 0.0,
        "gaps": 0,
    },
)


def config(voices: Mapping[str, Any], *, epochs: int, captions: bool = False) -> TrainConfig:
    """Small encoders from scratch, cross-attention, log-product decision."""
    encoders = {
        "image": EncoderConfig(
            kind="small-cnn",
            options={"side": 28, "channels": 32, "grid": 3, "mirror": False, "shift": 0.08},
        ),
        "audio": EncoderConfig(
            kind="logmel-cnn",
            options={
                "rate": 8000,
                "seconds": 1.2,
                "mels": 40,
                "window": 256,
                "floor": 1e-3,
                "channels": 24,
                "widest": 4,
                "dropout": 0.3,
                "noise_db": [-12, 30],
                "noise_share": 0.6,
                "speed": [1, 1],
                "lead": 0.0,
                "gaps": 0,
                **voices,
            },
        ),
    }
    if captions:
        encoders["text"] = EncoderConfig(kind="hashed")
    return TrainConfig(
        model=ModelConfig(
            encoders=encoders,
            dim=64,
            fusion="intermediate",
            decision="logproduct",
            heads_on="features",
            dropout=0.1,
        ),
        epochs=epochs,
        batch=64,
        encoder_batch=64,
        lr=3e-3,
        encoder_lr=3e-3,
        weight_decay=0.05,
        task=1.0,
        align=1.0 if captions else 0.1,
        fuse=1.0,
        drop=0.3,
        monotone=0.1,
        same_label=1.0,
        ema=0.98,
        refit=False,
        calibration_copies=4,
        judge=False,  # the test set is elsewhere: all samples train
    )


def pretrained(*, epochs: int) -> TrainConfig:
    """The same, with a sound encoder that knows speech, trained on at a lower rate."""
    small = config(KNOWN, epochs=epochs)
    encoders = {**small.model.encoders, "audio": PRETRAINED}
    model = replace(small.model, encoders=encoders)
    return replace(small, model=model, encoder_lr=1e-3)


def answers(embedder: Embedder, samples: Sequence[Sample], into: dict[str, list[bool]]) -> None:
    """Whether the decision and each source are right, appended to `into`."""
    for sample, embedding in zip(samples, embedder.embed(list(samples)), strict=True):
        prediction, truth = embedding.tasks[TASK], sample.labels[TASK]
        into.setdefault("decision", []).append(prediction.label == truth)
        for source, output in prediction.by.items():
            into.setdefault(NAMES[source], []).append(output["label"] == truth)


def measured(
    digits: Digits, pictures: Pixels, split: Split, config: TrainConfig, seed: int
) -> tuple[Right, float]:
    """Train once and ask under every condition; CPU seconds of the training."""
    right: Right = {}
    (train_R, test_R), held = split, held_out_pictures(digits)
    known = data_digits.paired(digits, pictures, train_R, ~held, seed=seed)

    def test(snr_db: float | None = None) -> list[Sample]:
        return data_digits.paired(
            digits, pictures, test_R, held, seed=1_000_000 + seed, snr_db=snr_db
        )

    with trained(known, config, seed) as (embedder, seconds):
        clean = test()
        answers(embedder, clean, right.setdefault("clean", {}))
        for snr_db in SNRS_DB:
            answers(embedder, test(snr_db), right.setdefault(f"{snr_db:g} dB", {}))
        deaf = [replace(sample, audio=None) for sample in clean]
        answers(embedder, deaf, right.setdefault("sound missing", {}))
        blind = [replace(sample, image=None) for sample in clean]
        answers(embedder, blind, right.setdefault("picture missing", {}))
    return right, seconds


def rows(runs: Sequence[Right]) -> dict[str, dict[str, Any]]:
    """Mean and spread over the runs and the recordings, and the paired differences to the best of
    the single modalities and of all sources."""
    figures: dict[str, dict[str, Any]] = {}
    for row in runs[0]:
        items = [run[row] for run in runs]
        figures[row] = dict(by_item(items))
        means = {name: figure["mean"] for name, figure in figures[row].items()}
        singles = [NAMES[name] for name in SINGLE if NAMES[name] in means]
        best = max(singles, key=lambda name: means[name])
        for name in ("decision", NAMES["fused"]):
            figures[row][f"{name} - {best}"] = paired(items, name, best)
        sources = [name for name in means if name != "decision"]
        source = max(sources, key=lambda name: means[name])
        figures[row][f"decision - best source ({source})"] = paired(items, "decision", source)
    return figures


def aligned(digits: Digits, config: TrainConfig, seed: int) -> dict[str, list[float]]:
    """Hits at 1 of each direction among three modalities, record by record; any record of the same
    digit is right."""
    train_R, test_R = known_split(digits)
    held = held_out_pictures(digits)
    known = data_digits.paired(digits, digits.images_NHW, train_R, ~held, seed=seed, captions=True)
    test = data_digits.paired(
        digits, digits.images_NHW, test_R, held, seed=1_000_000 + seed, captions=True
    )
    with trained(known, config, seed) as (embedder, seconds):
        note(f"align, seed {seed}: {seconds:.0f} s of CPU")
        embeddings = embedder.embed(test)
    digit_B = torch.tensor([int(sample.id.split("-")[1]) for sample in test])
    by = {name: vectors(embeddings, name) for name in ("image", "audio", "text")}
    return {
        f"{NAMES[a]} -> {NAMES[b]} recall@1": (ranks(by[a], by[b], digit_B) < 1).float().tolist()
        for a, b in permutations(by, 2)
    }


def vectors(embeddings: Sequence[Embedding], name: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([one.by[name] for one in embeddings]))


def repeated(
    digits: Digits,
    splits: Sequence[Split],
    config: TrainConfig,
    seeds: int,
    jobs: int,
    finished: Finished,
) -> tuple[list[Right], list[float]]:
    """One `Right` for each seed, over all splits, and the CPU seconds of each training.

    Args:
        jobs: so many trainings side by side, each in a process of its own.
    """
    each = [(seed, split) for seed in range(seeds) for split in splits]
    runs: list[Right] = [{} for _ in range(seeds)]
    seconds: list[float] = []
    trainings = _trained(digits, each, config, jobs, finished)
    for (seed, _), (right, took) in zip(each, trainings, strict=True):
        seconds.append(took)
        for row, by_source in right.items():
            for source, whether in by_source.items():
                runs[seed].setdefault(row, {}).setdefault(source, []).extend(whether)
        note(f"seed {seed}: decision {np.mean(right['clean']['decision']):.3f}")
    return runs, seconds


def _trained(
    digits: Digits,
    each: Sequence[tuple[int, Split]],
    config: TrainConfig,
    jobs: int,
    finished: Finished,
) -> Iterator[tuple[Right, float]]:
    pictures = reduced(digits.images_NHW, ~held_out_pictures(digits))
    keys = [key_of("digits", config, seed, test_R.tolist()) for seed, (_, test_R) in each]
    run: list[Callable[[], tuple[Right, float]]] = [
        partial(measured, digits, pictures, split, config, seed) for seed, split in each
    ]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:  # if submitted to
        if jobs > 1:
            run = [
                one if key in finished else pool.submit(one).result
                for key, one in zip(keys, run, strict=True)
            ]
        for key, one in zip(keys, run, strict=True):
            yield finished.result(key, one)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, parts=PARTS, resume=True)
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, but of align")
    parser.add_argument("--epochs", type=int, help=f"instead of {EPOCHS}")
    options = parser.parse_args(argv)
    digits, finished = load(options.data), Finished(options.resume)
    chosen = PARTS if options.part is None else (options.part,)
    epochs = {part: options.epochs or default for part, default in EPOCHS.items()}
    known = [known_split(digits)]
    asked, *others = (unseen_split(digits, speaker) for speaker in digits.speakers)
    ways: dict[str, tuple[TrainConfig, list[Split]]] = {
        "known": (config(KNOWN, epochs=epochs["known"]), known),
        "unseen": (config(UNSEEN, epochs=epochs["unseen"]), others),
        "development": (config(UNSEEN, epochs=epochs["development"]), [asked]),
        "pretrained-known": (pretrained(epochs=epochs["pretrained-known"]), known),
        "pretrained-unseen": (pretrained(epochs=epochs["pretrained-unseen"]), others),
    }
    table: dict[str, Any] = {}

    def trainings(
        splits: Sequence[Split], settings: TrainConfig
    ) -> tuple[list[Right], list[float]]:
        return repeated(digits, splits, settings, options.seeds, options.jobs, finished)

    for part, (settings, splits) in ways.items():
        if part in chosen:
            runs, seconds = trainings(splits, settings)
            table |= {f"{part}, {row}": figures for row, figures in rows(runs).items()}
            table[f"{part}, one training"] = spread([{"CPU seconds": each} for each in seconds])
    if "development" in chosen:
        settings = config(KNOWN, epochs=epochs["development"])
        runs, _ = trainings([asked], settings)
        table |= {
            f"development, settings of known, {row}": figures for row, figures in rows(runs).items()
        }
    if "align" in chosen:
        three = config(KNOWN, epochs=epochs["align"], captions=True)
        table["align"] = by_item(
            [
                finished.result(key_of("align", three, seed), partial(aligned, digits, three, seed))
                for seed in range(options.seeds)
            ]
        )
    report = {
        "benchmark": "av-digits",
        "seeds": options.seeds,
        "epochs": {part: epochs[part] for part in chosen},
    }
    return finish({**report, "rows": table}, options.json)


if __name__ == "__main__":
    main()
