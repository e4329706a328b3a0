"""A model without weights: each modality is hashed to a unit vector. Needs neither torch nor files.

For benchmarks of the pipeline and for crash tests: it is fast and deterministic, and its outputs
can be recomputed on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import shake_256

import numpy as np

from ..config import Limits
from ..errors import BadInput, CheckpointError
from ..manifest import Manifest, digest
from ..types import FUSED, MODALITIES, Cost, Embedding, Prepared, Sample, TaskPrediction, Vector

PREFIX = "null:"


def hashed_unit(content: bytes, dim: int) -> Vector:
    """`content` as a unit vector, float32[dim]: SHAKE-256 bits in [-1, 1), normalised."""
    raw = np.frombuffer(shake_256(content).digest(4 * dim), dtype="<u4")
    values_D = raw.astype(np.float64) / 2**31 - 1.0
    return (values_D / np.linalg.norm(values_D)).astype(np.float32)


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
        self.modalities = MODALITIES
        self.limits = limits or Limits()
        self.preprocessing = digest({"null": dim}, 16)
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
        if sample.image is not None:
            contents["image"] = sample.image
        if sample.audio is not None:
            contents["audio"] = sample.audio
        if not contents:
            raise BadInput("sample", f"has no modality; needs one of {', '.join(MODALITIES)}")
        inputs = {
            name: hashed_unit(name.encode() + b"\0" + content, self.dim)
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
        return [self._embed_one(item) for item in prepared]

    def check(self) -> None:
        """The golden text must give the golden vector."""
        got = self.encode([self.prepare(Sample(id="golden", text="golden"))])[0].fused
        want = np.asarray(self.manifest.golden["fused"], dtype=np.float32)
        if got.shape != want.shape or not np.allclose(got, want, atol=1e-6):
            raise CheckpointError(f"{self.name}: the golden text gives another vector")

    def _embed_one(self, item: Prepared) -> Embedding:
        if item.preprocessing != self.preprocessing:
            raise ValueError(f"prepared by {item.preprocessing}, not by {self.preprocessing}")
        by: dict[str, Vector] = {
            name: np.asarray(vector, dtype=np.float32) for name, vector in item.inputs.items()
        }
        mean_D = np.mean(list(by.values()), axis=0)
        norm = float(np.linalg.norm(mean_D))
        fused_D = (mean_D / norm).astype(np.float32) if norm > 1e-6 else next(iter(by.values()))
        return Embedding(id=item.id, fused=fused_D, by=by, tasks={"parity": _parity(fused_D, by)})


def _parity(fused_D: Vector, by: dict[str, Vector]) -> TaskPrediction:
    odd = {name: 1.0 if vector_D[0] > 0 else 0.0 for name, vector_D in by.items()}
    odd[FUSED] = 1.0 if fused_D[0] > 0 else 0.0
    prob_odd = 0.05 + 0.9 * sum(odd.values()) / len(odd)  # never 0 or 1
    probs = {"even": 1.0 - prob_odd, "odd": prob_odd}
    label = max(probs, key=lambda name: probs[name])
    return TaskPrediction(
        kind="classification",
        rule="weighted",
        label=label,
        prob=probs[label],
        probs=probs,
        by={
            name: {"label": "odd" if value else "even", "prob": 0.95} for name, value in odd.items()
        },
    )
