"""A model without weights: each modality is hashed to a unit vector. Needs neither torch nor files.

For benchmarks of the pipeline and for crash tests: it is fast and deterministic, and its outputs
can be recomputed on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import shake_256
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..config import Limits
from ..errors import BadInput, CheckpointError
from ..manifest import Manifest, digest
from ..types import (
    FUSED,
    MEDIA,
    MODALITIES,
    Cost,
    Embedding,
    Prepared,
    Sample,
    TaskPrediction,
    Vector,
)

PREFIX = "null:"


def hashed_unit(content: bytes, dim: int) -> Vector:
    """`content` as a unit vector, float32[dim]: SHAKE-256 bits in [-1, 1), normalised."""
    unit_D: Vector = _units([shake_256(content).digest(4 * dim)])[0]
    return unit_D


def _units(digests: Sequence[bytes]) -> Vector:
    """Digests of equal size as unit vectors, float32[B, D]."""
    raw_BD = np.frombuffer(b"".join(digests), dtype="<u4").reshape(len(digests), -1)
    return _normalised(raw_BD.astype(np.float64) / 2**31 - 1.0)


def _normalised(values_BD: NDArray[np.float64]) -> Vector:
    """Rows scaled to length 1, each on its own: no other row changes its rounding."""
    norm_B1 = np.sqrt((values_BD**2).sum(1, keepdims=True))
    unit_BD: Vector = (values_BD / norm_B1).astype(np.float32)
    return unit_BD


class NullModel:
    """Implements `braid.encoders.types.Model`; see the module's docstring.

    Its one task, "parity", predicts "even" or "odd" from the signs of the first values of the
    vectors. `NullModel(16, "v2")` differs from `NullModel(16)` only in its name and version: for
    tests of hot swaps within one space.
    """

    def __init__(self, dim: int = 16, variant: str = "", limits: Limits | None = None) -> None:
        if not 2 <= dim <= 65536:
            raise ValueError(f"dim must be 2 to 65536, is {dim}")
        self.name = f"null-{dim}" + (f"-{variant}" if variant else "")
        self.dim = dim
        self.modalities = tuple(MODALITIES)
        self.limits = limits or Limits()
        self.preprocessing = digest({"null": dim}, 16)
        self.lanes = 1
        self.space = "s-" + digest({"null": dim, "space": 1}, 12)
        probe_D = hashed_unit(b"text\0golden", dim)
        self.manifest = Manifest(
            name=self.name,
            version=2 if variant == "v2" else 1,
            space=self.space,
            dim=dim,
            modalities=list(MODALITIES),
            preprocessing=self.preprocessing,
            tasks={"parity": {"kind": "classification", "classes": ["even", "odd"]}},
            golden={"text": "golden", "fused": [float(value) for value in probe_D]},
        )

    @classmethod
    def parse(cls, spec: str) -> NullModel:
        """The model that "null:DIM" or "null:DIM:VARIANT" names.

        Raises:
            CheckpointError: the spec is neither.
        """
        dim, _, variant = spec.removeprefix(PREFIX).partition(":")
        if not spec.startswith(PREFIX) or not dim.isascii() or not dim.isdigit():
            raise CheckpointError(f"expected null:DIM or null:DIM:VARIANT, got {spec!r}")
        try:
            return cls(int(dim), variant)
        except ValueError as error:
            raise CheckpointError(f"{spec!r}: {error}") from error

    def prepare(self, sample: Sample) -> Prepared:
        """Hash each modality present. Nothing is decoded; only the size of the text is checked."""
        contents: dict[str, bytes] = {}
        if sample.text is not None:
            encoded = self.limits.check_text(sample.text)
            contents["text"] = encoded
        contents |= {name: data for name in MEDIA if (data := getattr(sample, name)) is not None}
        if not contents:
            raise BadInput("sample", f"has no modality; needs one of {', '.join(MODALITIES)}")
        inputs = {
            name: shake_256(name.encode() + b"\0" + content).digest(4 * self.dim)
            for name, content in contents.items()
        }
        tokens = len(contents.get("text", b"")) // 4 + 1
        return Prepared(
            id=sample.id,
            cost=Cost(tokens=tokens),
            inputs=inputs,
            preprocessing=self.preprocessing,
            nbytes=4 * self.dim * len(inputs),
        )

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        """Mean of the hashed vectors, and the parity task."""
        for item in prepared:
            if item.preprocessing != self.preprocessing:
                raise ValueError(f"prepared by {item.preprocessing}, not by {self.preprocessing}")
        by: list[dict[str, Vector]] = [{} for _ in prepared]
        for name in self.modalities:
            here = [row for row, item in enumerate(prepared) if name in item.inputs]
            if here:
                unit_BD = _units([cast(bytes, prepared[row].inputs[name]) for row in here])
                for row, unit_D in zip(here, unit_BD, strict=True):
                    by[row][name] = unit_D.copy()  # not a view, which keeps the batch in memory
        return [_embedding(item.id, vectors) for item, vectors in zip(prepared, by, strict=True)]

    def encode_queries(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        """As `encode`."""
        return self.encode(prepared)

    def check(self) -> None:
        """The golden text must give the golden vector."""
        got = self.encode([self.prepare(Sample(id="golden", text="golden"))])[0].fused
        want = np.asarray(self.manifest.golden["fused"], dtype=np.float32)
        if got.shape != want.shape or not np.allclose(got, want, atol=1e-6):
            raise CheckpointError(f"{self.name}: the golden text gives another vector")


def _embedding(id_: str, by: dict[str, Vector]) -> Embedding:
    fused_D = next(iter(by.values()))
    if len(by) > 1:
        mean_1D = np.stack([*by.values()]).mean(0, dtype=np.float64, keepdims=True)
        if np.linalg.norm(mean_1D) > 1e-6:
            (fused_D,) = _normalised(mean_1D)
    odd = tuple((name, bool(vector_D[0] > 0)) for name, vector_D in by.items())
    parity = _parity((*odd, (FUSED, bool(fused_D[0] > 0))))
    return Embedding(id=id_, fused=fused_D, by=by, tasks={"parity": parity})


@lru_cache(maxsize=64)  # every combination of modalities and signs: 52
def _parity(odd: tuple[tuple[str, bool], ...]) -> TaskPrediction:
    """The prediction by whether each source's first value is positive."""
    prob_odd = 0.05 + 0.9 * sum(is_odd for _, is_odd in odd) / len(odd)  # never 0 or 1
    probs = {"even": 1.0 - prob_odd, "odd": prob_odd}
    label = max(probs, key=lambda name: probs[name])
    return TaskPrediction(
        kind="classification",
        rule="weighted",
        label=label,
        prob=probs[label],
        probs=probs,
        by={name: {"label": "odd" if is_odd else "even", "prob": 0.95} for name, is_odd in odd},
    )
