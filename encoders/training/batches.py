"""Batches of training samples: shuffled, augmented and collated one batch ahead.

Shapes: N samples in all, n samples that have a modality, B samples of a batch, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import Features
from ..config import TrainConfig
from ..model.net import Net
from .data import Column, Dataset


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The objective's input for some samples.

    Attributes:
        features: modality to its features, one row for each sample that has it, in order.
        present_BM: which samples have it.
        group_B: equal for samples with the same content.
        target: task to its targets, see `braid.encoders.training.targets`.
        old_BSD: the champion's vectors, see `Dataset.old_NSD`.
    """

    features: Mapping[str, Features]
    present_BM: Tensor
    group_B: Tensor
    target: Mapping[str, Tensor]
    old_BSD: Tensor | None = None


def batches(
    rows: Tensor, data: Dataset, net: Net, config: TrainConfig, seed: int, epoch: int
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Shuffled positions, int[B], and for each trained encoder its collated batch and the rows in
    it. The next batch is augmented and collated while the current one is used."""
    rng = np.random.default_rng([seed, epoch])  # a resumed run continues with the same batches
    shuffled = rows[torch.from_numpy(rng.permutation(len(rows)))]
    parts = list(shuffled.split(config.batch))
    seeds = rng.integers(0, 2**63, len(parts))

    def ready(batch_B: Tensor, seed: int) -> dict[str, Any]:
        batch_rng = np.random.default_rng(seed)
        return {
            name: collated
            for name, column in data.columns.items()
            if column.features_nF is None
            and (collated := _inputs(column, net, name, batch_B, config, batch_rng)) is not None
        }

    with ThreadPoolExecutor(1, "batches") as pool:
        waiting = pool.submit(ready, parts[0], int(seeds[0]))
        for position, batch_B in enumerate(parts):
            inputs = waiting.result()
            if position + 1 < len(parts):
                waiting = pool.submit(ready, parts[position + 1], int(seeds[position + 1]))
            yield batch_B, inputs


def assemble(
    net: Net,
    data: Dataset,
    batch_B: Tensor,
    encoded: Mapping[str, Features],
    rows: Mapping[str, Tensor],
    device: torch.device,
) -> Batch:
    """The objective's batch: stored features, and those just encoded.

    Args:
        batch_B: positions in `data`.
        encoded: the features of each trained encoder.
        rows: the rows of `batch_B` that they belong to, ascending.
    """
    present_BM = data.present_NM[batch_B].to(device)
    features: dict[str, Features] = dict(encoded)
    for position, name in enumerate(net.modalities):
        column = data.columns[name]
        if column.features_nF is not None:
            places = column.row_N[batch_B]
            if bool((places >= 0).any()):
                features[name] = column.take(places[places >= 0], device)
        else:
            present_BM[:, position] = False
            if name in rows:
                present_BM[rows[name], position] = True
    usable_B = present_BM.any(1)
    if not bool(usable_B.all()):  # a sample whose only modality is left out of this batch
        batch_B, present_BM = batch_B[usable_B.cpu()], present_BM[usable_B]
    return Batch(
        features=features,
        present_BM=present_BM,
        group_B=data.group_N[batch_B].to(device),
        target={task: target[batch_B].to(device) for task, target in data.target.items()},
        old_BSD=None if data.old_NSD is None else data.old_NSD[batch_B].to(device),
    )


def _inputs(
    column: Column,
    net: Net,
    name: str,
    batch_B: Tensor,
    config: TrainConfig,
    rng: np.random.Generator,
) -> tuple[tuple[Tensor, ...], Tensor] | None:
    """A trained encoder's collated batch, and the rows of `batch_B` in it, ascending."""
    places_B = column.row_N[batch_B]
    having = torch.nonzero(places_B >= 0).flatten()
    if len(having) > config.encoder_batch:
        having = having[np.sort(rng.permutation(len(having))[: config.encoder_batch])]
    if len(having) < 2:  # batch norm needs two
        return None
    encoder = net.encoder(name)
    varied = [encoder.vary(column.inputs[int(place)], rng) for place in places_B[having]]
    return encoder.collate(varied), having
