"""From the bytes of a request to a checked body: JSON, or an upload of the same fields."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from .errors import BadQuery
from .forms import read_form
from .requests import MEDIA, BatchBody, SearchBody

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")

LARGE = 256 * 1024  # bytes from which on the event loop does not parse them itself
WORDS = frozenset({"text", "id", "vector", "generation"})  # parts that are words, not JSON


async def read_search(request: Request) -> SearchBody:
    """The query of `POST /v1/search`, from JSON or an upload. Raises BadQuery."""
    raw, content_type = await _raw(request)
    if _media_type(content_type) == "multipart/form-data":
        return await _off_loop(len(raw), lambda: _from_form(raw, content_type))
    given = await _json(raw, content_type, "application/json or multipart/form-data")
    return checked(SearchBody, given)


async def read_batch(request: Request) -> list[SearchBody | BadQuery]:
    """The queries of `POST /v1/search/batch`, or why one is none. Raises BadQuery."""
    raw, content_type = await _raw(request)
    batch = checked(BatchBody, await _json(raw, content_type, "application/json"))
    queries: list[SearchBody | BadQuery] = []
    for given in batch.queries:
        try:
            queries.append(checked(SearchBody, given))
        except BadQuery as error:
            queries.append(error)
    return queries


def checked(model: type[B], given: Any) -> B:
    """`given`, as parsed from JSON, as that model. Raises BadQuery."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise refusal(error.errors()[0]) from None


def refusal(first: Any) -> BadQuery:
    """The first of pydantic's errors as a refusal that names field, limit and value."""
    where = [str(part) for part in first["loc"] if part != "body"] or ["body"]
    given = first.get("input")
    seen = "" if isinstance(given, (dict, list, type(None))) else f", got {str(given)[:60]!r}"
    return BadQuery(".".join(where), f"{first['msg']}{seen}")


async def _raw(request: Request) -> tuple[bytes, str]:
    try:
        return await request.body(), request.headers.get("content-type", "")
    except ClientDisconnect:
        raise HTTPException(400, "the body did not come whole") from None


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


async def _json(raw: bytes, content_type: str, wanted: str) -> Any:
    if not raw:
        raise BadQuery("body", "is missing")
    media_type = _media_type(content_type)
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        reason = f"must be sent as content-type {wanted}, got {media_type[:60]!r}"
        raise BadQuery("body", reason, status=415)
    return await _off_loop(len(raw), lambda: _parsed("body", raw, status=400))


async def _off_loop(size: int, call: Callable[[], T]) -> T:
    return await asyncio.to_thread(call) if size > LARGE else call()


def _parsed(name: str, text: bytes | str, *, status: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadQuery(name, f"is not JSON: {error}", status=status) from None


def _from_form(raw: bytes, content_type: str) -> SearchBody:
    given: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, part in read_form(raw, content_type).items():
        if name in MEDIA:
            files[name] = part.data
        elif name in WORDS:
            given[name] = part.text()
        elif name in SearchBody.model_fields:
            given[name] = _parsed(name, part.text(), status=422)
        else:
            known = ", ".join(SearchBody.model_fields)
            raise BadQuery(name[:60], f"is no part of a query; those are {known}")
    body = checked(SearchBody, given)
    for name, data in files.items():
        body.attach(name, data)
    return body
