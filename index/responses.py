"""Response models of the query service, which its clients return.

Shapes: N hits or inputs, D dimensions.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

if TYPE_CHECKING:
    import pandas as pd

    from .store import Array


class Problem(BaseModel):
    """What is wrong with a request."""

    field: str = Field(description="the field at fault, or `body` or `request`")
    reason: str = Field(description="what is wrong, with the limit and the value seen")


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: Problem = Field(description="what is wrong")


class Hit(BaseModel):
    """One hit. `text`, `uri`, `labels` and `predicted` are null when Redis does not have them."""

    id: str = Field(description="the record's id")
    score: float = Field(description="inner product of unit vectors, in [-1, 1]")
    text: str | None = Field(description="the record's text")
    uri: dict[str, str] | None = Field(
        description="modality to the link that the record has for it"
    )
    meta: dict[str, Any] = Field(description="the record's meta")
    model: str = Field(description="the model that embedded the record")
    version: int = Field(description="the record's offset in `records`")
    partition: int = Field(description="the record's partition of `records`")
    labels: dict[str, Any] | None = Field(None, description="as the producer gave them")
    predicted: dict[str, Any] | None = Field(None, description="by task, as it was embedded")
    ts: int | None = Field(None, description="milliseconds since 1970")
    modalities: list[str] = Field([], description="what the record holds")
    matched: str | None = Field(None, description="the modality that is nearest to the query")
    scores: dict[str, float] | None = Field(
        None,
        description="with `explain`: inner product of the query and the record's vector of each "
        "modality",
    )


class SearchAnswer(BaseModel):
    """Which model and generation answered, and as of which offsets of `records`."""

    hits: list[Hit] = Field(description="best first")
    model: str | None = Field(description="the model that embedded the query; null for a vector")
    space: str = Field(description="the space of the vectors")
    generation: str = Field(description="the generation that was searched")
    as_of: dict[str, int] = Field(
        description="partition of `records` -> the next offset that may not be reflected"
    )
    exact: bool = Field(description="whether the hits are certainly the best ones")
    payloads: Literal["ok", "unavailable"] = Field(
        description="whether what is shown of hits could be read"
    )
    took_ms: float = Field(description="milliseconds, waiting included")
    cutoff: float | None = Field(
        None,
        description="with `explain`: a hit with a lower score is no good match: the mean of the "
        "query's scores with a random sample of records plus sqrt(2 ln N) standard deviations, "
        "which the best of N unrelated records is expected to reach (N: those that have the "
        "searched vector); null where fewer than 30 have it, or too many of them match",
    )

    # Set by the clients: a record's thumbnail as a data URI, or None.
    _thumbnail: Callable[[str], str | None] | None = PrivateAttr(None)

    def to_pandas(self) -> pd.DataFrame:
        """The hits as a table, best first.

        Columns are the fields of a hit; entries of `meta`, `labels`, `predicted`, `uri` and
        `scores` have columns of their own, as `meta.lang` and `labels.category`; `ts` is in UTC.
        Raises ImportError without pandas (the extra `pandas`).
        """
        from .tables import hits_table

        return hits_table([hit.model_dump() for hit in self.hits], list(Hit.model_fields))

    def to_numpy(self) -> Array:
        """The hits' scores, float32[N]."""
        import numpy as np

        return np.array([hit.score for hit in self.hits], dtype=np.float32)

    def _repr_html_(self) -> str:
        """The hits as a notebook shows them, with thumbnails; everything of a record is escaped."""
        from .display import hits_html

        return hits_html(self.model_dump(), self._thumbnail)


class BatchProblem(ErrorAnswer):
    """Why one query of a batch has no answer, and the status that it would have had alone."""

    status: int = Field(description="the status that the query would have had alone")


class BatchAnswer(BaseModel):
    """One answer for each query, in their order."""

    answers: list[SearchAnswer | BatchProblem] = Field(description="one for each query, in order")
    took_ms: float = Field(description="milliseconds of the whole batch")


class RecordAnswer(BaseModel):
    """One record as the index holds it."""

    id: str = Field(description="the record's id")
    ts: int = Field(description="milliseconds since 1970")
    meta: dict[str, Any] = Field(description="the record's meta")
    model: str = Field(description="the model that embedded the record")
    version: int = Field(description="the record's offset in `records`")
    partition: int = Field(description="the record's partition of `records`")
    space: str = Field(description="the space of the vectors")
    generation: str = Field(description="the generation that holds the record")
    text: str | None = Field(description="the record's text; null where Redis does not have it")
    uri: dict[str, str] | None = Field(
        description="modality to the link that the record has for it"
    )
    vectors: dict[str, list[float]] = Field(
        description="`fused` and each present modality to its unit vector"
    )

    def to_numpy(self) -> dict[str, Array]:
        """The vectors, float32[D] each."""
        import numpy as np

        return {name: np.array(values, dtype=np.float32) for name, values in self.vectors.items()}


class DeleteAnswer(BaseModel):
    """The offset of the deletion in `records`."""

    id: str = Field(description="the record's id")
    partition: int = Field(description="of `records`")
    offset: int = Field(description="of the deletion; `min_offsets` takes it plus one")


class Generation(BaseModel):
    """One generation: its space, and its number of records."""

    name: str = Field(description="such as g0001")
    space: str = Field(description="the space of its vectors")
    dim: int = Field(description="width of its vectors")
    records: int = Field(description="searchable records")
    model: str | None = Field(description="embeds queries; null if the node has none")
    exact: bool = Field(description="whether its search is exact")


class GenerationsAnswer(BaseModel):
    """All generations on this node, and which of them is searched by default."""

    serving: str = Field(description="the generation that is searched by default")
    generations: list[Generation] = Field(description="all that can be searched")


class StatusAnswer(BaseModel):
    """Rows, offsets, model and space; the node adds further fields."""

    model_config = ConfigDict(extra="allow")

    generation: str = Field(description="the serving generation")
    modalities: list[str] = Field([], description="of the model: what a query may hold")
    positions: dict[str, int] = Field(
        description="partition of `vectors` to the next offset to read"
    )
    progress: dict[str, int] = Field(
        description="partition of `records` to the next offset that is not reflected yet"
    )
    payloads: bool = Field(description="whether Redis answers")
    ready: bool = Field(description="as at /readyz")
    records: int = Field(description="searchable records of the serving generation")
    rows: int = Field(description="rows of its store, superseded and deleted ones included")
    dead: int = Field(description="superseded and deleted rows")
    ignored: int = Field(description="writes that lost against a newer one of the same id")
    space: str = Field(description="the space of its vectors")
    dim: int = Field(description="width of its vectors")
    model: str | None = Field(None, description="the model that embeds queries")
    partitions: int | None = Field(None, description="of `records`")
    caught_up: bool | None = Field(None, description="whether `vectors` has been read to its end")
    lag: dict[str, int] | None = Field(
        None, description="partition of `vectors` to the messages that are not read yet"
    )
    unreadable: int | None = Field(None, description="messages of `vectors` that were left out")
    rebuilt: str | None = Field(None, description="why the snapshot was not used")


class DeadLetterCount(BaseModel):
    """How many records one step of the worker gave up, for one kind of error."""

    stage: str = Field(description="the step that failed: decode, prepare or encode")
    kind: str = Field(description="the class of the error")
    count: int = Field(description="how many")


class DeadLettersAnswer(BaseModel):
    """Records of the last hour that could not be processed; if not `complete`, a part of them."""

    since_ms: int = Field(description="the beginning of the hour, in milliseconds since 1970")
    total: int = Field(description="how many")
    complete: bool = Field(description="false: there are more than were counted")
    by: list[DeadLetterCount] = Field(description="how many of each stage and kind")


class HealthAnswer(BaseModel):
    """Whether the node has started, and if not, what it waits for."""

    ok: bool = Field(description="whether it has a model and has reached the broker")
    reason: str | None = Field(None, description="what it waits for")


class ReadyAnswer(BaseModel):
    """Whether the node has caught up and is ready, and if not, why."""

    ready: bool = Field(description="whether searches may be sent here")
    reason: str | None = Field(None, description="why not")


class EmbeddingItem(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"] = Field(description="as in OpenAI's API")
    index: int = Field(description="the input's place")
    embedding: list[float] | str = Field(description="a unit vector of the space")


class Usage(BaseModel):
    """Tokens are not counted: 0."""

    prompt_tokens: int = Field(description="not counted: 0")
    total_tokens: int = Field(description="not counted: 0")


class EmbeddingsAnswer(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = Field(description="as in OpenAI's API")
    data: list[EmbeddingItem] = Field(description="one for each input")
    model: str = Field(description="the model that embedded them")
    space: str = Field(description="the space of the vectors")
    usage: Usage = Field(description="tokens are not counted")

    def to_numpy(self) -> Array:
        """The vectors in the order of the inputs, float32[N, D]."""
        import numpy as np

        ordered = sorted(self.data, key=lambda item: item.index)
        return np.array([_floats(item.embedding) for item in ordered], dtype=np.float32)


def _floats(embedding: list[float] | str) -> Any:
    """A vector; as text it is in base64: float32, little-endian."""
    import numpy as np

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return embedding


class ModelItem(BaseModel):
    """A model that embeds."""

    id: str = Field(description="what `model` of a request may be")
    object: Literal["model"] = Field(description="as in OpenAI's API")
    created: int = Field(description="not known: 0")
    owned_by: str = Field(description="the generation whose queries it embeds")


class ModelsAnswer(BaseModel):
    """The models of this node."""

    object: Literal["list"] = Field(description="as in OpenAI's API")
    data: list[ModelItem] = Field(description="of all generations here")
