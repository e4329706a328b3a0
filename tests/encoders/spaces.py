"""Made-up answers of two versions, for the tests of compatibility."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from braid.encoders.evaluation.gates import Compatibility
from braid.encoders.training.embeddings import ALL, ModelOutputs

LIMITS = Compatibility(k=3, hidden=32, steps=40)
D = 24


def unit(vectors_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors_ND, dim=1)


def made_up(
    count: int = 60, noise: float = 0.6, seed: int = 0, audio: bool = False
) -> ModelOutputs:
    """Vectors of records of two (three) modalities, alike but for noise; the last fifth has no
    picture."""
    generator = torch.Generator().manual_seed(seed)
    what_ND = torch.randn(count, D, generator=generator)
    names = ("text", "image", "audio") if audio else ("text", "image")
    by = {
        name: unit(what_ND + noise * torch.randn(count, D, generator=generator)) for name in names
    }
    present_NM = torch.ones(count, len(names), dtype=torch.bool)
    present_NM[-count // 5 :, 1] = False
    return answers_of(by, present_NM)


def answers_of(by: Mapping[str, Tensor], present_NM: Tensor) -> ModelOutputs:
    names = tuple(by)
    by = {name: by[name] * present_NM[:, [m]] for m, name in enumerate(names)}
    subsets = [
        "+".join(n for m, n in enumerate(names) if z >> m & 1) for z in range(1, 2 ** len(names))
    ]
    fused = {s: unit(sum((by[n] for n in s.split("+")), torch.zeros(()))) for s in subsets}
    fused[ALL] = unit(sum(by.values(), torch.zeros(())))
    return ModelOutputs(
        modalities=names, tasks={}, present_NM=present_NM, by=by, fused=fused, task_outputs={}
    )


def mapped(one: ModelOutputs, change: Any) -> ModelOutputs:
    return answers_of(
        {name: unit(change(vectors_ND)) for name, vectors_ND in one.by.items()}, one.present_NM
    )


def rotation(seed: int = 7, dim: int = D) -> Tensor:
    drawn_DD = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))
    q_DD: Tensor = torch.linalg.qr(drawn_DD)[0]
    return q_DD
