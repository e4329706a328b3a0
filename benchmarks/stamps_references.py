"""Stronger references on stamps: how much captions and pictures tell by what is known.

    python -m benchmarks.stamps_references --json
    python -m benchmarks.stamps_references --data DIR     # as benchmarks.stamps

The stamps and the split are those of `benchmarks.stamps`. No network is trained. Rows:

    captions    of each held-out stamp, the training caption with the highest chrF2 against the
                stamp's own: the most that any choice among training captions reaches ("of each",
                the mean over the stamps; "of the ...", all as one text, is that choice's score);
                and the stamp's own caption without the words that no training caption has
    nearest     chrF2 of the caption nearest to the picture in the space of "retrieval", of the
                training captions, and of these and the names of ImageNet's classes; the same folds
                choose the weight of the class names for each
    retrieval   captions and pictures by regularised canonical correlation of the preset's frozen
                features, and beside it the similarity of the caption to the picture's expected
                ImageNet class name; on the held-out stamps, and "cross-validated" on the known
                ones, whose five folds choose the ridge and the weight of the class names;
                "correlation alone" without class names
    category    by scikit-learn's logistic regression and support vectors (RBF) on the features of
                captions and pictures side by side, each of length 1; the same folds choose C
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from benchmarks.common import arguments, by_item, finish, paired
from benchmarks.stamps import FOLDS, apart, chrf, grouped, ranked
from braid.encoders import Sample, TrainConfig, preset
from braid.encoders.model.caption import spell, words_of
from braid.encoders.model.checkpoint import make_net
from braid.encoders.training.data import gather
from braid.encoders.training.start import RIDGE, canonical
from braid.stream.datasets.sources import default_cache, folder, stamps

RIDGES = (0.3, 1.0, 3.0)
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
CLASSIFIERS = {
    "logistic regression": partial(LogisticRegression, max_iter=3000),
    "support vectors": SVC,
}
COSTS = (1, 3, 10, 30, 100, 300)
Hits = dict[str, list[float]]


def best_captions(known: Sequence[Sample], unseen: Sequence[Sample]) -> tuple[Hits, float]:
    """chrF2 of the best training caption for each of `unseen`, and of all of these as one text."""
    texts = sorted({sample.text for sample in known if sample.text})
    truth = [sample.text or "" for sample in unseen]
    chosen = [max(texts, key=lambda text: chrf([text], [one])) for one in truth]
    each = [chrf([a], [b]) for a, b in zip(chosen, truth, strict=True)]
    return {"chrF of each, best training caption": each}, chrf(chosen, truth)


def known_words(known: Sequence[Sample], unseen: Sequence[Sample]) -> tuple[Hits, float]:
    """chrF2 of the captions of `unseen` without the words that no caption of `known` has, and the
    share of these words among all that are longer than three letters."""
    words = {word for sample in known for word in words_of(sample.text or "")}
    each, told = [], []
    for sample in unseen:
        own = words_of(sample.text or "")
        each.append(chrf([spell([word for word in own if word in words])], [sample.text or ""]))
        told += [word in words for word in own if len(word) > 3]
    return {"chrF of each, own caption, known words": each}, 1 - float(np.mean(told))


def class_captions() -> list[str]:
    """The names of ImageNet's classes as captions: "A tench."."""
    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    return [f"{'An' if name[0].lower() in 'aeiou' else 'A'} {name.lower()}." for name in names]


def features(
    samples: Sequence[Sample], config: TrainConfig, names: Sequence[str] = ("text", "image")
) -> list[Tensor]:
    """Features of captions and of pictures, float[n, F] each, by the preset's encoders."""
    encoders = {name: config.model.encoders[name] for name in names}
    config = replace(config, judge=False, model=replace(config.model, encoders=encoders))
    data = gather(
        samples,
        make_net(config, {}),
        config,
        all_frozen=True,
        device=torch.device("cpu"),
        progress=lambda *_: None,
    )
    place = {id_: number for number, id_ in enumerate(data.ids)}
    rows = torch.tensor([place[sample.id] for sample in samples])
    views = []
    for name in names:
        column = data.columns[name]
        assert column.features_nF is not None
        views.append(column.features_nF[column.row_N[rows]])
    return views


def hits(
    views: Sequence[Tensor],
    known_n: Tensor,
    asked_m: Tensor,
    *,
    dim: int,
    ridge: float,
    names: int,
    weights: Sequence[float],
) -> dict[float, Hits]:
    """Hits among the samples at `asked_m`, by the weight of the class names.

    Args:
        views: features of captions and of pictures; the last `names` values of either are a vector
            of the text encoder.
        known_n: the samples that the canonical correlation is fitted to.
    """
    maps = canonical({str(n): view[known_n] for n, view in enumerate(views)}, dim, ridge).values()
    parts = []
    for view, (map_FD, bias_D) in zip(views, maps, strict=True):
        unit_mD = F.normalize(view[asked_m].double() @ map_FD + bias_D, dim=1)
        parts.append((unit_mD, F.normalize(view[asked_m][:, view.shape[1] - names :], dim=1)))
    found = {}
    for weight in weights:
        text_mD, image_mD = (
            list(torch.cat([unit_mD, weight**0.5 * name_mF], dim=1).float().numpy())
            for unit_mD, name_mF in parts
        )
        found[weight] = {
            **ranked("text->image", text_mD, image_mD),
            **ranked("image->text", image_mD, text_mD),
        }
    return found


def nearest(
    views: Sequence[Tensor],
    further: tuple[Sequence[str], Tensor],
    known: Sequence[Sample],
    unseen: Sequence[Sample],
    config: TrainConfig,
) -> dict[str, Any]:
    """The rows of the nearest caption.

    Args:
        views: features of the known, then of the unseen.
        further: captions that no stamp has, and their features.
    """
    width = int(config.model.encoders["image"].options.get("names", 0))
    place = {sample.id: number for number, sample in enumerate([*known, *unseen])}

    def scores(
        fit_on: Sequence[Sample], asked: Sequence[Sample], weight: float
    ) -> dict[str, list[float]]:
        learnt, seen = (torch.tensor([place[one.id] for one in side]) for side in (fit_on, asked))
        both = {"text": views[0][learnt], "image": views[1][learnt]}
        maps = canonical(both, config.model.dim, RIDGE)
        pool_pF = torch.cat([both["text"], further[1]])
        texts = [*(one.text or "" for one in fit_on), *further[0]]

        def unit(name: str, view_nF: Tensor) -> Tensor:
            map_FD, bias_D = maps[name]
            return F.normalize(view_nF.double() @ map_FD + bias_D, dim=1)

        def named(view_nF: Tensor) -> Tensor:
            return F.normalize(view_nF[:, view_nF.shape[1] - width :].double(), dim=1)

        image_mF = views[1][seen]
        like_mp = unit("image", image_mF) @ unit("text", pool_pF).T
        if width:
            like_mp += weight * named(image_mF) @ named(pool_pF).T
        found = {"captions": like_mp[:, : len(fit_on)], "captions and class names": like_mp}
        return {
            pool: [
                chrf([texts[best]], [one.text or ""])
                for best, one in zip(similar.argmax(1).tolist(), asked, strict=True)
            ]
            for pool, similar in found.items()
        }

    crossed: dict[float, dict[str, list[float]]] = {}
    for weight, fold in product(WEIGHTS if width else (0.0,), range(FOLDS)):
        for pool, each in scores(*apart(known, fold), weight).items():
            crossed.setdefault(weight, {}).setdefault(pool, []).extend(each)
    best = {pool: max(crossed, key=lambda w: sum(crossed[w][pool])) for pool in crossed[0.0]}
    rows: dict[str, Any] = {}
    for how, items in (
        ("held out", {pool: scores(known, unseen, best[pool])[pool] for pool in best}),
        ("cross-validated", {pool: crossed[best[pool]][pool] for pool in best}),
    ):
        gain = paired([items], "captions and class names", "captions")
        rows[f"nearest, {how}"] = by_item([items]) | {"gain by class names": gain}
    rows["nearest, held out"] |= {f"weight of class names, {pool}": best[pool] for pool in best}
    return rows


def retrieval(
    views: Sequence[Tensor],
    known: Sequence[Sample],
    unseen: Sequence[Sample],
    config: TrainConfig,
) -> dict[str, Any]:
    """The rows of retrieval; `views` are the features of the known, then of the unseen."""
    names = int(config.model.encoders["image"].options.get("names", 0))
    weights = WEIGHTS if names else (0.0,)
    place = {sample.id: number for number, sample in enumerate([*known, *unseen])}

    def at(some: Sequence[Sample]) -> Tensor:
        return torch.tensor([place[sample.id] for sample in some])

    def asked(fit_on: Sequence[Sample], some: Sequence[Sample], ridge: float) -> dict[float, Hits]:
        dim = config.model.dim
        return hits(views, at(fit_on), at(some), dim=dim, ridge=ridge, names=names, weights=weights)

    crossed: dict[tuple[float, float], Hits] = {}
    for ridge, fold in product(RIDGES, range(FOLDS)):
        for weight, found in asked(*apart(known, fold), ridge).items():
            for name, values in found.items():
                crossed.setdefault((ridge, weight), {}).setdefault(name, []).extend(values)
    ridge, weight = max(crossed, key=lambda one: sum(crossed[one]["text->image recall@1"]))
    settings = {"ridge": ridge, "weight of the class names": weight}
    held_out = asked(known, unseen, ridge)
    return {
        "retrieval": by_item([held_out[weight]]) | settings,
        "retrieval, correlation alone": by_item([held_out[0.0]]) | {"ridge": ridge},
        "retrieval, cross-validated": by_item([crossed[ridge, weight]]) | settings,
    }


def category(
    views: Sequence[Tensor], known: Sequence[Sample], unseen: Sequence[Sample]
) -> dict[str, Any]:
    """The rows of the category; `views` are the features of the known, then of the unseen."""
    samples = [*known, *unseen]
    values = torch.cat([F.normalize(view, dim=1) for view in views], dim=1).numpy()
    truth = np.array([sample.labels["category"] for sample in samples])
    place = {sample.id: number for number, sample in enumerate(samples)}

    def right(make: Any, fit_on: Sequence[Sample], some: Sequence[Sample]) -> list[float]:
        learnt, asked = ([place[one.id] for one in side] for side in (fit_on, some))
        told = make().fit(values[learnt], truth[learnt]).predict(values[asked])
        return [float(each) for each in told == truth[asked]]

    rows = {}
    for name, classifier in CLASSIFIERS.items():
        crossed = {
            cost: [
                each
                for fold in range(FOLDS)
                for each in right(partial(classifier, C=cost), *apart(known, fold))
            ]
            for cost in COSTS
        }
        cost = max(crossed, key=lambda one: sum(crossed[one]))
        held_out = right(partial(classifier, C=cost), known, unseen)
        rows[f"category, {name}"] = {
            **by_item([{"accuracy": held_out}]),
            **by_item([{"accuracy, cross-validated": crossed[cost]}]),
            "C": cost,
        }
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, parts=("captions", "nearest", "retrieval", "category"), seeds=False)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--data", type=Path, help="a folder instead of the stamps")
    parser.add_argument("--cache", type=Path, default=default_cache())
    options = parser.parse_args(argv)
    items = folder(options.data) if options.data else stamps(options.cache)
    samples = [Sample(id=i.id, text=i.text, **i.media, labels=i.labels) for i in items]
    known, unseen = (
        [sample for sample in side if sample.text and sample.image] for side in grouped(samples)
    )
    rows: dict[str, Any] = {}
    if options.part in (None, "captions"):
        each, together = best_captions(known, unseen)
        own, unknown = known_words(known, unseen)
        rows["captions"] = by_item([each | own]) | {
            "chrF of the best training caption": together,
            "share of words that no training caption has": unknown,
        }
    if options.part != "captions":
        config = preset(options.preset)
        views = features([*known, *unseen], config)
        if options.part in (None, "nearest"):
            texts = class_captions()
            named = [Sample(id=text, text=text) for text in texts]
            (named_KF,) = features(named, config, ["text"])
            rows |= nearest(views, (texts, named_KF), known, unseen, config)
        if options.part in (None, "retrieval"):
            rows |= retrieval(views, known, unseen, config)
        if options.part in (None, "category"):
            rows |= category(views, known, unseen)
    report = {"benchmark": "stamps-references", "known": len(known), "held_out": len(unseen)}
    return finish({**report, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
