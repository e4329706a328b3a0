"""Labels that no single modality carries: what each fusion makes of them.

    python -m benchmarks.xor --json
    python -m benchmarks.xor --seeds 1 --part "early, two"

Synthetic records (`benchmarks.data_xor`); encoders from scratch; 400 others to test. "two": the
parity of text and picture, 1,200 records. "three": of text, picture and sound under noise, 1,600
records, 5 % of whose labels are wrong (none in the test); each modality has a label of its own as
well, so that the encoders learn and the fusion is what is tested: with one modality less there is
nothing left, and a linear head on a mean of three vectors has no products of them.
`decision` is what applications read, `fused vector` the fused vector's own head, `without ...` the
decision where one modality is taken away. `mean` and `sd` are over seeds, `se` over test records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common import arguments, by_item, finish, trained
from benchmarks.data_xor import TASK, samples
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig
from braid.encoders.model.fusion import FUSIONS

PARITIES: Mapping[str, Mapping[str, EncoderConfig]] = {
    "two": {"text": EncoderConfig(kind="hashed"), "image": EncoderConfig(kind="small-cnn")},
    "three": {
        "text": EncoderConfig(kind="hashed"),
        "image": EncoderConfig(kind="small-cnn"),
        "audio": EncoderConfig(
            kind="logmel-cnn",
            options={"rate": 8000, "seconds": 0.3, "mels": 24, "channels": 8, "depth": 2},
        ),
    },
}


def config(fusion: str, parity: str) -> TrainConfig:
    """Small encoders, the fused vector's head first."""
    return TrainConfig(
        model=ModelConfig(encoders=PARITIES[parity], dim=64, fusion=fusion),
        epochs=50 if parity == "two" else 20,
        batch=64,
        lr=5e-3,
        encoder_lr=5e-3,
        weight_decay=0.01,
        task=0.1 if parity == "two" else 0.5,
        align=0.0,
        fuse=1.0,
        drop=0.1,
        refit=False,
        judge=False,
    )


def run(fusion: str, parity: str, seed: int) -> dict[str, list[float]]:
    """Whether each is right, test record by test record."""
    three = parity == "three"
    known = samples(1600 if three else 1200, seed, sounds=three, wrong=0.05 if three else 0.0)
    unseen = samples(400, seed + 1_000_000, sounds=three)
    right: dict[str, list[float]] = {}
    with trained(known, config(fusion, parity), seed) as (embedder, _):
        for name in ("", *PARITIES[parity]):
            gone: dict[str, Any] = {name: None} if name else {}
            asked = [replace(sample, **gone) for sample in unseen]
            for one, sample in zip(embedder.embed(asked), unseen, strict=True):
                prediction, truth = one.tasks[TASK], sample.labels[TASK]
                row = f"without {name}" if name else "decision"
                right.setdefault(row, []).append(float(prediction.label == truth))
                if not name:
                    fused = prediction.by["fused"]["label"] == truth
                    right.setdefault("fused vector", []).append(float(fused))
    return right


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parts = tuple(f"{fusion}, {parity}" for parity in PARITIES for fusion in FUSIONS)
    options = arguments(__doc__, parts=parts).parse_args(argv)
    rows = {}
    for part in [options.part] if options.part else parts:
        fusion, _, parity = part.partition(", ")
        rows[part] = by_item([run(fusion, parity, seed) for seed in range(options.seeds)])
    return finish({"benchmark": "xor", "seeds": options.seeds, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
