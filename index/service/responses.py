"""Response models of the query service."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """What is wrong with a request."""

    field: str = Field(description="the field at fault, or `body` or `request`")
    reason: str = Field(description="what is wrong, with the limit and the value seen")


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: Problem


class Answered(BaseModel):
    """One hit. `text`, `uri`, `labels` and `predicted` are null when Redis does not have them."""

    id: str
    score: float = Field(description="inner product of unit vectors, in [-1, 1]")
    text: str | None
    uri: dict[str, str] | None
    meta: dict[str, Any]
    model: str = Field(description="the model that embedded the record")
    version: int = Field(description="the record's offset in `records`")
    partition: int
    labels: dict[str, Any] | None = Field(None, description="as the producer gave them")
    predicted: dict[str, Any] | None = Field(None, description="by task, as it was embedded")
    ts: int | None = Field(None, description="milliseconds since 1970")
    modalities: list[str] = Field([], description="what the record holds")
    matched: str | None = Field(None, description="the modality that is nearest to the query")


class SearchAnswer(BaseModel):
    """Which model and generation answered, and as of which offsets of `records`."""

    hits: list[Answered] = Field(description="best first")
    model: str | None = Field(description="the model that embedded the query; null for a vector")
    space: str
    generation: str
    as_of: dict[str, int] = Field(
        description="partition of `records` -> the next offset that may not be reflected"
    )
    exact: bool = Field(description="whether the hits are certainly the best ones")
    payloads: Literal["ok", "unavailable"] = Field(
        description="whether what is shown of hits could be read"
    )
    took_ms: float


class BatchProblem(ErrorAnswer):
    """Why one query of a batch has no answer, and the status that it would have had alone."""

    status: int


class BatchAnswer(BaseModel):
    """One answer for each query, in their order."""

    answers: list[SearchAnswer | BatchProblem]
    took_ms: float


class RecordAnswer(BaseModel):
    """One record as the index holds it."""

    id: str
    ts: int = Field(description="milliseconds since 1970")
    meta: dict[str, Any]
    model: str
    version: int = Field(description="the record's offset in `records`")
    partition: int
    space: str
    generation: str
    text: str | None
    uri: dict[str, str] | None
    vectors: dict[str, list[float]]


class DeleteAnswer(BaseModel):
    """The offset of the deletion in `records`."""

    id: str
    partition: int
    offset: int


class Generation(BaseModel):
    """One generation: its space, and its number of records."""

    name: str
    space: str
    dim: int
    records: int
    model: str | None = Field(description="embeds queries; null if the node has none")
    exact: bool


class GenerationsAnswer(BaseModel):
    """All generations on this node, and which of them is searched by default."""

    serving: str
    generations: list[Generation]


class StatusAnswer(BaseModel):
    """Rows, offsets, model and space; the node adds further fields."""

    model_config = ConfigDict(extra="allow")

    generation: str
    positions: dict[str, int]
    progress: dict[str, int]
    payloads: bool
    ready: bool


class DeadLetterCount(BaseModel):
    """How many records one step of the worker gave up, for one kind of error."""

    stage: str
    kind: str
    count: int


class DeadLettersAnswer(BaseModel):
    """Records of the last hour that could not be processed; if not `complete`, a part of them."""

    since_ms: int
    total: int
    complete: bool
    by: list[DeadLetterCount]


class HealthAnswer(BaseModel):
    """The process lives."""

    ok: bool


class ReadyAnswer(BaseModel):
    """Whether the node has caught up and is ready, and if not, why."""

    ready: bool
    reason: str | None = None
