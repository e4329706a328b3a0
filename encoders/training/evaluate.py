"""Metrics of encoded samples.

Shapes: B samples, M modalities, S sources, D the shared space, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.net import Net
from .batches import Batch
from .data import Dataset
from .decisions import (
    WHOLE,
    Outputs,
    TaskLogits,
    cross_fitted,
    decided_tasks,
    outputs,
    scores,
    view_logits,
)
from .encoded import EncodedSamples, encode_rows, name_of, subsets
from .metrics import recall
from .objective import Objective


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


def evaluate(
    net: Net,
    data: Dataset,
    rows: Tensor,
    device: torch.device,
    logits: Mapping[str, TaskLogits],
) -> dict[str, Any]:
    """`compute_metrics` of the samples at `rows`; decisions are cross-fitted on `logits`.

    `out_of_fold` says on how many samples of how many folds.
    """
    decided = {
        name: cross_fitted(decision, logits[name]) for name, _, decision in decided_tasks(net)
    }
    result = compute_metrics(net, encode_rows(net, data, rows, device), decided=decided)
    result["out_of_fold"] = {
        name: {
            "samples": len(views[WHOLE].target),
            "folds": len(logits[name].folds[WHOLE].unique()),
        }
        for name, views in decided.items()
    }
    return result


def compute_metrics(
    net: Net,
    seen: EncodedSamples,
    served: Callable[[Tensor], Tensor] = lambda vectors: vectors,
    decided: Mapping[str, Mapping[int, Outputs]] | None = None,
) -> dict[str, Any]:
    """Metrics of a version on these samples.

    Args:
        served: maps the net's vectors to those that are served (`TorchModel.served`).
        decided: each task's decisions, where they are not the net's own on `seen` but, say,
            `cross_fitted` ones on other samples.

    Returns:
        samples: how many.
        recall: "text->image" and so on, every directed pair: recall@1, 5, 10.
        recall_fused: "text->fused", "text->image" by the fused vector of each query subset; the
            target is a modality outside the subset, or the fused vector of all outside it.
        accuracy, calibration_error, nll, interval: of each task, see
            `braid.encoders.training.decisions.scores`.
    """
    result: dict[str, Any] = {"samples": len(seen.group_B)}
    result |= {measure: {} for measure in ("accuracy", "calibration_error", "nll", "interval")}
    with torch.no_grad():
        unit_BMD = served(net.units(seen.features, seen.present_BM)).cpu()
        result["recall"] = _recalls(net, seen, unit_BMD)
        result["recall_fused"] = _fused_recalls(net, seen, unit_BMD, served)
        for name, _, decision in decided_tasks(net):
            if decided is None:
                fold_B = torch.zeros(len(seen.group_B))
                logits = view_logits(net, name, seen, fold_B)
                views: Mapping[int, Outputs] = outputs(copy.deepcopy(decision).cpu(), logits)
            else:
                views = decided[name]
            for measure, figures in scores(net, name, views).items():
                result[measure][name] = figures
    return result


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
