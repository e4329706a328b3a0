"""Output statistics of a new version on held-out records: the reference for drift.

The records are those of the validation split; the judge split is left to the judge.

Shapes: B samples, M modalities, D the shared space, N all samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.net import Net
from ..model.predictions import predict
from ..output_statistics import Tally
from ..types import Embedding
from .data import Dataset
from .evaluate import encode_rows

MAX_RECORDS = 2000
"""Enough records that chance changes no statistic by more than a few hundredths."""
BATCH = 64


def tally(
    net: Net,
    data: Dataset,
    rows_n: Tensor,
    device: torch.device,
    *,
    served: Callable[[Tensor], Tensor] = lambda vectors: vectors,
    tasks: bool = True,
) -> Tally:
    """The tally of the samples at `rows_n`; of `MAX_RECORDS` evenly spaced ones if there are more.

    Args:
        served: maps the net's vectors to those that are served (`TorchModel.served`).
        tasks: whether predictions are counted too.
    """
    if len(rows_n) > MAX_RECORDS:
        rows_n = rows_n[torch.linspace(0, len(rows_n) - 1, MAX_RECORDS).long()]
    statistics = Tally()
    training = net.training
    for rows_B in rows_n.split(BATCH):
        seen = encode_rows(net, data, rows_B, device)
        with torch.no_grad():
            unit_BMD, fused_BD = net.align(seen.features, seen.present_BM)
            predictions = (
                predict(net, seen.features, unit_BMD, fused_BD, seen.present_BM) if tasks else None
            )
            units, fused = served(unit_BMD).cpu().numpy(), served(fused_BD).cpu().numpy()
        present_BM = seen.present_BM.tolist()
        statistics.add_all(
            [
                Embedding(
                    id=data.ids[int(row)],
                    fused=fused[b],
                    by={
                        name: units[b, m]
                        for m, name in enumerate(net.modalities)
                        if present_BM[b][m]
                    },
                    tasks={} if predictions is None else predictions[b],
                )
                for b, row in enumerate(rows_B)
            ]
        )
    net.train(training)
    return statistics
