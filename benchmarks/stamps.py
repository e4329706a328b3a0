"""Stamps: recall between captions and pictures, accuracy, calibration, captions; a held-out fifth.

    python -m benchmarks.stamps --json                  # five trainings of each row
    python -m benchmarks.stamps --resume FILE --json    # keeps finished trainings
    python -m benchmarks.stamps --part recall --seeds 1
    python -m benchmarks.stamps --data DIR              # CATEGORY/NAME.{txt,png,ogg}

The stamps come with apt into the cache folder the first time (`braid.stream.datasets.sources`). A
fifth is held out by the sha256 of a group: stamps with the same caption (case and punctuation
aside) or the same picture are on one side, so that no caption is known word for word (`--split id`:
by the id, as the demo does, which leaves 42 of 164 held-out captions among the known). Recall is
among the held-out stamps, a stamp's own caption or picture (or the fused vector of all but the
query's modality: "text->others") being the only right answer; ties count as wrong, and as right in
the figures with "ties right": two stamps with one caption tie. No index takes part: the scores are
the inner products themselves.

Each figure has its mean, the standard deviation over seeds and the standard error over stamps
(`benchmarks.common.by_item`). "decision - ..." is the decision's accuracy less that of the best
source, paired by stamp, with half its 95 % interval. "manifest ..." are figures of the version's
manifest, cross-fitted on the known stamps, beside the held-out ones.

Rows: the demo preset ("recall"); the same without the sound ("silent", and with other weights of
the alignment, "align ...", starting at random, since the canonical start is an alignment itself),
and with a decoder ("captions"): captions written from the picture alone, scored by
chrF2 (Popović 2015; sacrebleu's) against the stamp's own caption, beside the caption of the nearest
training picture, and the nearest caption, in the same space: of all captions as one text, and "of
each", the mean over captions, which can be compared by stamp. "folds": the preset and what it was
preferred to, cross-validated on the trainer's stamps alone; each seed, of at most five, leaves out
another fifth of the groups, and the figures are over all stamps that were left out.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import arguments, by_item, finish, paired, spread
from benchmarks.trainings import Finished, key_of, read_once
from braid.encoders import Embedder, Embedding, Sample, TrainConfig, preset, train
from braid.encoders.config import TaskConfig
from braid.encoders.feature_cache import FeatureCache
from braid.encoders.manifest import Manifest
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.training.metrics import RECALL_AT, calibration_error, mean_nll, ranks
from braid.encoders.types import Vector
from braid.stream.datasets.sources import default_cache, folder, held_out, stamps

PAIRS = (("text", "image"), ("image", "text"))
SOURCES = ("text", "image", "audio")
PARTS = ("recall", "silent", "captions", "sweep", "folds")
FOLDS = 5
FEATURES = FeatureCache(1 << 28)
"""Every seed's frozen encoders are the same."""
EPOCHS = 100  # a decoder needs more of them
WEIGHTS = (0.0, 0.1, 0.3, 1.0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: figures of each held-out stamp, and figures of the whole."""

    items: dict[str, list[float]]
    whole: dict[str, float]


def run(known: Sequence[Sample], unseen: Sequence[Sample], config: TrainConfig, seed: int) -> Run:
    """One training and its figures."""
    with tempfile.TemporaryDirectory() as place:
        version = Path(place) / "version"
        begun = time.process_time()
        manifest = fit(known, config, version, seed)
        trained = time.process_time()
        with Embedder.load(version) as embedder:
            embedder.model.check()
            assert isinstance(embedder.model, TorchModel)
            embedder.model.use(FEATURES)
            embeddings = embedder.embed(unseen)
            rest = record_recalls(embedder, unseen)
    whole = {
        "train CPU seconds": trained - begun,
        **calibration(embeddings, unseen, manifest),
    }
    items = {**recalls(embeddings), **rest, **accuracies(embeddings, unseen)}
    return Run(items=items, whole=whole)


def figures_of(runs: Sequence[Run]) -> dict[str, Any]:
    """A row of the table."""
    items = [one.items for one in runs]
    row: dict[str, Any] = {**by_item(items), **spread([one.whole for one in runs])}
    for task in {name.partition(" ")[0] for name in items[0] if name.endswith(" decision")}:
        alone = [f"{task} {source}" for source in (*SOURCES, "fused vector")]
        best = max((name for name in alone if name in row), key=lambda name: row[name]["mean"])
        row[f"{task} decision - best ({best})"] = paired(items, f"{task} decision", best)
    return row


def pooled(runs: Sequence[Run]) -> dict[str, Any]:
    """A row of runs that each test other stamps: `mean` over all stamps, `sd` over the runs."""
    every = {name: [v for one in runs for v in one.items[name]] for name in runs[0].items}
    means = [{name: float(np.mean(of)) for name, of in one.items.items()} for one in runs]
    row = figures_of([Run(items=every, whole={})])
    return row | {name: row[name] | {"sd": of["sd"]} for name, of in spread(means).items()}


def calibration(
    embeddings: Sequence[Embedding], truth: Sequence[Sample], manifest: Manifest
) -> dict[str, float]:
    """Likelihood and calibration error of the decision and of the fused vector, held out and by the
    manifest."""
    figures: dict[str, float] = {}
    validation = manifest.metrics["validation"]
    for task, raw in manifest.tasks.items():
        place = {label: number for number, label in enumerate(raw.get("classes", ()))}
        kept = [
            (one.tasks[task], place[str(sample.labels[task])])
            for one, sample in zip(embeddings, truth, strict=True)
            if sample.labels.get(task) in place
        ]
        if not kept:
            continue
        probs_BC = torch.tensor([[p.probs[label] for label in place] for p, _ in kept])
        label_B = torch.tensor([label for _, label in kept])
        figures[f"{task} nll"] = mean_nll(probs_BC, label_B)
        figures[f"{task} calibration error"] = calibration_error(probs_BC, label_B)
        figures[f"{task} manifest accuracy"] = validation["accuracy"][task]["fused"]
        for name, key in (("nll", "nll"), ("calibration error", "calibration_error")):
            after = validation[key][task]["after"]
            figures[f"{task} manifest {name}"] = after["decision"]
            figures[f"{task} manifest {name}, fused vector"] = after["fused"]
        for subset in ("all", "+".join(manifest.modalities)):
            for source, weight in manifest.calibration[task]["subsets"][subset]["weights"].items():
                figures[f"{task} weight of {source}, {subset}"] = weight
    return figures


def captions(
    known: Sequence[Sample], unseen: Sequence[Sample], config: TrainConfig, seed: int
) -> Run:
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
    said = {
        "decoder": written,
        "nearest picture's caption": [texts[i] for i in by_picture],
        "nearest caption": [texts[i] for i in by_caption],
    }
    right = [float(plain(a) == plain(b)) for a, b in zip(written, truth, strict=True)]
    each = {
        f"chrF of each, {name}": [chrf([a], [b]) for a, b in zip(of, truth, strict=True)]
        for name, of in said.items()
    }
    return Run(
        items={**each, "exactly right": right},
        whole={f"chrF of the {name}": chrf(of, truth) for name, of in said.items()},
    )


def captions_row(runs: Sequence[Run]) -> dict[str, Any]:
    """A row of the table: the decoder's captions, and how they compare with the nearest ones."""
    row, items = figures_of(runs), [one.items for one in runs]
    own, *others = (name for name in items[0] if name.startswith("chrF of each"))
    return row | {f"{own} - {other}": paired(items, own, other) for other in others}


def chrf(written: Sequence[str], truth: Sequence[str]) -> float:
    """Corpus chrF2, 0 to 1, case aside: the decoder writes lower case."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF(lowercase=True).corpus_score(list(written), [list(truth)]).score) / 100


def plain(caption: str) -> str:
    return caption.lower().strip(" .!")


def fit(samples: Sequence[Sample], config: TrainConfig, out: Path, seed: int) -> Manifest:
    """Train under a progress bar. The held-out fifth judges: all other samples train."""
    with tqdm(desc=f"seed {seed}", leave=False) as bar:

        def show(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            bar.set_description(f"seed {seed}: {stage}")
            bar.total, bar.n = total, done
            bar.set_postfix(figures)

        return train(
            samples,
            replace(config, judge=False),
            out=out,
            name="bench-0001",
            version=1,
            seed=seed,
            progress=show,
            queries=0,
        )


def recalls(embeddings: Sequence[Embedding]) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {}
    for query, target in PAIRS:
        both = [one.by for one in embeddings if query in one.by and target in one.by]
        way = f"{query}->{target}"
        figures |= ranked(way, [by[query] for by in both], [by[target] for by in both])
    return figures


def record_recalls(embedder: Embedder, samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Queries with one modality alone, against the fused vectors of all others of each record.

    Nothing for a model of two modalities, whose `recalls` say it already.
    """
    names = embedder.model.modalities
    if len(names) == 2:
        return {}
    figures: dict[str, list[float]] = {}
    for source in names:
        others = [name for name in names if name != source]
        both = [s for s in samples if source in s.present and not set(s.present).isdisjoint(others)]
        query, target = (
            [one.fused for one in embedder.embed([only(s, kept) for s in both])]
            for kept in ([source], others)
        )
        figures |= ranked(f"{source}->others", query, target)
    return figures


def ranked(way: str, query: Sequence[Vector], target: Sequence[Vector]) -> dict[str, list[float]]:
    """Hits at 1, 5 and 10, a query's only right target being the one at its own place; at 1 also
    with ties counted as right."""
    query_BD, target_BD = (torch.from_numpy(np.stack(vectors)) for vectors in (query, target))
    own_B = torch.arange(len(query_BD))
    rank_B = ranks(query_BD, target_BD, own_B)
    hits = {f"{way} recall@{k}": (rank_B < k).float().tolist() for k in RECALL_AT}
    right_B = ranks(query_BD, target_BD, own_B, ties_right=True) < 1
    return {**hits, f"{way} recall@1, ties right": right_B.float().tolist()}


def choices(config: TrainConfig) -> dict[str, TrainConfig]:
    """`config`, and what it was preferred to."""
    return {
        "as it is": config,
        "match 0": replace(config, match=0.0),
        "mean fusion": replace(config, model=replace(config.model, fusion="mean")),
    }


def apart(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """All but one fold of `samples`, and that fold, by sha256 of the group."""
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, group in zip(samples, groups(samples), strict=True):
        digest = hashlib.sha256(f"fold {group}".encode()).hexdigest()
        sides[int(digest, 16) % FOLDS == seed % FOLDS].append(sample)
    return sides


def only(sample: Sample, kept: Sequence[str]) -> Sample:
    gone: dict[str, Any] = dict.fromkeys(set(sample.present).difference(kept))
    return replace(sample, **gone)


def accuracies(embeddings: Sequence[Embedding], truth: Sequence[Sample]) -> dict[str, list[float]]:
    """Whether the decision and each source are right; a source that is absent is wrong."""
    right: dict[str, list[float]] = {}
    for task in sorted({task for sample in truth for task in sample.labels}):
        kept = [
            (embedding.tasks[task], sample.labels[task])
            for embedding, sample in zip(embeddings, truth, strict=True)
            if task in sample.labels and task in embedding.tasks
        ]
        right[f"{task} decision"] = [float(p.label == label) for p, label in kept]
        for source in (*SOURCES, "fused"):
            if any(source in p.by for p, _ in kept):
                name = "fused vector" if source == "fused" else source
                right[f"{task} {name}"] = [
                    float(source in p.by and p.by[source]["label"] == label) for p, label in kept
                ]
    return right


def groups(samples: Sequence[Sample]) -> list[str]:
    """The group of each sample: samples of one caption or picture have the same."""
    first: dict[object, int] = {}
    leader = list(range(len(samples)))

    def root(place: int) -> int:
        while leader[place] != place:
            place = leader[place]
        return place

    for place, sample in enumerate(samples):
        for content in (plain(sample.text) if sample.text else None, sample.image):
            if content is not None:
                leader[root(place)] = root(first.setdefault(content, place))
    return [samples[root(place)].id for place in range(len(samples))]


def grouped(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The known and the held-out samples; groups stay together."""
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, group in zip(samples, groups(samples), strict=True):
        sides[held_out(group)].append(sample)
    return sides


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, parts=PARTS, resume=True)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--data", type=Path, help="a folder instead of the stamps")
    parser.add_argument("--split", choices=("grouped", "id"), default="grouped")
    parser.add_argument("--cache", type=Path, default=default_cache())
    options = parser.parse_args(argv)
    items = folder(options.data) if options.data else stamps(options.cache)
    samples = [Sample(id=i.id, text=i.text, **i.media, labels=i.labels) for i in items]
    known, unseen = grouped(samples)
    if options.split == "id":
        known = [sample for sample in samples if not held_out(sample.id)]
        unseen = [sample for sample in samples if held_out(sample.id)]
    config = preset(options.preset)
    finished = Finished(options.resume)
    rows: dict[str, Any] = {}
    seeds = range(options.seeds)

    def training(
        job: Callable[..., Run], sides: tuple[Sequence[Sample], ...], config: TrainConfig, seed: int
    ) -> Run:
        key = key_of(job.__name__, config, seed, [sample.id for sample in sides[1]])
        return Run(**finished.result(key, lambda: asdict(job(*sides, config, seed))))

    def row(name: str, config: TrainConfig) -> None:
        rows[name] = figures_of([training(run, (known, unseen), config, seed) for seed in seeds])

    with read_once():
        if options.part in (None, "recall"):
            row("recall", config)
        seen = {name: encoder for name, encoder in config.model.encoders.items() if name != "audio"}
        silent = replace(config, model=replace(config.model, encoders=seen))
        if options.part in (None, "silent"):
            row("silent", silent)
        if options.part in (None, "captions"):
            writing = replace(silent, fuse=0.3)
            rows["captions"] = captions_row(
                [training(captions, (known, unseen), writing, seed) for seed in seeds]
            )
        if options.part in (None, "sweep"):
            for weight in WEIGHTS:
                row(f"align {weight:g}", replace(silent, align=weight, start="random"))
        if options.part in (None, "folds"):
            for name, choice in choices(config).items():
                folds = range(min(options.seeds, FOLDS))
                rows[f"folds, {name}"] = pooled(
                    [training(run, apart(known, fold), choice, fold) for fold in folds]
                )
    report = {
        "benchmark": "stamps",
        "preset": options.preset,
        "split": options.split,
        "trained_on": len(known),
        "held_out": len(unseen),
        "seeds": options.seeds,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    return finish(report, options.json)


if __name__ == "__main__":
    main()
