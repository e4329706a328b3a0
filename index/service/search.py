"""Answers one query or a batch: validate, wait, embed, search, render.

1 check ─► 2 wait, by id ─► 3 vectors ─► 4 wait, the others ─► 5 search ─► 6 show

Queries with the same generation, k, vector and filter are one call of the store's search. Steps 5
and 6 are in `searcher`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from braid.modalities import MEDIA

from ..errors import BadQuery, OffsetsNotReached, SpaceMismatch
from ..filters import compile_filter
from ..store import Array, VectorStore
from .dependencies import Limiters, QueryInput, QueryVectors, ServiceDeps, Serving
from .requests import SearchBody
from .searcher import PendingQuery, Request
from .waiting import missing, reflected

ENCODE_AT_ONCE = 4  # queries of one batch, where the node embeds them one at a time

T = TypeVar("T")
Finish = Callable[[Request], Awaitable[T]]


async def answer(
    deps: ServiceDeps,
    limiters: Limiters,
    bodies: Sequence[SearchBody | BadQuery],
    finish: Finish[T],
) -> T:
    """The answers to the queries.

    Args:
        finish: searches and renders the queries; see `Searcher`.

    Raises:
        Busy: a concurrency limit is reached; no query is answered.
    """
    began = time.perf_counter()
    if any(isinstance(body, SearchBody) and body.filter is not None for body in bodies):
        queries = await asyncio.to_thread(_check, deps, bodies)  # a filter may be long
    else:
        queries = _check(deps, bodies)
    request = Request(queries=queries, began=began)
    pending = request.pending
    await _wait_all([one for one in pending if one.kind == "id"], limiters)
    others = [one for one in pending if one.kind != "id"]
    waits = [one for one in others if _missing(one)]
    async with limiters.searching.slot():
        await _resolve_vectors(pending)
        if not waits:
            return await finish(request)
    # Without a slot; and after embedding, so that a bad query is refused at once.
    await _wait_all(others, limiters)
    async with limiters.searching.slot():
        return await finish(request)


def of_record(store: VectorStore, id: str, vector: str) -> tuple[Array, str]:
    """A record's vector of that name, and its model. Raises BadQuery."""
    row = store.get(id)
    if row is None:
        raise unknown_record(id)
    if vector not in row.vectors:
        have = ", ".join(sorted(row.vectors))
        raise BadQuery("vector", f"record {id[:256]!r} has no {vector} vector, it has {have}")
    return row.vectors[vector], row.model


def unknown_record(id: str) -> BadQuery:
    return BadQuery("id", f"no record {id[:256]!r}", status=404)


# ---- 1 check


def _check(
    deps: ServiceDeps, bodies: Sequence[SearchBody | BadQuery]
) -> list[PendingQuery | BadQuery]:
    taken: dict[str | None, Serving] = {}  # each generation once, for the whole request
    queries: list[PendingQuery | BadQuery] = []
    for body in bodies:
        if isinstance(body, BadQuery):
            queries.append(body)
            continue
        try:
            if body.generation not in taken:
                taken[body.generation] = deps.serving(body.generation)
            pending = PendingQuery(
                body=body,
                serving=taken[body.generation],
                keep=None if body.filter is None else compile_filter(body.filter),
                filter_key=json.dumps(body.filter, sort_keys=True),
                kind=body.kind(),
                offsets=body.offsets(),
            )
        except BadQuery as error:
            queries.append(error)
        else:
            queries.append(pending)
    return queries


# ---- 2 and 4 wait: read your own writes


def _missing(pending: PendingQuery) -> dict[int, int]:
    if pending.problem is not None or not pending.offsets:
        return {}
    return missing(pending.serving.store, pending.offsets)


async def _wait_all(pending: Iterable[PendingQuery], limiters: Limiters) -> None:
    waiting = [one for one in pending if _missing(one)]
    if not waiting:
        return
    async with limiters.waiting.slot():
        await asyncio.gather(*[_wait(one) for one in waiting])


async def _wait(pending: PendingQuery) -> None:
    try:
        await reflected(pending.serving.store, pending.offsets, timeout_ms=pending.body.timeout_ms)
    except OffsetsNotReached as error:
        pending.problem = error


# ---- 3 vectors


async def _resolve_vectors(pending: Sequence[PendingQuery]) -> None:
    media: dict[int, list[PendingQuery]] = {}
    for one in pending:
        if one.problem is not None:
            continue
        if one.kind == "media":
            media.setdefault(id(one.serving), []).append(one)
            continue
        try:
            store = one.serving.store
            if one.kind == "id":
                one.vector_D, one.model = await asyncio.to_thread(
                    of_record, store, str(one.body.id), one.body.vector
                )
            else:
                one.vector_D = _raw_vector(one.body, store)
        except BadQuery as error:
            one.problem = error
    for together in media.values():
        await _embed_all(together)


async def _embed_all(pending: Sequence[PendingQuery]) -> None:
    """Embed the queries of one generation, with one call if the node supports it."""
    many = pending[0].serving.encode_many
    if len(pending) == 1:
        await _embed(pending[0])
        return
    if many is not None:
        try:
            inputs = await asyncio.to_thread(lambda: [_input(one.body) for one in pending])
            for one, vectors in zip(pending, await many(inputs), strict=True):
                _set_vectors(one, vectors)
            return
        except BadQuery:
            pass  # one query is bad: embed them singly to find it
    at_once = asyncio.Semaphore(ENCODE_AT_ONCE)

    async def embed(one: PendingQuery) -> None:
        async with at_once:
            await _embed(one)

    await asyncio.gather(*[embed(one) for one in pending])


async def _embed(one: PendingQuery) -> None:
    try:
        if one.serving.encode is None:
            raise BadQuery("body", "this node has no model: ask with query or id", status=501)
        body = one.body
        encoded = any(
            getattr(body, name) is not None for name in MEDIA
        )  # base64, possibly megabytes
        query = await asyncio.to_thread(_input, body) if encoded else _input(body)
        _set_vectors(one, await one.serving.encode(query))
    except BadQuery as error:
        one.problem = error


def _input(body: SearchBody) -> QueryInput:
    media: dict[str, Any] = {name: body.media(name) for name in MEDIA}
    return QueryInput(text=body.text, **media)


def _set_vectors(one: PendingQuery, vectors: QueryVectors) -> None:
    if vectors.space != one.serving.store.space:
        raise SpaceMismatch(vectors.space, one.serving.store.space)
    one.vector_D, one.model = vectors.fused, vectors.model


def _raw_vector(body: SearchBody, store: VectorStore) -> Array:
    assert body.query is not None
    if body.query.space != store.space:
        raise SpaceMismatch(body.query.space, store.space)
    count = len(body.query.values)
    if count != store.dim:  # first: checking 65,536 values is slow
        raise BadQuery("query.values", f"has {count} values, this space has {store.dim}")
    values = body.values()
    vector_D = np.asarray(values, dtype=np.float64)
    largest = float(np.abs(vector_D).max())
    if largest == 0.0:
        raise BadQuery("query.values", "are all 0: such a vector points nowhere")
    vector_D /= largest  # first, so that no square overflows or underflows
    return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)
