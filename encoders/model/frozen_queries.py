"""Frozen queries of a version: held-out records and torch's vectors of them, in a file of its own.

Engines are compared with torch by what these queries find (`braid.encoders.engines.gate`).
Shapes: D the shared space.
"""

from __future__ import annotations

import base64
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..errors import BadInput
from ..manifest import Manifest
from ..types import Model, Prepared, Sample, Vector
from .golden import golden_sample

QUERIES = "queries.json"
MOST_BYTES = 16 << 20
"""Of the texts, pictures and sounds in one version."""
PART = "half of text"
"""A query by the first half of a text's words: for records that have nothing but a text."""

Vectors = Mapping[str, Mapping[str, Vector]]
"""Unit vectors, float32[D], by modality (or PART) and the record's id."""


class HeldOut:
    """Chooses records by the sha256 of their id, which does not depend on the order of reading.

    Args:
        most: records that are kept, as far as they have no more than MOST_BYTES together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._largest: list[tuple[int, str]] = []  # a heap of negated hashes
        self._kept: dict[str, Sample] = {}
        self._bytes = 0

    def add(self, sample: Sample) -> None:
        """Keep it if it is among the first by hash; of a repeated id the last sample counts."""
        if (before := self._kept.get(sample.id)) is not None:
            self._bytes -= _size(before)
        else:
            key = int.from_bytes(sha256(sample.id.encode()).digest()[:8], "big")
            heapq.heappush(self._largest, (-key, sample.id))
        self._kept[sample.id] = sample
        self._bytes += _size(sample)
        while len(self._kept) > self._most or self._bytes > MOST_BYTES:
            _, id_ = heapq.heappop(self._largest)
            self._bytes -= _size(self._kept.pop(id_))

    def samples(self) -> list[Sample]:
        """In the order of their ids; one of those with the same text."""
        return list({one.content: one for _, one in sorted(self._kept.items())}.values())


def _size(sample: Sample) -> int:
    return sum(len(getattr(sample, name)) for name in sample.present)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenQueries:
    """Records, and the vectors that torch made of them."""

    samples: Sequence[Sample]
    vectors: Vectors

    @classmethod
    def of(cls, model: Model, samples: Sequence[Sample]) -> FrozenQueries:
        """Encode records; those that cannot be prepared are left out."""
        kept: list[Sample] = []
        inputs: dict[str, list[Prepared]] = {}
        for sample in samples:
            try:
                own = query_inputs(model, sample)
            except BadInput:
                continue
            kept.append(only(sample, model.modalities))
            for name, prepared in own.items():
                inputs.setdefault(name, []).append(prepared)
        return cls(samples=kept, vectors={name: encoded(model, inputs[name]) for name in inputs})

    def to_json(self) -> str:
        """As `read` reads them."""
        vectors = {
            name: {id_: _packed(vector_D.astype("<f4").tobytes()) for id_, vector_D in some.items()}
            for name, some in self.vectors.items()
        }
        return json.dumps({"records": [_raw(one) for one in self.samples], "vectors": vectors})

    @classmethod
    def read(cls, folder: Path, manifest: Manifest) -> FrozenQueries:
        """Those of a version folder; none if it has no file of them, as old versions."""
        if QUERIES not in manifest.files:
            return cls(samples=(), vectors={})
        raw = json.loads((folder / QUERIES).read_text(encoding="utf-8"))
        return cls(
            samples=[golden_sample(one) for one in raw["records"]],
            vectors={
                name: {
                    id_: np.frombuffer(base64.b64decode(vector), "<f4")
                    for id_, vector in some.items()
                }
                for name, some in raw["vectors"].items()
            },
        )


def only(sample: Sample, modalities: Sequence[str]) -> Sample:
    """A sample with no other modalities, and without labels."""
    return Sample(id=sample.id, **{name: getattr(sample, name) for name in modalities})


def query_inputs(model: Model, sample: Sample) -> dict[str, Prepared]:
    """What each of a record's vectors is encoded from, by modality and PART.

    Raises:
        BadInput: it cannot be prepared.
    """
    whole = model.prepare(sample)
    inputs = {name: replace(whole, inputs={name: value}) for name, value in whole.inputs.items()}
    if sample.text is not None and "text" in inputs:
        words = sample.text.split()
        half = " ".join(words[: (len(words) + 1) // 2])
        inputs[PART] = model.prepare(Sample(id=sample.id, text=half))
    return inputs


def encoded(model: Model, prepared: Sequence[Prepared]) -> dict[str, Vector]:
    """The vectors of inputs of one modality, by id."""
    return {one.id: next(iter(one.by.values())) for one in model.encode_queries(prepared)}


def _raw(sample: Sample) -> dict[str, str]:
    """As `golden_sample` reads it."""
    return {
        "id": sample.id,
        **{
            name: value if isinstance(value := getattr(sample, name), str) else _packed(value)
            for name in sample.present
        },
    }


def _packed(content: bytes) -> str:
    return base64.b64encode(content).decode()
