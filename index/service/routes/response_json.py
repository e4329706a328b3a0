"""Serialises answers to JSON off the event loop, within a size limit.

FastAPI would validate and serialise an answer in the event loop: 19 MB of hits block it for
seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi.responses import Response

from ...errors import BadQuery
from ..searcher import to_json

HEAD, TAIL = b'{"answers":[', b'],"took_ms":%s}'


def one_answer(body: bytes, *, limit: int) -> Response:
    """A JSON answer. Raises BadQuery if it is longer than `limit` bytes."""
    _check(len(body), limit)
    return Response(body, media_type="application/json")


async def many_answers(
    answers: Sequence[dict[str, Any]], took_ms: float, *, limit: int
) -> Response:
    """The answer to a batch. Raises BadQuery if it is longer than `limit` bytes."""
    parts: list[bytes] = []
    for answer in answers:  # one at a time, so that the event loop runs in between
        parts.append(await asyncio.to_thread(to_json, answer))
        _check(sum(map(len, parts)), limit)
    body = await asyncio.to_thread(lambda: HEAD + b",".join(parts) + TAIL % to_json(took_ms))
    return Response(body, media_type="application/json")


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise BadQuery("k", f"asks for an answer of more than {limit} bytes; ask for fewer hits")
