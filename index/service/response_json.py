"""Serialises answers to JSON off the event loop, within a size limit.

FastAPI would validate and serialise an answer in the event loop: 19 MB of hits block it for
seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi.responses import Response
from pydantic_core import to_json

from ..errors import BadQuery

HEAD, TAIL = b'{"answers":[', b'],"took_ms":%s}'


async def one_answer(content: dict[str, Any], *, limit: int) -> Response:
    """A JSON answer. Raises BadQuery if it is longer than `limit` bytes."""
    body = await asyncio.to_thread(_json, content)
    _check(len(body), limit)
    return Response(body, media_type="application/json")


async def many_answers(
    answers: Sequence[dict[str, Any]], took_ms: float, *, limit: int
) -> Response:
    """The answer to a batch. Raises BadQuery if it is longer than `limit` bytes."""
    parts: list[bytes] = []
    for answer in answers:  # one at a time, so that the event loop runs in between
        parts.append(await asyncio.to_thread(_json, answer))
        _check(sum(map(len, parts)), limit)
    body = await asyncio.to_thread(lambda: HEAD + b",".join(parts) + TAIL % _json(took_ms))
    return Response(body, media_type="application/json")


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise BadQuery("k", f"asks for an answer of more than {limit} bytes; ask for fewer hits")
