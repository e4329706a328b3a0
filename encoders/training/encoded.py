"""Runs nets on the samples of a data set: features, logits, the champion's vectors, statistics.

Shapes: B samples, N all samples, M modalities, S = M + 1 sources (the last is the fused vector),
D the shared space, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import Features
from ..backbones.sub_batches import encode_all
from ..errors import TrainingError
from ..model.checkpoint import load_folder
from ..model.net import Net
from ..model.predictions import predict
from ..output_statistics import Tally
from ..types import Embedding
from .data import Dataset

MAX_RECORDS = 2000
"""Enough records that chance changes no statistic of a tally by more than a few hundredths."""
BATCH, CHUNK = 64, 256


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


def source_logits(net: Net, task: str, seen: EncodedSamples) -> tuple[Tensor, Tensor]:
    """The logits of each source, logits_BSC, and present_BS, on the CPU. No gradient."""
    with torch.no_grad():
        unit_BMD = net.units(seen.features, seen.present_BM)
        tokens = net.tokens(seen.features, seen.present_BM)
        fused_BD = net.fusion(unit_BMD, seen.kept_BM, tokens)
        logits_BSC = net.logits(
            task, seen.features, unit_BMD, fused_BD, seen.present_BM, seen.kept_BM
        )
    present_BS = torch.cat([seen.kept_BM, torch.ones_like(seen.kept_BM[:, :1])], dim=1)
    return logits_BSC.cpu(), present_BS.cpu()


def subsets(net: Net) -> Iterator[tuple[int, Tensor]]:
    """The number and the members, bool[M], of each non-empty subset of the modalities."""
    for number in range(1, 2 ** len(net.modalities)):
        yield number, torch.tensor([bool(number >> m & 1) for m in range(len(net.modalities))])


def name_of(net: Net, subset_M: Tensor) -> str:
    """Such as "text+image"."""
    return "+".join(m for m, here in zip(net.modalities, subset_M.tolist(), strict=True) if here)


def old_vectors(champion: Path | None, net: Net, data: Dataset, device: torch.device) -> Tensor:
    """Unit vectors as the champion serves them, float[N, S, D], zeros where it has none.

    The stored features of frozen encoders are used, so they must be the champion's encoders.

    Raises:
        TrainingError: there is no champion, or one with another dimension, modalities,
            preprocessing or frozen encoder.
        CheckpointError: it is damaged.
    """
    if champion is None:
        raise TrainingError("compatible needs a champion or a parent to be compatible with")
    model = load_folder(champion, device=str(device))
    for what, theirs, ours in (
        ("dimension", model.dim, net.config.dim),
        ("modalities", model.modalities, net.modalities),
        ("preprocessing", model.preprocessing, net.preprocessing()),
    ):
        if theirs != ours:
            raise TrainingError(
                f"compatible: {model.name} has another {what} ({theirs}, here {ours})"
            )
    prints, champion_prints = net.encoder_hashes(), model.net.encoder_hashes()
    for name, column in data.columns.items():
        if column.features_nF is not None and prints[name] != champion_prints[name]:
            raise TrainingError(
                f"compatible: the frozen {name} encoder is not that of {model.name}; start from it"
            )
    parts = []
    with torch.no_grad():
        for rows in torch.arange(len(data.ids)).split(CHUNK):
            seen = encode_rows(model.net, data, rows, device)
            unit_BMD, fused_BD = model.net.align(seen.features, seen.present_BM)
            both_BSD = torch.cat([unit_BMD, fused_BD[:, None]], dim=1)
            parts.append(model.served(both_BSD).cpu())
    return torch.cat(parts)


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
