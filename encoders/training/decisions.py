"""Fits decisions on logits that their models have not learnt, and scores decisions.

Decisions (temperatures and weights) are fitted on the logits of samples that were left out of the
training that gave them. Their scores are cross-fitted: each sample is decided by a decision that
was fitted on the other folds (Chernozhukov et al. 2018, "Double/debiased machine learning", section
3, uses the same scheme).

Shapes: B samples, S sources, C classes, M modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.decision import Decision, known
from ..model.net import Net
from ..tasks import Task
from ..types import FUSED
from .data import Dataset
from .encoded import EncodedSamples, encode_rows, name_of, source_logits, subsets
from .metrics import (
    calibration_error,
    calibration_interval,
    interval,
    label_f1,
    mean_error,
    mean_nll,
    nll_of,
    share_interval,
)

WHOLE = 0
"""The number of the view with all modalities of each sample; others are numbers of subsets."""
MAX_FOLDS = 5
"""Of the decisions where the logits come from one training."""


def groups_of(data: Dataset, rows: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of each sample at `rows`, int[B], from 0: nearly equal ones, samples with the same
    content in one."""
    return _spread(data.group_N[rows], [0] * folds, seed)


def folds_of(data: Dataset, folds: int, seed: int) -> Tensor | None:
    """As `groups_of` for all samples, int[N]; all validation samples are in the last fold.

    None with less than two folds, or where the validation samples are more than one of them.
    """
    held_N = torch.isin(data.group_N, data.group_N[data.rows("validation")])
    held = int(held_N.sum())
    if folds < 2 or not 0 < held <= len(held_N) / folds:
        return None
    fold_N = torch.full((len(held_N),), folds - 1)
    fold_N[~held_N] = _spread(data.group_N[~held_N], [0] * (folds - 1) + [held], seed)
    return fold_N


def _spread(group_B: Tensor, sizes: list[int], seed: int) -> Tensor:
    """Spread groups over folds that have `sizes` samples already, each time to the smallest."""
    _, of_B, counts = torch.unique(group_B, return_inverse=True, return_counts=True)
    fold_of = torch.zeros(len(counts), dtype=torch.long)
    for group in np.random.default_rng([seed, 7]).permutation(len(counts)):
        fold = sizes.index(min(sizes))
        fold_of[group] = fold
        sizes[fold] += int(counts[group])
    return fold_of[of_B]


@dataclass(frozen=True, kw_only=True)
class TaskLogits:
    """One task's logits of some samples.

    Attributes:
        views: subset of the modalities, and `WHOLE`, to the logits, float[B, S, C], and which
            sources are present, bool[B, S]. A subset's are those of the samples that have it.
        targets: likewise to the targets, see `braid.encoders.training.targets`.
        folds: likewise to each sample's fold, int[B].
        copies: how often each sample is in it, augmented; the samples themselves come first.
    """

    views: Mapping[int, tuple[Tensor, Tensor]]
    targets: Mapping[int, Tensor]
    folds: Mapping[int, Tensor]
    copies: int = 1

    def kept(self, number: int, here_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, presence and targets of the view's rows where `here_B` is True."""
        logits_BSC, present_BS = self.views[number]
        return logits_BSC[here_B], present_BS[here_B], self.targets[number][here_B]


def view_logits(net: Net, task: str, seen: EncodedSamples, fold_B: Tensor) -> TaskLogits:
    """All views of one task on some samples."""
    views, targets, folds = {}, {}, {}
    whole_M = torch.ones(len(net.modalities), dtype=torch.bool)
    for number, subset_M in ((WHOLE, whole_M), *subsets(net)):
        chosen = seen if number == WHOLE else seen.only(subset_M.to(seen.present_BM.device))
        logits_BSC, present_BS = source_logits(net, task, chosen)
        kept_BM = present_BS[:, :-1]
        here_B = kept_BM.any(1) if number == WHOLE else (kept_BM == subset_M).all(1)
        views[number] = (logits_BSC[here_B], present_BS[here_B])
        targets[number], folds[number] = seen.target[task][here_B], fold_B[here_B]
    return TaskLogits(views=views, targets=targets, folds=folds)


def together(parts: Sequence[TaskLogits], copies: int = 1) -> TaskLogits:
    """The samples of all parts."""

    def column(name: str) -> dict[int, Tensor]:
        return {n: torch.cat([getattr(p, name)[n] for p in parts]) for n in parts[0].views}

    views = {
        number: (
            torch.cat([part.views[number][0] for part in parts]),
            torch.cat([part.views[number][1] for part in parts]),
        )
        for number in parts[0].views
    }
    return TaskLogits(views=views, targets=column("targets"), folds=column("folds"), copies=copies)


def decided_tasks(net: Net) -> Iterator[tuple[str, Task, Decision]]:
    """The tasks that have a decision: all but captions."""
    for (name, task), decision in zip(net.tasks.items(), net.decisions, strict=True):
        if task.kind != "generation":
            yield name, task, decision


def logits_of(
    net: Net,
    data: Dataset,
    rows: Tensor,
    fold_B: Tensor,
    device: torch.device,
    *,
    copies: int = 0,
    seed: int = 0,
) -> dict[str, TaskLogits]:
    """Task to its logits on the samples at `rows`, which `net` has not learnt.

    Args:
        fold_B: the fold of each.
        copies: augmented copies of each sample beside itself, so that decisions allow for noise.
    """
    rng = np.random.default_rng([seed, 1])  # not the training's
    seen = [
        encode_rows(net, data, rows, device, rng if copies else None) for _ in range(copies + 1)
    ]
    return {
        name: together([view_logits(net, name, one, fold_B) for one in seen], copies + 1)
        for name, _, _ in decided_tasks(net)
    }


def fit_decisions(net: Net, logits: Mapping[str, TaskLogits]) -> None:
    """Fit each task's temperatures and weights, over all samples and for each subset."""
    for name, _, decision in decided_tasks(net):
        device = decision.weights_ZS.device
        _fit(decision.cpu(), logits[name])
        decision.to(device)


def _fit(decision: Decision, logits: TaskLogits, without: int | None = None) -> None:
    for number, fold_B in logits.folds.items():
        here_B = torch.ones_like(fold_B, dtype=torch.bool) if without is None else fold_B != without
        tensors = logits.kept(number, here_B)
        if number == WHOLE:
            decision.fit(*tensors, copies=logits.copies)
        else:
            decision.fit_subset(number, *tensors, copies=logits.copies)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a decision made of one view.

    Attributes:
        logits_BSC, present_BS, target: as in `TaskLogits`.
        by_BSC: each source's calibrated output.
        combined_BC, decided: the combined output, and the decision.
    """

    logits_BSC: Tensor
    present_BS: Tensor
    target: Tensor
    by_BSC: Tensor
    combined_BC: Tensor
    decided: Tensor


def outputs(decision: Decision, logits: TaskLogits) -> dict[int, Outputs]:
    """Each view as `decision` sees it: samples with a known target, the copies left out."""
    return {
        number: _outputs(decision, *logits.kept(number, _originals(logits, number)))
        for number in logits.views
    }


def cross_fitted(decision: Decision, logits: TaskLogits) -> dict[int, Outputs]:
    """As `outputs`, each fold by a decision of the same rule fitted on the others."""
    parts: dict[int, list[Outputs]] = {number: [] for number in logits.views}
    for fold in sorted(set(logits.folds[WHOLE].tolist())):
        fitted = Decision(decision.rule, decision.weights_ZS.shape[1], decision.kind)
        _fit(fitted, logits, without=fold)
        for number, fold_B in logits.folds.items():
            here_B = _originals(logits, number) & (fold_B == fold)
            parts[number].append(_outputs(fitted, *logits.kept(number, here_B)))
    return {
        number: Outputs(
            **{
                name: torch.cat([getattr(one, name) for one in some])
                for name in Outputs.__dataclass_fields__
            }
        )
        for number, some in parts.items()
    }


def _originals(logits: TaskLogits, number: int) -> Tensor:
    """The view's samples with a known target, the copies left out."""
    known_B = known(logits.targets[number])
    known_B[len(known_B) // logits.copies :] = False
    return known_B


def _outputs(decision: Decision, logits_BSC: Tensor, present_BS: Tensor, target: Tensor) -> Outputs:
    by_BSC, combined_BC, decided = decision(logits_BSC, present_BS)
    return Outputs(
        logits_BSC=logits_BSC,
        present_BS=present_BS,
        target=target,
        by_BSC=by_BSC,
        combined_BC=combined_BC,
        decided=decided,
    )


def scores(net: Net, name: str, views: Mapping[int, Outputs]) -> dict[str, Any]:
    """The scores of one task's decision, and of each source alone.

    Returns:
        accuracy: the decision's ("fused"), each source's alone ("text", ..., "fused head"), and the
            decision's for each subset ("subsets"): accuracy of classes, F1 of several labels, mean
            absolute error of numbers in their own unit.
        calibration_error, nll: of classes, "before" and "after" temperatures, of "decision" and by
            source; before, the decision is the mean of the sources.
        interval: of classes, 95 % intervals of the decision's "accuracy", "nll" and
            "calibration_error", and of its accuracy less that of the best source, "best" (paired;
            over the samples that have that source).
    Empty where no sample has a label.
    """
    whole, task = views[WHOLE], net.tasks[name]
    if len(whole.target) == 0:
        return {}
    result: dict[str, Any] = {"accuracy": _accuracy(net, task, views)}
    if task.kind == "classification":
        result |= _calibration(net, whole)
        result["interval"] = _intervals(net, whole)
    return result


def accuracies(net: Net, name: str, decision: Decision, seen: EncodedSamples) -> dict[str, Any]:
    """`accuracy` of `scores`, by a decision that is on the CPU; empty without labels."""
    views = outputs(decision, view_logits(net, name, seen, torch.zeros(len(seen.group_B))))
    return _accuracy(net, net.tasks[name], views) if len(views[WHOLE].target) else {}


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


def _accuracy(net: Net, task: Task, views: Mapping[int, Outputs]) -> dict[str, Any]:
    whole, score = views[WHOLE], _SCORE[task.kind]
    result: dict[str, Any] = {"fused": score(task, whole.decided, whole.target)}
    for place, source in enumerate(net.sources):
        here_B = whole.present_BS[:, place]
        if bool(here_B.any()):
            alone = _ALONE[task.kind](whole.by_BSC[here_B, place])
            named = "fused head" if source == FUSED else source
            result[named] = score(task, alone, whole.target[here_B])
    result["subsets"] = {
        name_of(net, subset_M): score(task, views[number].decided, views[number].target)
        for number, subset_M in subsets(net)
        if len(views[number].target) > 0
    }
    return result


def _calibration(net: Net, whole: Outputs) -> dict[str, Any]:
    before_BSC = torch.softmax(whole.logits_BSC, dim=2)
    here_BS1 = whole.present_BS[:, :, None].float()
    mean_BC = (before_BSC * here_BS1).sum(1) / here_BS1.sum(1)
    every_B = torch.ones(len(mean_BC), dtype=torch.bool)
    pairs = [("decision", mean_BC, whole.combined_BC, every_B)]
    for place, source in enumerate(net.sources):
        here_B = whole.present_BS[:, place]
        if bool(here_B.any()):
            pairs.append((source, before_BSC[:, place], whole.by_BSC[:, place], here_B))
    result: dict[str, Any] = {}
    for measure, of in (("calibration_error", calibration_error), ("nll", mean_nll)):
        result[measure] = {"before": {}, "after": {}}
        for source, before_BC, after_BC, here_B in pairs:
            label_B = whole.target[here_B]
            result[measure]["before"][source] = of(before_BC[here_B], label_B)
            result[measure]["after"][source] = of(after_BC[here_B], label_B)
    return result


def _intervals(net: Net, whole: Outputs) -> dict[str, Any]:
    label_B = whole.target
    right_B = (whole.decided == label_B).float()
    right_BS = (whole.by_BSC.argmax(2) == label_B[:, None]).float()
    alone = {
        source: right_BS[whole.present_BS[:, place], place].mean()
        for place, source in enumerate(net.sources)
        if bool(whole.present_BS[:, place].any())
    }
    best = max(alone, key=lambda source: float(alone[source]))
    here_B = whole.present_BS[:, net.sources.index(best)]
    ahead, half = interval(right_B[here_B], right_BS[here_B, net.sources.index(best)])
    nll, nll_half = interval(nll_of(whole.combined_BC, label_B), torch.zeros(len(label_B)))
    return {
        "accuracy": share_interval(right_B),
        "nll": [nll - nll_half, nll + nll_half],
        "calibration_error": calibration_interval(whole.combined_BC, label_B),
        "best": "fused head" if best == FUSED else best,
        "decision - best": [ahead - half, ahead + half],
    }
