"""Fits decisions and computes metrics on encoded samples.

Shapes: B samples, M modalities, S sources, D the shared space, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import Features, encode_all
from ..model.decision import Decision
from ..model.net import Net
from ..tasks import Task
from .batches import Batch
from .data import Dataset
from .metrics import calibration_error, label_f1, mean_error, recall
from .objective import Objective


@dataclass(frozen=True, kw_only=True)
class EncodedSamples:
    """Some samples, encoded.

    Attributes:
        features: modality to its features, one row for each sample that has it.
        present_BM: which samples have it.
        kept_BM: the modalities that are used, a subset.
    """

    features: Mapping[str, Features]
    present_BM: Tensor
    kept_BM: Tensor
    group_B: Tensor
    target: Mapping[str, Tensor]

    def only(self, subset_M: Tensor) -> EncodedSamples:
        """The same samples with only these modalities."""
        return replace(self, kept_BM=self.present_BM & subset_M)


def encode_rows(
    net: Net,
    data: Dataset,
    rows: Tensor,
    device: torch.device,
    rng: np.random.Generator | None = None,
) -> EncodedSamples:
    """Encode `rows`. With `rng`, the inputs of trained encoders are augmented first."""
    features: dict[str, Features] = {}
    net.eval()
    for name, column in data.columns.items():
        places = column.row_N[rows]
        places = places[places >= 0]
        if len(places) == 0:
            continue
        if column.features_nF is not None:
            features[name] = column.take(places, device)
            continue
        encoder = net.encoder(name)
        inputs = [column.inputs[int(place)] for place in places]
        if rng is not None:
            inputs = [encoder.vary(value, rng) for value in inputs]
        features[name] = encode_all(encoder, inputs, device, tokens=net.needs_tokens)
    present_BM = data.present_NM[rows].to(device)
    return EncodedSamples(
        features=features,
        present_BM=present_BM,
        kept_BM=present_BM,
        group_B=data.group_N[rows],
        target={k: v[rows] for k, v in data.target.items()},
    )


def held_out_loss(
    net: Net, objective: Objective, data: Dataset, rows: Tensor, device: torch.device
) -> float:
    """The joint loss on `rows` without augmentation and dropout, under fixed random subsets."""
    total = 0.0
    net.eval()
    objective.eval()
    for part in rows.split(objective.config.batch):
        seen = encode_rows(net, data, part, device)
        batch = Batch(
            features=seen.features,
            present_BM=seen.present_BM,
            group_B=seen.group_B.to(device),
            target={name: target.to(device) for name, target in seen.target.items()},
            old_BSD=None if data.old_NSD is None else data.old_NSD[part].to(device),
        )
        with torch.no_grad():
            terms = objective(net, batch, np.random.default_rng(0))
        total += float(terms.loss) * len(part)
    objective.train()
    return total / max(len(rows), 1)


def fit_decisions(
    net: Net, data: Dataset, rows: Tensor, device: torch.device, *, copies: int = 0, seed: int = 0
) -> None:
    """Fit each task's temperatures and weights on `rows`, over all of them and for each subset of
    the modalities; `copies` augmented copies are added, so that the fit allows for noise."""
    rng = np.random.default_rng([seed, 1])  # not the training's
    views = [
        encode_rows(net, data, rows, device, rng if copy else None) for copy in range(copies + 1)
    ]
    for (name, task), decision in zip(net.tasks.items(), net.decisions, strict=True):
        if task.kind == "generation":
            continue
        decision.cpu()
        _fit(net, name, decision.fit, views)
        for number, subset_M in subsets(net):
            kept = [one.only(subset_M.to(device)) for one in views]

            def fit(*tensors: Tensor, number: int = number) -> None:
                decision.fit_subset(number, *tensors)  # noqa: B023 (called at once)

            _fit(net, name, fit, kept, whole_M=subset_M)
        decision.to(device)


def subsets(net: Net) -> Iterator[tuple[int, Tensor]]:
    """The number and the members, bool[M], of each non-empty subset of the modalities."""
    for number in range(1, 2 ** len(net.modalities)):
        yield number, torch.tensor([bool(number >> m & 1) for m in range(len(net.modalities))])


def name_of(net: Net, subset_M: Tensor) -> str:
    """Such as "text+image"."""
    return "+".join(m for m, here in zip(net.modalities, subset_M.tolist(), strict=True) if here)


def evaluate(net: Net, data: Dataset, rows: Tensor, device: torch.device) -> dict[str, Any]:
    """`compute_metrics` of the samples at `rows`."""
    return compute_metrics(net, encode_rows(net, data, rows, device))


def compute_metrics(
    net: Net, seen: EncodedSamples, served: Callable[[Tensor], Tensor] = lambda vectors: vectors
) -> dict[str, Any]:
    """Metrics of a version on these samples.

    Args:
        served: maps the net's vectors to those that are served (`TorchModel.served`).

    Returns:
        samples: how many.
        recall: "text->image" and so on, every directed pair: recall@1, 5, 10.
        recall_fused: "text->fused", "text->image" by the fused vector of each query subset; the
            target is a modality outside the subset, or the fused vector of all outside it.
        accuracy: for each task the decision's ("fused"), each source's alone ("text", ...,
            "fused head") and the decision's for each subset ("subsets"): accuracy of classes, F1
            of several labels, mean absolute error of numbers in their own unit.
        calibration_error: of classification, "before" and "after" temperatures, by source.
    """
    result: dict[str, Any] = {"samples": len(seen.group_B)}
    with torch.no_grad():
        unit_BMD = served(net.units(seen.features, seen.present_BM)).cpu()
        result["recall"] = _recalls(net, seen, unit_BMD)
        result["recall_fused"] = _fused_recalls(net, seen, unit_BMD, served)
        accuracy: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        for (name, task), decision in zip(net.tasks.items(), net.decisions, strict=True):
            if task.kind == "generation":
                continue
            task_scores = accuracies(net, name, task, decision, seen)
            if task_scores is not None:
                accuracy[name] = task_scores
            if task.kind == "classification":
                errors[name] = _calibration(net, name, decision, seen)
        result["accuracy"] = accuracy
        result["calibration_error"] = errors
    return result


def source_logits(net: Net, task: str, seen: EncodedSamples) -> tuple[Tensor, Tensor]:
    """The logits of each source, logits_BSC, and present_BS, on the CPU. No gradient."""
    with torch.no_grad():
        unit_BMD = net.units(seen.features, seen.present_BM)
        tokens = net.tokens(seen.features, seen.present_BM)
        fused_BD = net.fusion(unit_BMD, seen.kept_BM, tokens)
        logits_BSC = net.logits(task, seen.features, unit_BMD, fused_BD, seen.present_BM)
    present_BS = torch.cat([seen.kept_BM, torch.ones_like(seen.kept_BM[:, :1])], dim=1)
    return logits_BSC.cpu(), present_BS.cpu()


def _fit(
    net: Net,
    task: str,
    fit: Callable[[Tensor, Tensor, Tensor], None],
    views: list[EncodedSamples],
    whole_M: Tensor | None = None,
) -> None:
    """Fit on all views together; with `whole_M` on the samples that have all of it."""
    parts = []
    for seen in views:
        logits_BSC, present_BS = source_logits(net, task, seen)
        kept_BM = present_BS[:, :-1]
        here_B = kept_BM.any(1) if whole_M is None else (kept_BM == whole_M).all(1)
        parts.append((logits_BSC[here_B], present_BS[here_B], seen.target[task][here_B]))
    fit(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _recalls(net: Net, seen: EncodedSamples, unit_BMD: Tensor) -> dict[str, dict[str, float]]:
    present_BM = seen.present_BM.cpu()
    recalls = {}
    for left, right in permutations(range(len(net.modalities)), 2):
        both_B = present_BM[:, left] & present_BM[:, right]
        if int(both_B.sum()) > 1:
            recalls[f"{net.modalities[left]}->{net.modalities[right]}"] = recall(
                unit_BMD[both_B, left], unit_BMD[both_B, right], seen.group_B[both_B]
            )
    return recalls


def _fused_recalls(
    net: Net, seen: EncodedSamples, unit_BMD: Tensor, served: Callable[[Tensor], Tensor]
) -> dict[str, dict[str, float]]:
    fused: dict[str, Tensor] = {}
    units = net.units(seen.features, seen.present_BM)
    tokens = net.tokens(seen.features, seen.present_BM)
    for _, subset_M in subsets(net):
        kept_BM = seen.only(subset_M.to(seen.present_BM.device)).kept_BM
        fused[name_of(net, subset_M)] = served(net.fusion(units, kept_BM, tokens)).cpu()
    present_BM = seen.present_BM.cpu()
    recalls = {}
    for _, subset_M in subsets(net):
        others = [m for m in range(len(net.modalities)) if not subset_M[m]]
        query = name_of(net, subset_M)
        for size in range(1, len(others) + 1):
            if size not in (1, len(others)):
                continue
            for chosen in combinations(others, size):
                target_M = torch.zeros_like(subset_M)
                target_M[list(chosen)] = True
                both_B = (present_BM | ~(subset_M | target_M)).all(1)
                if int(both_B.sum()) < 2:
                    continue
                if size == len(others):
                    recalls[f"{query}->fused"] = recall(
                        fused[query][both_B],
                        fused[name_of(net, target_M)][both_B],
                        seen.group_B[both_B],
                    )
                if size == 1:
                    recalls[f"{query}->{name_of(net, target_M)}"] = recall(
                        fused[query][both_B], unit_BMD[both_B, chosen[0]], seen.group_B[both_B]
                    )
    return recalls


def _class_score(task: Task, decided_B: Tensor, target_B: Tensor) -> float:
    return float((decided_B == target_B).float().mean())


def _number_score(task: Task, value_B: Tensor, target_B: Tensor) -> float:
    return task.spread * mean_error(value_B, target_B)


_SCORE: dict[str, Callable[[Task, Tensor, Tensor], float]] = {
    "classification": _class_score,
    "multilabel": lambda task, outputs_BC, target_BC: label_f1(outputs_BC, target_BC),
    "regression": _number_score,
}
_ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "classification": lambda outputs_BC: outputs_BC.argmax(1),
    "multilabel": lambda outputs_BC: outputs_BC > 0.5,
    "regression": lambda outputs_BC: outputs_BC[:, 0],
}


def known(target: Tensor) -> Tensor:
    """Which samples have a label, bool[B]."""
    here = target >= 0 if target.dtype == torch.long else ~target.isnan()
    return here if here.ndim == 1 else here.all(1)


def accuracies(
    net: Net, name: str, task: Task, decision: Decision, seen: EncodedSamples
) -> dict[str, Any] | None:
    """The decision's score, each source's alone, and the decision's for each subset; see
    `compute_metrics`. None where no sample has a label."""
    target, score = seen.target[name], _SCORE[task.kind]
    decision = decision.cpu()
    known_B = known(target)
    if not bool(known_B.any()):
        return None
    logits_BSC, present_BS = source_logits(net, name, seen)
    outputs_BSC, _, decided = decision(logits_BSC, present_BS)
    scores: dict[str, Any] = {"fused": score(task, decided[known_B], target[known_B])}
    for position, source in enumerate(net.sources):
        here_B = known_B & present_BS[:, position]
        if bool(here_B.any()):
            alone = _ALONE[task.kind](outputs_BSC[here_B, position])
            scores["fused head" if source == "fused" else source] = score(
                task, alone, target[here_B]
            )
    scores["subsets"] = {}
    for _, subset_M in subsets(net):
        logits_BSC, present_BS = source_logits(
            net, name, seen.only(subset_M.to(seen.present_BM.device))
        )
        here_B = known_B & (present_BS[:, :-1] == subset_M).all(1)
        if bool(here_B.any()):
            _, _, decided = decision(logits_BSC[here_B], present_BS[here_B])
            scores["subsets"][name_of(net, subset_M)] = score(task, decided, target[here_B])
    decision.to(seen.present_BM.device)
    return scores


def _calibration(net: Net, name: str, decision: Decision, seen: EncodedSamples) -> dict[str, Any]:
    """Before temperatures: softmax of the logits as they are; for the decision, their mean."""
    target_B = seen.target[name]
    decision = decision.cpu()
    known_B = target_B >= 0
    logits_BSC, present_BS = source_logits(net, name, seen)
    after_BSC, combined_BC, _ = decision(logits_BSC, present_BS)
    before_BSC = torch.softmax(logits_BSC, dim=2)
    here_BS1 = present_BS[:, :, None].float()
    mean_BC = (before_BSC * here_BS1).sum(1) / here_BS1.sum(1)
    result: dict[str, Any] = {"before": {}, "after": {}}
    pairs = [("decision", mean_BC, combined_BC, known_B)]
    for position, source in enumerate(net.sources):
        here_B = known_B & present_BS[:, position]
        pairs.append((source, before_BSC[:, position], after_BSC[:, position], here_B))
    for source, before_BC, after_BC, here_B in pairs:
        if bool(here_B.any()):
            result["before"][source] = calibration_error(before_BC[here_B], target_B[here_B])
            result["after"][source] = calibration_error(after_BC[here_B], target_B[here_B])
    decision.to(seen.present_BM.device)
    return result
