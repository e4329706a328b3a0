"""The champion's vectors of the training records, for the compatibility loss.

Shapes: N samples, M modalities, S = M + 1 (the last is the fused vector), D the shared space.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import TrainingError
from ..model.checkpoint import load_folder
from ..model.net import Net
from .data import Dataset
from .embeddings import encoder_hashes
from .evaluate import encode_rows

CHUNK = 256


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
    prints, champion_prints = encoder_hashes(net), encoder_hashes(model.net)
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
