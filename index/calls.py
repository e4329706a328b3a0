"""Requests and responses of the query service, without I/O; both clients share them.

The blocking client and the asyncio client send them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from braid.modalities import MEDIA

from .errors import BadQuery, BraidIndexError, ServiceError
from .responses import (
    BatchAnswer,
    BatchProblem,
    DeleteAnswer,
    EmbeddingsAnswer,
    GenerationsAnswer,
    ReadyAnswer,
    RecordAnswer,
    SearchAnswer,
    StatusAnswer,
)

Media = bytes | Path | None
A = TypeVar("A", bound=BaseModel)

MAX_BATCH = 64  # the service's limit; a test keeps the two equal
MAX_BATCH_HITS = 10_000  # the service's limit
BATCH_BYTES = 6 * 1024 * 1024  # of media in one batch of JSON; the service takes 8 MiB of it
DEFAULT_K = 10
GZIP_FROM = 1024  # bytes from which a body is compressed
RETRIABLE = (429, 503)  # statuses after which the same call may succeed


class Query(TypedDict, total=False):
    """What `search` takes: any of the modalities, or id, or values with space."""

    text: str | None
    image: Media  # a file, or its bytes
    audio: Media
    video: Media
    id: str | None
    values: Sequence[float] | None
    space: str | None
    k: int
    vector: str  # fused or a modality: which vector of the records is searched
    filter: Mapping[str, Any] | None
    min_offsets: Mapping[int, int] | None  # partition of `records` -> offset
    timeout_ms: int | None
    generation: str | None
    explain: bool  # adds `scores` to each hit and `cutoff` to the answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[A]):
    """One request, and the model of its answer."""

    answer: type[A]
    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str | None, bytes]] | None = None  # an upload: file name and data


STATUS = Call(answer=StatusAnswer, method="GET", path="/v1/status")
GENERATIONS = Call(answer=GenerationsAnswer, method="GET", path="/v1/generations")
READY = Call(answer=ReadyAnswer, method="GET", path="/readyz")


def search(query: Query, *, pack: bool) -> Call[SearchAnswer]:
    """A search; an upload if it has a picture or a sound. Raises BadQuery.

    Args:
        pack: gzip a large body of JSON.
    """
    media = {name: data for name in MEDIA if (data := _bytes(query, name)) is not None}
    fields = _fields(query)
    if not media:
        return _json(SearchAnswer, "/v1/search", fields, pack)
    parts: dict[str, tuple[str | None, bytes]] = {
        name: (None, _encoded(value if isinstance(value, str) else _dumped(value)))
        for name, value in fields.items()
    }
    parts |= {name: (name, data) for name, data in media.items()}
    return Call(answer=SearchAnswer, method="POST", path="/v1/search", files=parts)


def search_batch(queries: Sequence[Query], *, pack: bool) -> Call[BatchAnswer]:
    """Up to MAX_BATCH searches at once. Raises BadQuery."""
    bodies = []
    for query in queries:
        body = _fields(query)
        for name in MEDIA:
            if (data := _bytes(query, name)) is not None:
                body[name] = base64.b64encode(data).decode()
        bodies.append(body)
    return _json(BatchAnswer, "/v1/search/batch", {"queries": bodies}, pack)


def batches(queries: Sequence[Query]) -> list[Sequence[Query]]:
    """The queries split into batches that keep the limits of a batch."""
    parts: list[list[Query]] = []
    hits = size = 0
    for query in queries:
        k, more = query.get("k"), _media_bytes(query)
        k = k if isinstance(k, int) else DEFAULT_K
        full = not parts or len(parts[-1]) == MAX_BATCH
        if full or hits + k > MAX_BATCH_HITS or size + more > BATCH_BYTES:
            parts.append([])
            hits = size = 0
        parts[-1].append(query)
        hits, size = hits + k, size + more
    return [*parts]


def _media_bytes(query: Query) -> int:
    """Approximate size in JSON of a query's media, in bytes."""
    sizes = 0
    for name in MEDIA:
        value = query.get(name)
        if isinstance(value, Path) and value.is_file():
            sizes += value.stat().st_size
        elif isinstance(value, bytes):
            sizes += len(value)
    return sizes * 4 // 3


def answers(batch: BatchAnswer) -> list[SearchAnswer | BraidIndexError]:
    """The answers of a batch, in order; an error in place of a failed query's answer."""
    return [
        _refusal(one.error.field, one.error.reason, one.status, "/v1/search/batch")
        if isinstance(one, BatchProblem)
        else one
        for one in batch.answers
    ]


def embed(inputs: Sequence[str], model: str, *, pack: bool) -> Call[EmbeddingsAnswer]:
    """The vectors of texts, in the schema of OpenAI's API."""
    body = {"input": list(inputs), "model": model}
    return _json(EmbeddingsAnswer, "/v1/embeddings", body, pack)


def get(
    id: str,
    generation: str | None = None,
    min_offsets: Mapping[int, int] | None = None,
    timeout_ms: int | None = None,
) -> Call[RecordAnswer]:
    options = {"generation": generation, "timeout_ms": timeout_ms}
    path = _record(id) + _options(options, min_offsets)
    return Call(answer=RecordAnswer, method="GET", path=path)


def delete(
    id: str, min_offsets: Mapping[int, int] | None = None, timeout_ms: int | None = None
) -> Call[DeleteAnswer]:
    path = _record(id) + _options({"timeout_ms": timeout_ms}, min_offsets)
    return Call(answer=DeleteAnswer, method="DELETE", path=path)


def thumbnail(id: str) -> str:
    """The path of a record's picture, small."""
    return "/v1/thumb?id=" + _quoted(id)


def headers(api_key: str | None) -> dict[str, str]:
    """Headers of every call. Raises ServiceError for a key that no header can hold."""
    if api_key is None:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ServiceError("the API key must be printable ASCII characters without spaces")
    return {"authorization": f"Bearer {api_key}"}


def read(call: Call[A], status: int, content: bytes) -> A:
    """The answer in a successful response.

    Raises:
        BadQuery: the service refused the call; the error names field and reason.
        ServiceError: the service failed or is busy, or the response is not its own.
    """
    try:
        body: dict[str, Any] = dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise ServiceError(f"{call.path} answered {status} without JSON", status=status) from error
    if 200 <= status < 300:
        try:
            return call.answer.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = f"{call.path} answered {status} with another form: {where}: {first['msg']}"
            raise ServiceError(reason, status=status) from error
    problem = body.get("error")
    problem = problem if isinstance(problem, dict) else {}
    raise _refusal(str(problem.get("field")), str(problem.get("reason")), status, call.path)


def wait_s(status: int, retry_after: str | None, *, tried: int) -> float | None:
    """Seconds until the call may be tried again, or None if that would not help.

    Args:
        retry_after: the header's value; without it the wait doubles, starting at 0.25 s.
        tried: how many times the call was sent.
    """
    if status not in RETRIABLE:
        return None
    if retry_after is not None and retry_after.strip().isdigit():
        return float(retry_after)
    return 0.25 * 2.0 ** (tried - 1)


def _refusal(field: str, reason: str, status: int, path: str) -> BraidIndexError:
    if status < 500:
        return BadQuery(field, reason, status=status)
    return ServiceError(f"{path}: {field}: {reason}", status=status)


def _fields(query: Query) -> dict[str, Any]:
    unknown = sorted(set(query) - set(Query.__annotations__))
    if unknown:
        raise BadQuery(unknown[0], f"is no part of a query; those are {', '.join(_NAMES)}")
    names = ("text", "id", "k", "vector", "filter", "timeout_ms", "generation", "explain")
    body = {name: query[name] for name in names if query.get(name) is not None}  # type: ignore[literal-required]
    if (values := query.get("values")) is not None:
        body["query"] = {"values": list(values), "space": query.get("space")}
    if (offsets := query.get("min_offsets")) is not None:
        body["min_offsets"] = {str(number): next_ for number, next_ in offsets.items()}
    return body


_NAMES = tuple(Query.__annotations__)


def _bytes(query: Query, name: str) -> bytes | None:
    value = query.get(name)
    if isinstance(value, Path):
        try:
            return value.read_bytes()
        except OSError as error:
            raise BadQuery(name, f"{value}: {error.strerror}") from error
    if value is None or isinstance(value, bytes):
        return value
    raise BadQuery(name, f"must be bytes or a Path, got {type(value).__name__}")


def _json(answer: type[A], path: str, body: Mapping[str, Any], pack: bool) -> Call[A]:
    content = _dumped(body).encode()
    headers = {"content-type": "application/json"}
    if pack and len(content) >= GZIP_FROM:
        content = gzip.compress(content, 6, mtime=0)
        headers["content-encoding"] = "gzip"
    return Call(answer=answer, method="POST", path=path, content=content, headers=headers)


def _dumped(value: Any) -> str:
    try:
        dumped = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        _encoded(dumped)
    except (ValueError, TypeError) as error:  # for example NaN
        raise BadQuery("body", f"cannot be sent as JSON: {error}") from error
    return dumped


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise BadQuery("body", f"cannot be sent: {error}") from error


def _record(id: str) -> str:
    # Dots are encoded too: `..` would leave the collection.
    return "/v1/records/" + _quoted(id).replace(".", "%2E")


def _options(options: Mapping[str, Any], min_offsets: Mapping[int, int] | None) -> str:
    named = {name: str(value) for name, value in options.items() if value is not None}
    if min_offsets:
        named["min_offsets"] = ",".join(f"{number}:{at}" for number, at in min_offsets.items())
    return "?" + "&".join(f"{n}={_quoted(v)}" for n, v in named.items()) if named else ""


def _quoted(text: str) -> str:
    _encoded(text)
    return quote(text, safe="")
