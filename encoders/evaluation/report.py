"""The report on a version: metrics, robustness, shuffled modalities, a map of the space.

Shapes: B samples, M modalities, D the shared space.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..backbones.base import Features
from ..backbones.sub_batches import encode_all, one_thread
from ..errors import BadInput
from ..model.net import Net
from ..model.torch_model import TorchModel
from ..training.decisions import accuracies, decided_tasks
from ..training.embeddings import group_of
from ..training.encoded import EncodedSamples
from ..training.evaluate import compute_metrics
from ..training.targets import targets_of
from ..types import Sample
from .corruptions import LEVELS, corrupted

Progress = Callable[[str, int, int], None]
"""Called with the stage, the number done and the total."""


def report(
    model: TorchModel, samples: Sequence[Sample], *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """All metrics of a version.

    Args:
        samples: not used in training; bad ones are counted and left out.
        seed: of the noise and the permutations.

    Returns:
        the result of `braid.encoders.training.evaluate.compute_metrics`, and
        robustness: modality -> [{"level", "unit", "accuracy": {task: as above}}], one modality
            corrupted at a time, videos never.
        shuffled: modality -> task -> the decision's score when that modality is permuted among the
            samples; "as it is" beside it. No fall means that the modality is not used.
        map: {"points": [[x, y], ...], "label": [...], "ids": [...]}: the fused vectors on their
            first two principal components, at most `MAP` of them.
    """
    notify: Progress = progress or (lambda what, done, total: None)
    left_out: Counter[str] = Counter()
    with torch.no_grad(), one_thread(model.device.type == "cpu"):
        kept, seen = encode_samples(model, samples, left_out)
        result = compute_metrics(model.net, seen, model.served)
        result["model"] = {"name": model.name, "space": model.space}
        result["left_out"] = dict(left_out)
        rng = np.random.default_rng([seed, 4242])
        known = [name for name in model.modalities if name in LEVELS]
        steps = [(name, level) for name in known for level in LEVELS[name].levels]
        robust: dict[str, list[dict[str, Any]]] = {}
        for done, (name, level) in enumerate(steps):
            notify("robustness", done, len(steps))
            worse = [corrupted(sample, name, level, rng) for sample in kept]
            _, view = encode_samples(model, worse, Counter(), only=name, beside=seen)
            scores = _scores(model.net, view)
            robust.setdefault(name, []).append(
                {"level": level, "unit": LEVELS[name].unit, "accuracy": scores}
            )
        result["robustness"] = robust
        result["shuffled"] = _shuffled(model.net, seen, rng)
        result["map"] = _map(model, seen, kept)
    return result


MAP = 2000


def encode_samples(
    model: TorchModel,
    samples: Sequence[Sample],
    left_out: Counter[str],
    *,
    only: str | None = None,
    beside: EncodedSamples | None = None,
) -> tuple[list[Sample], EncodedSamples]:
    """The usable samples, and their features.

    Args:
        left_out: counts the others.
        only: encode just this modality and take the rest from `beside`, a view of the same samples.
    """
    kept, prepared = [], []
    for sample in samples:
        try:
            prepared.append(model.prepare(sample))
            kept.append(sample)
        except BadInput:
            left_out["bad input"] += 1
    net = model.net
    present_BM = torch.tensor(
        [[name in item.inputs for name in net.modalities] for item in prepared], dtype=torch.bool
    ).reshape(len(prepared), len(net.modalities))
    features: dict[str, Features] = {} if beside is None else dict(beside.features)
    for name in net.modalities:
        inputs: list[Any] = [item.inputs[name] for item in prepared if name in item.inputs]
        if inputs and only in (None, name):
            features[name] = encode_all(
                net.encoder(name), inputs, model.device, tokens=net.needs_tokens
            )
    if beside is not None:
        return kept, replace(beside, features=features)
    return kept, EncodedSamples(
        features=features,
        present_BM=present_BM.to(model.device),
        kept_BM=present_BM.to(model.device),
        group_B=group_of(kept),
        target={
            name: targets_of(task, [sample.labels.get(name) for sample in kept])
            for name, task in net.tasks.items()
            if task.kind != "generation"
        },
    )


def _scores(net: Net, seen: EncodedSamples) -> dict[str, Any]:
    scores_by_task = {}
    for name, _, decision in decided_tasks(net):
        scores = accuracies(net, name, copy.deepcopy(decision).cpu(), seen)
        if scores:
            scores_by_task[name] = scores
    return scores_by_task


def _shuffled(net: Net, seen: EncodedSamples, rng: np.random.Generator) -> dict[str, Any]:
    """The decision's scores when one modality at a time is permuted among the samples with it."""

    def scores(view: EncodedSamples) -> dict[str, float]:
        return {task: task_scores["fused"] for task, task_scores in _scores(net, view).items()}

    shuffled = {"as it is": scores(seen)}
    for name, features in seen.features.items():
        pooled_BF = features.pooled_BF
        order = torch.from_numpy(rng.permutation(len(pooled_BF))).to(pooled_BF.device)
        mixed = Features(
            pooled_BF=pooled_BF[order],
            tokens_BTF=None if features.tokens_BTF is None else features.tokens_BTF[order],
            mask_BT=None if features.mask_BT is None else features.mask_BT[order],
        )
        shuffled[name] = scores(replace(seen, features={**seen.features, name: mixed}))
    return shuffled


def _map(model: TorchModel, seen: EncodedSamples, samples: Sequence[Sample]) -> dict[str, Any]:
    """The fused vectors on their first two principal components."""
    _, fused_BD = model.net.align(seen.features, seen.present_BM)
    shown = model.served(fused_BD)[:MAP].double().cpu()
    if len(shown) < 3:
        return {"points": [], "label": [], "ids": []}
    centred_BD = shown - shown.mean(0)
    _, _, axes = torch.linalg.svd(centred_BD, full_matrices=False)
    points = (centred_BD @ axes[:2].T).tolist()
    tasks = model.net.tasks
    named = next((name for name, task in tasks.items() if task.kind == "classification"), None)
    labels = [str(s.labels.get(named, "")) if named else "" for s in samples[:MAP]]
    return {
        "points": [[round(x, 4), round(y, 4)] for x, y in points],
        "label": labels,
        "ids": [sample.id for sample in samples[:MAP]],
    }
