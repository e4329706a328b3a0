"""Adapters: fitted maps from the vectors of one space to those of another.

    procrustes  y = x R, R orthogonal: a rotation, which keeps all distances.
    affine      y = x R + x A B + t: a low-rank correction on top (Drift-Adapter, arXiv 2509.23471)
    mlp         y = x R + gelu(x V + u) W + t

each scaled to length 1. With an adapter, stored vectors need not be computed again. Adapters are
fitted in `braid.encoders.evaluation.fit_adapter`.

Shapes: n vectors, D the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from ..errors import CheckpointError
from ..manifest import Manifest
from ..types import Vector

FILE = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A fitted map. `tensors` are those of its kind, named by the letters above."""

    kind: str
    tensors: Mapping[str, Tensor]

    @property
    def dim(self) -> int:
        """D."""
        return int(self.tensors["R"].shape[0])

    def __call__(self, vectors_nD: Tensor) -> Tensor:
        """The mapped vectors, of length 1, float[n, D]; rows of zeros (absent ones) stay so.

        Raises:
            ValueError: vectors of another dimension.
        """
        if vectors_nD.shape[-1] != self.dim:
            raise ValueError(f"the adapter maps {self.dim} dimensions, not {vectors_nD.shape[-1]}")
        here_n1 = vectors_nD.norm(dim=-1, keepdim=True) > 0
        map_ = _MAPS[self.kind]
        mapped_nD: Tensor = F.normalize(map_(vectors_nD, self.tensors), dim=-1) * here_n1
        return mapped_nD

    def apply(self, vectors_nD: Vector) -> Vector:
        """As `__call__`, for an array: stored vectors or a query."""
        with torch.inference_mode():
            input_nD = torch.from_numpy(np.ascontiguousarray(vectors_nD, dtype=np.float32))
            mapped_nD: Vector = self.to(torch.device("cpu"))(input_nD).numpy()
        return mapped_nD

    def to(self, device: torch.device) -> Adapter:
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Adapter(kind=self.kind, tensors=moved)

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        tensors = {k: v.detach().cpu().float().contiguous() for k, v in self.tensors.items()}
        return save_bytes(tensors, {"kind": self.kind})


def _rotate(x_nD: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return x_nD @ tensors["R"]


def _affine(x_nD: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return x_nD @ tensors["R"] + x_nD @ tensors["A"] @ tensors["B"] + tensors["t"]


def _mlp(x_nD: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return (
        x_nD @ tensors["R"]
        + F.gelu(x_nD @ tensors["V"] + tensors["u"]) @ tensors["W"]
        + tensors["t"]
    )


_MAPS: dict[str, Callable[[Tensor, Mapping[str, Tensor]], Tensor]] = {
    "procrustes": _rotate,
    "affine": _affine,
    "mlp": _mlp,
}
_PARTS = {"procrustes": "R", "affine": "RABt", "mlp": "RVuWt"}


def load_adapter(
    folder: Path, manifest: Manifest, *, applied: bool | None = None
) -> Adapter | None:
    """The adapter of a version, None if it has none.

    Args:
        applied: True: only an adapter of the version's own vectors. False: only one of the stored
            vectors of the version before. None: either.

    Raises:
        CheckpointError: the file is missing, damaged, or contradicts the manifest.
    """
    info = manifest.compatibility.get("adapter")
    if not info or (applied is not None and bool(info.get("applied")) != applied):
        return None
    try:
        kind, name = str(info["kind"]), str(info["file"])
        if name not in manifest.files:
            raise CheckpointError(f"{folder}: the manifest has no checksum of its adapter {name!r}")
        tensors = load_bytes((folder / name).read_bytes())
        if kind not in _PARTS or set(tensors) != set(_PARTS[kind]):
            raise CheckpointError(f"{folder}: {name} is no adapter of kind {kind!r}")
        adapter = Adapter(kind=kind, tensors=tensors)
    except (KeyError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: its adapter does not load: {error!r}") from error
    if adapter.dim != manifest.dim:
        raise CheckpointError(f"{folder}: adapter of {adapter.dim} dimensions, not {manifest.dim}")
    return adapter
