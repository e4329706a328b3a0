"""Adapters fitted on pairs: the same records' vectors in two spaces. All are deterministic.

Shapes: n pairs, D the shared space, K the rank of a correction, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..model.adapter import Adapter
from ..model.optimizers import AdamW
from .gates import Compatibility

RIDGE = 1e-2  # times the mean variance of a direction
RATE = 1e-3
BATCH = 512
DECAY = 1e-2


def fit_adapter(
    kind: str, source_nD: Tensor, target_nD: Tensor, limits: Compatibility, seed: int = 0
) -> Adapter:
    """The adapter of `kind` that maps `source_nD` closest to `target_nD`.

    Raises:
        KeyError: no such kind.
    """
    tensors = _FITS[kind](source_nD.double().cpu(), target_nD.double().cpu(), limits, seed)
    return Adapter(kind=kind, tensors={name: t.float().contiguous() for name, t in tensors.items()})


def procrustes(source_nD: Tensor, target_nD: Tensor) -> Tensor:
    """The orthogonal R, float[D, D], with the least |source R - target|: U V' of the singular
    value decomposition of source' target (Schönemann 1966, "A generalized solution of the
    orthogonal Procrustes problem"). Between spaces of two widths R is orthogonal on the smaller.
    """
    u_DK, _, vh_KD = torch.linalg.svd(source_nD.T @ target_nD, full_matrices=False)
    rotation_DD: Tensor = u_DK @ vh_KD
    return rotation_DD


def _procrustes(
    source_nD: Tensor, target_nD: Tensor, limits: Compatibility, seed: int
) -> dict[str, Tensor]:
    return {"R": procrustes(source_nD, target_nD)}


def _affine(
    source_nD: Tensor, target_nD: Tensor, limits: Compatibility, seed: int
) -> dict[str, Tensor]:
    """Reduced-rank ridge regression of what the rotation leaves (Izenman 1975)."""
    r_DD = procrustes(source_nD, target_nD)
    rest_nD = target_nD - source_nD @ r_DD
    mean_D, rest_D = source_nD.mean(0), rest_nD.mean(0)
    centred_nD = source_nD - mean_D
    gram_DD = centred_nD.T @ centred_nD
    ridge = RIDGE * gram_DD.diagonal().mean().clamp(min=1e-12)
    weight_DD = torch.linalg.solve(
        gram_DD + ridge * torch.eye(len(gram_DD), dtype=gram_DD.dtype),
        centred_nD.T @ (rest_nD - rest_D),
    )
    _, _, vh_DD = torch.linalg.svd(centred_nD @ weight_DD, full_matrices=False)
    kept_KD = vh_DD[: limits.rank]
    a_DK = weight_DD @ kept_KD.T
    return {"R": r_DD, "A": a_DK, "B": kept_KD, "t": rest_D - mean_D @ a_DK @ kept_KD}


def _mlp(
    source_nD: Tensor, target_nD: Tensor, limits: Compatibility, seed: int
) -> dict[str, Tensor]:
    """Starts as the rotation; AdamW over random batches of the pairs maximises the cosine."""
    source_nD, target_nD = source_nD.float(), target_nD.float()
    dim, hidden = source_nD.shape[1], limits.hidden
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        "V": torch.randn(dim, hidden, generator=generator) / dim**0.5,
        "u": torch.zeros(hidden),
        "W": torch.zeros(hidden, dim),
        "t": torch.zeros(dim),
    }
    r_DD = procrustes(source_nD.double(), target_nD.double()).float()
    with torch.enable_grad():
        for tensor in parameters.values():
            tensor.requires_grad_(True)
        optimizer = AdamW(parameters.values(), lr=RATE, weight_decay=DECAY)
        for _ in range(limits.steps):
            rows_B = torch.randint(len(source_nD), (BATCH,), generator=generator)
            mapped_BD = Adapter(kind="mlp", tensors={"R": r_DD, **parameters})(source_nD[rows_B])
            loss = (1.0 - F.cosine_similarity(mapped_BD, target_nD[rows_B], dim=1)).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return {"R": r_DD, **{name: tensor.detach() for name, tensor in parameters.items()}}


_FITS: dict[str, Callable[[Tensor, Tensor, Compatibility, int], dict[str, Tensor]]] = {
    "procrustes": _procrustes,
    "affine": _affine,
    "mlp": _mlp,
}
