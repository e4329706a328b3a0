"""What the libraries' documents have of a hit, and vectors of texts."""

from __future__ import annotations

from typing import Any

from braid.index.responses import EmbeddingsAnswer, Hit

FIELDS = ("score", "model", "version", "ts", "labels", "predicted", "uri", "modalities", "matched")


def metadata_of(hit: Hit) -> dict[str, Any]:
    """The record's meta, and FIELDS of the hit, which replace meta of the same names."""
    return {**hit.meta, **{name: getattr(hit, name) for name in FIELDS}}


def vectors_of(answer: EmbeddingsAnswer) -> list[list[float]]:
    """The vectors of an answer of `/v1/embeddings`, in the order of its inputs."""
    vectors: list[list[float]] = answer.to_numpy().tolist()
    return vectors
