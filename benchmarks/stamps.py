"""Stamps: recall between captions and pictures, accuracy, captions written; held-out fifth.

    python -m benchmarks.stamps --json                  # five trainings of each row
    python -m benchmarks.stamps --part recall --seeds 1
    python -m benchmarks.stamps --data DIR              # a folder laid out as the README says

The stamps come with apt into the cache folder the first time (`braid.stream.datasets.sources`). The
trainer sees only the four fifths that are not held out; recall is among the held-out stamps, a
stamp's own caption or picture (or the fused vector of all but the query's modality: "text->others")
being the only right answer, ties counted as wrong. No index takes part: the scores are the inner
products themselves.

Rows: the demo preset ("recall"); the same without the sound and with other weights of the alignment
("align ...", starting at random, since the canonical start is an alignment itself), and with a
decoder ("captions"): captions written from the picture alone by beam search, scored by chrF2
(Popović 2015; sacrebleu's) against the stamp's own caption, beside the caption of the nearest
training picture, and the nearest caption, in the same space. "folds": the preset and what it was
preferred to, cross-validated on the trainer's stamps alone; each seed leaves out another of five.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import arguments, finish, spread
from braid.encoders import Embedder, Embedding, Sample, TrainConfig, preset, train
from braid.encoders.config import TaskConfig
from braid.encoders.training.metrics import recall
from braid.encoders.types import Vector
from braid.stream.datasets.sources import default_cache, folder, held_out, stamps

PAIRS = (("text", "image"), ("image", "text"))
SOURCES = ("text", "image", "audio")
PARTS = ("recall", "captions", "sweep", "folds")
FOLDS = 5
EPOCHS = 100  # a decoder needs more of them
WEIGHTS = (0.0, 0.1, 0.3, 1.0)


def run(
    known: Sequence[Sample], unseen: Sequence[Sample], config: TrainConfig, seed: int
) -> dict[str, float]:
    """One training and its figures."""
    with tempfile.TemporaryDirectory() as place:
        version = Path(place) / "version"
        begun = time.perf_counter()
        fit(known, config, version, seed)
        trained = time.perf_counter()
        with Embedder.load(version) as embedder:
            embedder.model.check()
            loaded = time.perf_counter()
            embeddings = embedder.embed(unseen)
            embedded = time.perf_counter()
            rest = record_recalls(embedder, unseen)
    return {
        **recalls(embeddings),
        **rest,
        **accuracies(embeddings, unseen),
        "train seconds": trained - begun,
        "load seconds": loaded - trained,
        "embedded a second": len(unseen) / (embedded - loaded),
    }


def captions(
    known: Sequence[Sample], unseen: Sequence[Sample], config: TrainConfig, seed: int
) -> dict[str, float]:
    """A decoder trained with the rest; what it writes, and the nearest training caption."""
    config = replace(
        config,
        epochs=EPOCHS,
        model=replace(
            config.model,
            tasks={"caption": TaskConfig(kind="generation", source="text", min_count=1)},
        ),
    )
    alone = [only(sample, ["image"]) for sample in unseen]
    with tempfile.TemporaryDirectory() as place:
        version = Path(place) / "version"
        fit(known, config, version, seed)
        with Embedder.load(version) as embedder:
            embeddings = embedder.embed(alone)
            shelf = embedder.embed([only(s, ["image"]) for s in known])
            words = embedder.embed([only(s, ["text"]) for s in known])
    query_BD = np.stack([one.by["image"] for one in embeddings])
    by_picture = (query_BD @ np.stack([one.by["image"] for one in shelf]).T).argmax(1)
    by_caption = (query_BD @ np.stack([one.by["text"] for one in words]).T).argmax(1)
    truth = [sample.text or "" for sample in unseen]
    written = [one.tasks["caption"].text or "" for one in embeddings]
    texts = [sample.text or "" for sample in known]
    return {
        "chrF of the decoder": chrf(written, truth),
        "chrF of the nearest picture's caption": chrf([texts[i] for i in by_picture], truth),
        "chrF of the nearest caption": chrf([texts[i] for i in by_caption], truth),
        "exactly right": float(
            np.mean([plain(a) == plain(b) for a, b in zip(written, truth, strict=True)])
        ),
    }


def chrf(written: Sequence[str], truth: Sequence[str]) -> float:
    """Corpus chrF2, 0 to 1, case aside: the decoder writes lower case."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF(lowercase=True).corpus_score(list(written), [list(truth)]).score) / 100


def plain(caption: str) -> str:
    return caption.lower().strip(" .!")


def fit(samples: Sequence[Sample], config: TrainConfig, out: Path, seed: int) -> None:
    """Train under a progress bar. The held-out fifth judges: all other samples train."""
    with tqdm(desc=f"seed {seed}", leave=False) as bar:

        def show(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            bar.set_description(f"seed {seed}: {stage}")
            bar.total, bar.n = total, done
            bar.set_postfix(figures)

        train(
            samples,
            replace(config, judge=False),
            out=out,
            name="bench-0001",
            version=1,
            seed=seed,
            progress=show,
        )


def recalls(embeddings: Sequence[Embedding]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for query, target in PAIRS:
        both = [one.by for one in embeddings if query in one.by and target in one.by]
        way = f"{query}->{target}"
        figures |= ranked(way, [by[query] for by in both], [by[target] for by in both])
    return figures


def record_recalls(embedder: Embedder, samples: Sequence[Sample]) -> dict[str, float]:
    """Queries with one modality alone, against the fused vectors of all others of each record.

    Nothing for a model of two modalities, whose `recalls` say it already.
    """
    names = embedder.model.modalities
    if len(names) == 2:
        return {}
    figures: dict[str, float] = {}
    for source in names:
        others = [name for name in names if name != source]
        both = [s for s in samples if source in s.present and not set(s.present).isdisjoint(others)]
        query, target = (
            [one.fused for one in embedder.embed([only(s, kept) for s in both])]
            for kept in ([source], others)
        )
        figures |= ranked(f"{source}->others", query, target)
    return figures


def ranked(way: str, query: Sequence[Vector], target: Sequence[Vector]) -> dict[str, float]:
    """Recall@1, 5, 10, a query's only right target being the one at its own place."""
    query_BD, target_BD = (torch.from_numpy(np.stack(vectors)) for vectors in (query, target))
    recalls = recall(query_BD, target_BD, torch.arange(len(query_BD)))
    return {f"{way} recall@{k}": value for k, value in recalls.items()}


def choices(config: TrainConfig) -> dict[str, TrainConfig]:
    """`config`, and what it was preferred to."""
    return {
        "as it is": config,
        "match 0": replace(config, match=0.0),
        "mean fusion": replace(config, model=replace(config.model, fusion="mean")),
    }


def apart(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """All but one fold of `samples`, and that fold, by sha256 of the id."""

    def left_out(sample: Sample) -> bool:
        digest = hashlib.sha256(f"fold {sample.id}".encode()).hexdigest()
        return int(digest, 16) % FOLDS == seed % FOLDS

    return [s for s in samples if not left_out(s)], [s for s in samples if left_out(s)]


def only(sample: Sample, kept: Sequence[str]) -> Sample:
    gone: dict[str, Any] = dict.fromkeys(set(sample.present).difference(kept))
    return replace(sample, **gone)


def accuracies(embeddings: Sequence[Embedding], truth: Sequence[Sample]) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    for embedding, sample in zip(embeddings, truth, strict=True):
        for task, label in sample.labels.items():
            prediction = embedding.tasks[task]
            right.setdefault(f"{task} decision", []).append(prediction.label == label)
            for source in (*SOURCES, "fused"):
                if source in prediction.by:
                    is_right = prediction.by[source]["label"] == label
                    name = "fused vector" if source == "fused" else source
                    right.setdefault(f"{task} {name}", []).append(is_right)
    return {name: float(np.mean(values)) for name, values in sorted(right.items())}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, parts=PARTS)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--data", type=Path, help="a folder instead of the stamps")
    parser.add_argument("--cache", type=Path, default=default_cache())
    options = parser.parse_args(argv)
    items = folder(options.data) if options.data else stamps(options.cache)
    samples = [
        Sample(id=i.id, text=i.text, image=i.image, audio=i.audio, labels=i.labels) for i in items
    ]
    known = [sample for sample in samples if not held_out(sample.id)]
    unseen = [sample for sample in samples if held_out(sample.id)]
    config = preset(options.preset)
    rows: dict[str, Any] = {}
    seeds = range(options.seeds)

    def row(name: str, job: Any, config: TrainConfig) -> None:
        rows[name] = spread([job(known, unseen, config, seed) for seed in seeds])

    if options.part in (None, "recall"):
        row("recall", run, config)
    seen = {name: encoder for name, encoder in config.model.encoders.items() if name != "audio"}
    silent = replace(config, model=replace(config.model, encoders=seen))
    if options.part in (None, "captions"):
        row("captions", captions, replace(silent, fuse=0.3))
    if options.part in (None, "sweep"):
        for weight in WEIGHTS:
            row(f"align {weight:g}", run, replace(silent, align=weight, start="random"))
    if options.part in (None, "folds"):
        for name, choice in choices(config).items():
            rows[f"folds, {name}"] = spread([run(*apart(known, f), choice, f) for f in seeds])
    report = {
        "benchmark": "stamps",
        "preset": options.preset,
        "trained_on": len(known),
        "held_out": len(unseen),
        "seeds": options.seeds,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    return finish(report, options.json)


if __name__ == "__main__":
    main()
