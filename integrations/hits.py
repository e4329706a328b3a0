"""What the libraries' documents have of a hit, and vectors of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FIELDS = ("score", "model", "version", "ts", "labels", "predicted", "uri", "modalities", "matched")


def metadata_of(hit: Mapping[str, Any]) -> dict[str, Any]:
    """The record's meta, and FIELDS of the hit, which replace meta of the same names."""
    return {**hit["meta"], **{name: hit[name] for name in FIELDS}}


def vectors_of(answer: Mapping[str, Any]) -> list[list[float]]:
    """The vectors of an answer of `/v1/embeddings`, in the order of its inputs."""
    data: Sequence[Mapping[str, Any]] = answer["data"]
    return [one["embedding"] for one in sorted(data, key=lambda one: one["index"])]
