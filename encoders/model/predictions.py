"""Converts the outputs of the heads to each record's predictions.

Shapes: B samples, M modalities, S sources, C classes, D the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..backbones.base import Features
from ..tasks import Task
from ..types import TaskPrediction
from .decision import Decision
from .net import Net


def predict(
    net: Net,
    features: Mapping[str, Features],
    unit_BMD: Tensor,
    fused_BD: Tensor,
    present_BM: Tensor,
) -> list[dict[str, TaskPrediction]]:
    """Each sample's predictions by task."""
    result: list[dict[str, TaskPrediction]] = [{} for _ in range(len(fused_BD))]
    present_BS = torch.cat([present_BM, torch.ones_like(present_BM[:, :1])], dim=1)
    for (name, task), decision in zip(net.tasks.items(), net.decisions, strict=True):
        if task.kind == "generation":
            source_BD = net.caption_input(name, features, unit_BMD, present_BM, present_BM)
            for row, caption in enumerate(net.heads.captioner(name).write(source_BD)):
                result[row][name] = TaskPrediction(
                    kind=task.kind,
                    rule="consensus",
                    text=caption.text,
                    prob=math.exp(caption.score),
                )
            continue
        logits_BSC = net.logits(name, features, unit_BMD, fused_BD, present_BM, present_BM)
        predictions = _PREDICT[task.kind](task, decision, net.sources, logits_BSC, present_BS)
        for row, prediction in enumerate(predictions):
            result[row][name] = prediction
    return result


def _classes(
    task: Task, decision: Decision, sources: tuple[str, ...], logits_BSC: Tensor, present_BS: Tensor
) -> list[TaskPrediction]:
    probs_BSC, combined_BC, winner_B = decision(logits_BSC, present_BS)
    best = probs_BSC.max(2)
    best_prob, best_class = best.values.tolist(), best.indices.tolist()
    winners = winner_B.tolist()
    here = present_BS.tolist()
    return [
        TaskPrediction(
            kind=task.kind,
            rule=decision.rule,
            label=task.classes[winners[row]],
            prob=combined[winners[row]],
            probs=dict(zip(task.classes, combined, strict=True)),
            by={
                source: {"label": task.classes[best_class[row][s]], "prob": best_prob[row][s]}
                for s, source in enumerate(sources)
                if here[row][s]
            },
        )
        for row, combined in enumerate(combined_BC.tolist())
    ]


def _labels(
    task: Task, decision: Decision, sources: tuple[str, ...], logits_BSC: Tensor, present_BS: Tensor
) -> list[TaskPrediction]:
    probs_BSC, combined_BC, yes_BC = decision(logits_BSC, present_BS)

    def chosen(yes: list[bool]) -> list[str]:
        return [name for name, is_it in zip(task.classes, yes, strict=True) if is_it]

    yes_alone = (probs_BSC > 0.5).tolist()
    decided, here = yes_BC.tolist(), present_BS.tolist()
    return [
        TaskPrediction(
            kind=task.kind,
            rule=decision.rule,
            labels=chosen(decided[row]),
            probs=dict(zip(task.classes, combined, strict=True)),
            by={
                source: {"labels": chosen(yes_alone[row][s])}
                for s, source in enumerate(sources)
                if here[row][s]
            },
        )
        for row, combined in enumerate(combined_BC.tolist())
    ]


def _numbers(
    task: Task, decision: Decision, sources: tuple[str, ...], logits_BSC: Tensor, present_BS: Tensor
) -> list[TaskPrediction]:
    outputs_BSC, _, value_B = decision(logits_BSC, present_BS)
    values = (task.mean + task.spread * outputs_BSC[:, :, 0]).tolist()
    here = present_BS.tolist()
    return [
        TaskPrediction(
            kind=task.kind,
            rule=decision.rule,
            value=value,
            by={
                source: {"value": values[row][s]}
                for s, source in enumerate(sources)
                if here[row][s]
            },
        )
        for row, value in enumerate((task.mean + task.spread * value_B).tolist())
    ]


_PREDICT: dict[str, Callable[..., list[TaskPrediction]]] = {
    "classification": _classes,
    "multilabel": _labels,
    "regression": _numbers,
}
