"""The demo preset on stamps, held-out fifth: recall between captions and pictures, accuracy, time.

    python benchmarks/stamps.py                 # five training seeds, a table
    python benchmarks/stamps.py --seeds 1 --json
    python benchmarks/stamps.py --data DIR      # a folder laid out as the README says

The stamps come with apt into the cache folder the first time (`stream.datasets`). The trainer sees
only the four fifths that are not held out; recall is among the held-out stamps, a stamp's own
caption or picture being the only right answer, ties counted as wrong. No index takes part: the
scores are the inner products themselves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from encoders import Embedder, Embedding, Sample, preset, train
from stream.datasets import Item, default_cache, folder, held_out, stamps

PAIRS = (("text", "image"), ("image", "text"))
SOURCES = ("text", "image", "audio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="trainings to average over")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--data", type=Path, help="a folder instead of the stamps")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    items = folder(options.data) if options.data else stamps(options.cache)
    known = [sample(item) for item in items if not held_out(item.id)]
    unseen = [sample(item) for item in items if held_out(item.id)]
    runs = [run(known, unseen, options.preset, seed) for seed in range(options.seeds)]
    report = {
        "benchmark": "stamps",
        "preset": options.preset,
        "trained_on": len(known),
        "held_out": len(unseen),
        "threads": torch.get_num_threads(),
        "mean": summary(runs, np.mean),
        "sd": summary(runs, np.std),
        "runs": runs,
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{len(known)} known, {len(unseen)} held out, {options.seeds} seeds")
    for name, mean in report["mean"].items():
        print(f"{name:28s} {mean:8.3f} ± {report['sd'][name]:.3f}")


def sample(item: Item) -> Sample:
    return Sample(
        id=item.id, text=item.text, image=item.image, audio=item.audio, labels=item.labels
    )  # fmt: skip


def run(
    known: Sequence[Sample], unseen: Sequence[Sample], preset_name: str, seed: int
) -> dict[str, float]:  # fmt: skip
    """One training and its figures."""
    with tempfile.TemporaryDirectory() as place:
        version = Path(place) / "version"
        begun = time.perf_counter()
        with tqdm(desc=f"seed {seed}", leave=False) as bar:

            def show(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
                bar.set_description(f"seed {seed}: {stage}")
                bar.total, bar.n = total, done
                bar.set_postfix(figures)

            train(
                known, preset(preset_name), out=version, name="bench-0001", version=1, seed=seed,
                progress=show,
            )  # fmt: skip
        trained = time.perf_counter()
        with Embedder.load(version) as embedder:
            embedder.model.check()
            loaded = time.perf_counter()
            embeddings = embedder.embed(unseen)
        embedded = time.perf_counter()
    return {
        **recalls(embeddings),
        **accuracies(embeddings, unseen),
        "train seconds": trained - begun,
        "load seconds": loaded - trained,
        "embedded a second": len(unseen) / (embedded - loaded),
    }


def recalls(embeddings: Sequence[Embedding]) -> dict[str, float]:
    found: dict[str, float] = {}
    for query, target in PAIRS:
        both = [one for one in embeddings if query in one.by and target in one.by]
        query_BD = np.stack([one.by[query] for one in both])
        target_BD = np.stack([one.by[target] for one in both])
        scores_BB = query_BD @ target_BD.T
        rank_B = (scores_BB >= np.diag(scores_BB)[:, None]).sum(1)
        for k in (1, 5, 10):
            found[f"{query}->{target} recall@{k}"] = float((rank_B <= k).mean())
    return found


def accuracies(embeddings: Sequence[Embedding], truth: Sequence[Sample]) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    for embedding, sample in zip(embeddings, truth, strict=True):
        for task, label in sample.labels.items():
            prediction = embedding.tasks[task]
            right.setdefault(f"{task} fused", []).append(prediction.label == label)
            for source in SOURCES:
                if source in prediction.by:
                    said = prediction.by[source]["label"] == label
                    right.setdefault(f"{task} {source}", []).append(said)
    return {name: float(np.mean(values)) for name, values in sorted(right.items())}


def summary(runs: Sequence[Mapping[str, float]], reduce: Any) -> dict[str, float]:
    return {name: round(float(reduce([run[name] for run in runs])), 4) for name in runs[0]}


if __name__ == "__main__":
    main()
