"""A label that no single modality carries: what each fusion makes of it.

    python -m benchmarks.xor --json
    python -m benchmarks.xor --seeds 1 --part early

Trained on 1,200 synthetic records (`benchmarks.data_xor`), tested on 400 others; both encoders from
scratch. `decision` is what applications read, `fused vector` the fused vector's own head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import arguments, finish, spread, trained
from benchmarks.data_xor import TASK, samples
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig
from braid.encoders.model.fusion import FUSIONS


def config(fusion: str) -> TrainConfig:
    """Small encoders, the fused vector's head first."""
    return TrainConfig(
        model=ModelConfig(
            encoders={
                "text": EncoderConfig(kind="hashed"),
                "image": EncoderConfig(kind="small-cnn"),
            },
            dim=64,
            fusion=fusion,
        ),
        epochs=50,
        batch=64,
        lr=5e-3,
        encoder_lr=5e-3,
        weight_decay=0.01,
        task=0.1,
        align=0.0,
        fuse=1.0,
        drop=0.1,
        refit=False,
    )


def run(fusion: str, seed: int) -> dict[str, float]:
    known, unseen = samples(1200, seed), samples(400, seed + 1_000_000)
    with trained(known, config(fusion), seed) as (embedder, seconds):
        predictions = [one.tasks[TASK] for one in embedder.embed(unseen)]
    truth = [sample.labels[TASK] for sample in unseen]
    alone = {
        source: sum(f.by[source]["label"] == t for f, t in zip(predictions, truth, strict=True))
        for source in ("text", "image", "fused")
    }
    return {
        "decision": sum(f.label == t for f, t in zip(predictions, truth, strict=True)) / len(truth),
        "fused vector": alone["fused"] / len(truth),
        "text alone": alone["text"] / len(truth),
        "image alone": alone["image"] / len(truth),
        "train seconds": seconds,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = arguments(__doc__, parts=tuple(FUSIONS)).parse_args(argv)
    chosen = [options.part] if options.part else list(FUSIONS)
    rows = {
        fusion: spread([run(fusion, seed) for seed in range(options.seeds)]) for fusion in chosen
    }
    return finish({"benchmark": "xor", "seeds": options.seeds, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
