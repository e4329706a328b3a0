"""Parses and validates request bodies: JSON, or multipart with the same fields."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from braid.modalities import MEDIA

from ..errors import BadQuery
from .limits.json_bounds import check_json
from .multipart import read_form, text_of
from .requests import MAX_BATCH_HITS, BatchBody, SearchBody

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")

LARGE = 8 * 1024  # bytes from which a thread parses a body, not the event loop
SEEN = 60  # characters of an invalid value that a reason shows
WORDS = frozenset({"text", "id", "vector", "generation"})  # parts that are text, not JSON


async def read_search(request: Request) -> SearchBody:
    """The query of `POST /v1/search`, from JSON or an upload. Raises BadQuery."""
    raw, content_type = await _raw(request)
    if _media_type(content_type) == "multipart/form-data":
        return await _off_loop(len(raw), lambda: _from_form(raw, content_type))
    _check_type(raw, content_type, "application/json or multipart/form-data")
    return await _off_loop(len(raw), lambda: checked(SearchBody, _json(raw)))


async def read_batch(request: Request) -> list[SearchBody | BadQuery]:
    """The queries of `POST /v1/search/batch`, or the error of each. Raises BadQuery."""
    raw, content_type = await _raw(request)
    _check_type(raw, content_type, "application/json")
    return await _off_loop(len(raw), lambda: _queries(raw))


async def read_json(request: Request, model: type[B]) -> B:
    """A JSON body, validated by the model. Raises BadQuery."""
    raw, content_type = await _raw(request)
    _check_type(raw, content_type, "application/json")
    return await _off_loop(len(raw), lambda: checked(model, _json(raw)))


def checked(model: type[B], value: Any) -> B:
    """`value`, as parsed from JSON, as that model. Raises BadQuery."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refusal(error.errors()[0]) from None


def refusal(first: Any) -> BadQuery:
    """A pydantic error as a BadQuery that names field, limit and value."""
    where = [str(part)[:SEEN] for part in first["loc"] if part != "body"] or ["body"]
    value = first.get("input")
    shown = "" if isinstance(value, (dict, list, type(None))) else f", got {str(value)[:SEEN]!r}"
    return BadQuery(".".join(where), f"{first['msg'][:200]}{shown}")


async def _raw(request: Request) -> tuple[bytes, str]:
    try:
        return await request.body(), request.headers.get("content-type", "")
    except ClientDisconnect:
        raise HTTPException(400, "the body did not come whole") from None


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _check_type(raw: bytes, content_type: str, expected: str) -> None:
    if not raw:
        raise BadQuery("body", "is missing")
    media_type = _media_type(content_type)
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        reason = f"must be sent as content-type {expected}, got {media_type[:60]!r}"
        raise BadQuery("body", reason, status=415)


def _json(raw: bytes) -> Any:
    check_json("body", raw)
    return _parsed("body", raw, status=400)


def _queries(raw: bytes) -> list[SearchBody | BadQuery]:
    batch = checked(BatchBody, _json(raw))
    queries: list[SearchBody | BadQuery] = []
    for one in batch.queries:
        try:
            queries.append(checked(SearchBody, one))
        except BadQuery as error:
            queries.append(error)
    asked = sum(query.k for query in queries if isinstance(query, SearchBody))
    if asked > MAX_BATCH_HITS:
        raise BadQuery("queries", f"ask for {asked} hits together, the limit is {MAX_BATCH_HITS}")
    return queries


async def _off_loop(size: int, call: Callable[[], T]) -> T:
    return await asyncio.to_thread(call) if size > LARGE else call()


def _parsed(name: str, text: bytes | str, *, status: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadQuery(name, f"is not JSON: {error}", status=status) from None


def _from_form(raw: bytes, content_type: str) -> SearchBody:
    value: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, data in read_form(raw, content_type).items():
        if name in MEDIA:
            files[name] = data
        elif name in WORDS:
            value[name] = text_of(name, data)
        elif name in SearchBody.model_fields:
            check_json(name, data)
            value[name] = _parsed(name, text_of(name, data), status=422)
        else:
            known = ", ".join(SearchBody.model_fields)
            raise BadQuery(name[:60], f"is no part of a query; those are {known}")
    body = checked(SearchBody, value)
    for name, data in files.items():
        body.attach(name, data)
    return body
