"""Figures on the validation split.

Shapes: B samples, M modalities, S sources, D the shared space, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import torch
from torch import Tensor

from encoders.base import Features, encode_all
from encoders.model import Net
from encoders.training.data import Dataset

RECALL_AT = (1, 5, 10)


def recall(query_BD: Tensor, target_BD: Tensor, group_B: Tensor) -> dict[str, float]:
    """recall@k of row i of `query_BD` finding row i of `target_BD`, k as a string (for JSON).

    A target of the same group (an identical caption) is as right as row i itself. A target that
    scores the same as the right one but is not right counts as before it: ties never help.
    """
    scores_BB = query_BD @ target_BD.T
    right_BB = group_B[:, None] == group_B[None]
    best_B1 = scores_BB.masked_fill(~right_BB, -2.0).amax(1, keepdim=True)
    rank_B = ((scores_BB >= best_B1) & ~right_BB).sum(1)
    return {str(k): float((rank_B < k).float().mean()) for k in RECALL_AT}


def features_of(
    net: Net, data: Dataset, rows: Tensor, device: torch.device
) -> dict[str, Features]:  # fmt: skip
    """Plain features of `rows`, one row for each that has the modality. No gradient."""
    result: dict[str, Features] = {}
    for name, column in data.columns.items():
        places = column.row_N[rows]
        places = places[places >= 0]
        if len(places) == 0:
            continue
        if column.features_nF is not None:
            result[name] = column.take(places, device)
        else:
            inputs = [column.inputs[int(place)] for place in places]
            result[name] = encode_all(net.encoder(name), inputs, device, tokens=net.needs_tokens)
    return result


def fit_decisions(net: Net, data: Dataset, rows: Tensor, device: torch.device) -> None:
    """Learn each task's temperatures and weights on `rows`."""
    for task, decision in zip(net.tasks, net.decisions, strict=True):
        logits_BSC, present_BS, _, _ = _outputs(net, data, rows, device)[task]
        decision.cpu().fit(logits_BSC, present_BS, data.label_N[task][rows])
        decision.to(device)


def evaluate(net: Net, data: Dataset, rows: Tensor, device: torch.device) -> dict[str, object]:
    """Recall of every directed pair of modalities, and each task's accuracy by source.

    Returns:
        {"samples": n, "recall": {"text->image": {"1": ..., "5": ..., "10": ...}, ...},
         "accuracy": {task: {"fused": the decision's, "fused head": ..., modality: ...}}}
    """
    net.eval()
    found: dict[str, object] = {"samples": len(rows)}
    present_BM = data.present_NM[rows]
    with torch.no_grad():
        features = features_of(net, data, rows, device)
        unit_BMD = net.align(features, present_BM.to(device))[0].cpu()
    recalls: dict[str, dict[str, float]] = {}
    for left, right in permutations(range(len(net.modalities)), 2):
        both_B = present_BM[:, left] & present_BM[:, right]
        if int(both_B.sum()) > 1:
            recalls[f"{net.modalities[left]}->{net.modalities[right]}"] = recall(
                unit_BMD[both_B, left], unit_BMD[both_B, right], data.group_N[rows][both_B]
            )
    found["recall"] = recalls
    accuracy: dict[str, dict[str, float]] = {}
    for task, (_, present_BS, probs_BSC, winner_B) in _outputs(net, data, rows, device).items():
        label_B = data.label_N[task][rows]
        known_B = label_B >= 0
        if not bool(known_B.any()):
            continue
        figures = {"fused": float((winner_B == label_B)[known_B].float().mean())}
        for position, source in enumerate(net.sources):
            here_B = known_B & present_BS[:, position]
            if bool(here_B.any()):
                right_B = probs_BSC[:, position].argmax(1) == label_B
                name = "fused head" if source == "fused" else source
                figures[name] = float(right_B[here_B].float().mean())
        accuracy[task] = figures
    found["accuracy"] = accuracy
    return found


def _outputs(
    net: Net, data: Dataset, rows: Tensor, device: torch.device
) -> Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each task: logits_BSC, present_BS, probs_BSC and winner_B, on the CPU."""
    net.eval()
    present_BM = data.present_NM[rows].to(device)
    present_BS = torch.cat([present_BM, torch.ones_like(present_BM[:, :1])], dim=1)
    result = {}
    with torch.no_grad():
        features = features_of(net, data, rows, device)
        unit_BMD, fused_BD = net.align(features, present_BM)
        for task, decision in zip(net.tasks, net.decisions, strict=True):
            logits_BSC = net.logits(task, features, unit_BMD, fused_BD, present_BM)
            probs_BSC, _, winner_B = decision(logits_BSC, present_BS)
            result[task] = (logits_BSC.cpu(), present_BS.cpu(), probs_BSC.cpu(), winner_B.cpu())
    return result
