"""Answers one query or a batch: validate, wait, embed, search, render.

1 check ─► 2 wait, by id ─► 3 vectors ─► 4 wait, the others ─► 5 search ─► 6 show

Queries with the same generation, k, vector and filter are one call of the store's search.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BadQuery, OffsetsNotReached, SpaceMismatch
from ..filters import compile_filter
from ..payloads import Payload
from ..store import FUSED, Array, Hit, Row, VectorStore, is_exact, rows_of
from .dependencies import Limiters, QueryInput, QueryVectors, ServiceDeps, Serving
from .requests import Kind, SearchBody
from .waiting import missing, reflected

ENCODE_AT_ONCE = 4  # queries of one batch, where the node embeds them one at a time


@dataclass(kw_only=True, slots=True)
class PendingQuery:
    """The state of one query; after a `problem` it is not processed further."""

    body: SearchBody
    serving: Serving
    kind: Kind
    offsets: Mapping[int, int]
    keep: Any  # the compiled filter, or None
    filter_key: str  # equal for equal filters
    vector_D: Array | None = None
    model: str | None = None
    as_of: Mapping[int, int] | None = None
    hits: list[Hit] | None = None
    exact: bool = False
    problem: BadQuery | None = None


Outcome = dict[str, Any] | BadQuery


async def answer(
    deps: ServiceDeps, limiters: Limiters, bodies: Sequence[SearchBody | BadQuery]
) -> list[Outcome]:
    """The answer or the error of each query, in order.

    Raises:
        Busy: a concurrency limit is reached; no query is answered.
    """
    began = time.perf_counter()
    if any(isinstance(body, SearchBody) and body.filter is not None for body in bodies):
        queries = await asyncio.to_thread(_check, deps, bodies)  # a filter may be long
    else:
        queries = _check(deps, bodies)
    pending = [query for query in queries if isinstance(query, PendingQuery)]
    await _wait_all([one for one in pending if one.kind == "id"], limiters)
    others = [one for one in pending if one.kind != "id"]
    waits = [one for one in others if _missing(one)]
    async with limiters.searching.slot():
        await _resolve_vectors(pending)
        if not waits:
            await _search(deps, pending)
    if waits:  # without a slot; and after embedding, so that a bad query is refused at once
        await _wait_all(others, limiters)
        async with limiters.searching.slot():
            await _search(deps, pending)
    payloads = await asyncio.to_thread(deps.payloads.get_many, _ids(pending))
    took_ms = round((time.perf_counter() - began) * 1000, 3)

    def render_all() -> list[Outcome]:
        return [
            query if isinstance(query, BadQuery) else _render(query, payloads, took_ms)
            for query in queries
        ]

    return await asyncio.to_thread(render_all)  # each hit's row is looked up


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


def render_hit(
    hit: Hit, payload: Payload | None, row: Row | None, pending: PendingQuery
) -> dict[str, Any]:
    """A hit in the answer's form. `row` is None if the record was deleted since the search.

    `matched` is the searched modality; in a search by fused vectors it is the modality whose
    vector is nearest to the query.
    """
    by = {} if row is None else {n: v for n, v in row.vectors.items() if n != FUSED}
    query_D, vector = pending.vector_D, pending.body.vector
    assert query_D is not None
    nearest = max(by, key=lambda name: float(by[name] @ query_D), default=None)
    return {
        "id": hit.id,
        "score": hit.score,
        "meta": dict(hit.meta),
        "model": hit.model,
        "version": hit.version,
        "partition": hit.partition,
        **payload_fields(payload),
        "ts": None if row is None else row.ts,
        "modalities": sorted(by),
        "matched": vector if vector in by else nearest,
    }


def payload_fields(payload: Payload | None) -> dict[str, Any]:
    """A payload's fields in an answer; null where there is none."""
    if payload is None:
        return {"text": None, "uri": None, "labels": None, "predicted": None}
    return {
        "text": payload.text,
        "uri": dict(payload.uri),
        "labels": dict(payload.labels),
        "predicted": dict(payload.predicted),
    }


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
        encoded = body.image is not None or body.audio is not None  # base64, possibly megabytes
        query = await asyncio.to_thread(_input, body) if encoded else _input(body)
        _set_vectors(one, await one.serving.encode(query))
    except BadQuery as error:
        one.problem = error


def _input(body: SearchBody) -> QueryInput:
    return QueryInput(text=body.text, image=body.media("image"), audio=body.media("audio"))


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


# ---- 5 search


async def _search(deps: ServiceDeps, pending: Sequence[PendingQuery]) -> None:
    groups: dict[Any, list[PendingQuery]] = {}
    for one in pending:
        if one.problem is None:
            key = (id(one.serving), one.body.k, one.body.vector, one.filter_key)
            groups.setdefault(key, []).append(one)
    for group in groups.values():
        await _search_group(deps, group)


async def _search_group(deps: ServiceDeps, group: Sequence[PendingQuery]) -> None:
    first = group[0]
    store, k, vector = first.serving.store, first.body.k, first.body.vector
    queries_BD = np.stack([one.vector_D for one in group if one.vector_D is not None])
    as_of = store.progress  # before the search, which may reflect more
    exact = is_exact(store)
    try:
        hit_lists = await asyncio.to_thread(
            store.search, queries_BD, k=k, vector=vector, filter=first.keep
        )
    except BadQuery as error:
        for one in group:
            one.problem = error
        return
    for one, query_D, hits in zip(group, queries_BD, hit_lists, strict=True):
        one.hits, one.as_of = hits, as_of
        one.exact = exact and is_exact(store)  # it may have changed meanwhile
        deps.recent.add(one.serving.generation, query_D, k=k, vector=vector)


# ---- 6 show


def _ids(pending: Iterable[PendingQuery]) -> list[str]:
    return list(dict.fromkeys(hit.id for one in pending for hit in one.hits or ()))


def _render(one: PendingQuery, payloads: Mapping[str, Payload] | None, took_ms: float) -> Outcome:
    if one.problem is not None:
        return one.problem
    assert one.hits is not None
    assert one.as_of is not None
    store = one.serving.store
    rows = rows_of(store, [hit.id for hit in one.hits])
    return {
        "hits": [
            render_hit(hit, (payloads or {}).get(hit.id), rows.get(hit.id), one) for hit in one.hits
        ],
        "model": one.model,
        "space": store.space,
        "generation": one.serving.generation,
        "as_of": {str(number): next_ for number, next_ in sorted(one.as_of.items())},
        "exact": one.exact,
        "payloads": "unavailable" if payloads is None else "ok",
        "took_ms": took_ms,
    }
