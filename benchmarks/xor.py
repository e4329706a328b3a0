"""Labels that no single modality carries: what each fusion makes of them.

    python -m benchmarks.xor --json [--resume FILE]     # which keeps finished trainings
    python -m benchmarks.xor --seeds 1 --part early

1,600 synthetic records (`benchmarks.data_xor`) and 400 others to test; encoders from scratch. The
label is the parity of text, picture and sound under noise; 5 % of the labels are wrong (none in the
test). Each modality has a label of its own as well, so that the encoders learn and the fusion is
what is tested: with one modality less there is nothing left, and a linear head on a mean of three
vectors has no products of them.
`decision` is what applications read, `fused vector` the fused vector's own head, `without ...` the
decision where one modality is taken away. `mean` and `sd` are over seeds, `se` over test records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.common import arguments, by_item, finish
from benchmarks.data_xor import TASK, samples
from benchmarks.trainings import Finished, key_of, trained
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig
from braid.encoders.model.fusion import FUSIONS

EPOCHS, RECORDS = 20, 1600
ENCODERS: Mapping[str, EncoderConfig] = {
    "text": EncoderConfig(kind="hashed"),
    "image": EncoderConfig(kind="small-cnn"),
    "audio": EncoderConfig(
        kind="logmel-cnn",
        options={"rate": 8000, "seconds": 0.3, "mels": 24, "channels": 8, "depth": 2},
    ),
}


def config(fusion: str) -> TrainConfig:
    """Small encoders, the fused vector's head first."""
    return TrainConfig(
        model=ModelConfig(encoders=ENCODERS, dim=64, fusion=fusion),
        epochs=EPOCHS,
        batch=64,
        lr=5e-3,
        encoder_lr=5e-3,
        weight_decay=0.01,
        task=0.5,
        align=0.0,
        fuse=1.0,
        drop=0.1,
        refit=False,
        judge=False,
    )


def run(config: TrainConfig, seed: int) -> dict[str, list[float]]:
    """Whether each is right, test record by test record."""
    known, unseen = samples(RECORDS, seed, wrong=0.05), samples(400, seed + 1_000_000)
    right: dict[str, list[float]] = {}
    with trained(known, config, seed) as (embedder, _):
        for name in ("", *ENCODERS):
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
    options = arguments(__doc__, parts=tuple(FUSIONS), resume=True).parse_args(argv)
    finished = Finished(options.resume)
    rows = {}
    for fusion in [options.part] if options.part else FUSIONS:
        settings = config(fusion)
        rows[fusion] = by_item(
            [
                finished.result(key_of(fusion, settings, seed), partial(run, settings, seed))
                for seed in range(options.seeds)
            ]
        )
    return finish({"benchmark": "xor", "seeds": options.seeds, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
