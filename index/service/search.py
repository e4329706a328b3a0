"""Answers one query or a batch: validate, wait, embed, search, render.

1 check ─► 2 wait, by id ─► 3 vectors ─► 4 wait, the others ─► 5 search ─► 6 show

Queries to one generation that agree on k, vector and filter are one call of the store's search.
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
class Asked:
    """One query on its way; `problem` ends it."""

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
    """What each of the queries finds, or why it cannot be answered, in their order.

    Raises:
        Busy: the node has as much to do as it takes on; nothing was answered.
    """
    began = time.perf_counter()
    if any(isinstance(body, SearchBody) and body.filter is not None for body in bodies):
        places = await asyncio.to_thread(_check, deps, bodies)  # a filter may be long
    else:
        places = _check(deps, bodies)
    asked = [place for place in places if isinstance(place, Asked)]
    await _wait_all([one for one in asked if one.kind == "id"], limiters)
    others = [one for one in asked if one.kind != "id"]
    waits = [one for one in others if _missing(one)]
    async with limiters.searching.slot():
        await _find_vectors(asked)
        if not waits:
            await _search(deps, asked)
    if waits:  # without a place, which others can use; and only now: a bad query is refused at once
        await _wait_all(others, limiters)
        async with limiters.searching.slot():
            await _search(deps, asked)
    payloads = await asyncio.to_thread(deps.payloads.get_many, _ids(asked))
    took_ms = round((time.perf_counter() - began) * 1000, 3)

    def all_shown() -> list[Outcome]:
        return [
            place if isinstance(place, BadQuery) else _shown(place, payloads, took_ms)
            for place in places
        ]

    return await asyncio.to_thread(all_shown)  # each hit's row is looked up


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


def shown(hit: Hit, payload: Payload | None, row: Row | None, asked: Asked) -> dict[str, Any]:
    """A hit as the answer shows it. `row` is None if it was deleted since the search.

    `matched` is the modality that was searched; in a search by fused vectors that whose own
    vector is nearest to the query.
    """
    by = {} if row is None else {n: v for n, v in row.vectors.items() if n != FUSED}
    query_D, vector = asked.vector_D, asked.body.vector
    assert query_D is not None
    nearest = max(by, key=lambda name: float(by[name] @ query_D), default=None)
    return {
        "id": hit.id,
        "score": hit.score,
        "meta": dict(hit.meta),
        "model": hit.model,
        "version": hit.version,
        "partition": hit.partition,
        **described(payload),
        "ts": None if row is None else row.ts,
        "modalities": sorted(by),
        "matched": vector if vector in by else nearest,
    }


def described(payload: Payload | None) -> dict[str, Any]:
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


def _check(deps: ServiceDeps, bodies: Sequence[SearchBody | BadQuery]) -> list[Asked | BadQuery]:
    taken: dict[str | None, Serving] = {}  # each generation once, for the whole request
    places: list[Asked | BadQuery] = []
    for body in bodies:
        if isinstance(body, BadQuery):
            places.append(body)
            continue
        try:
            if body.generation not in taken:
                taken[body.generation] = deps.serving(body.generation)
            asked = Asked(
                body=body,
                serving=taken[body.generation],
                keep=None if body.filter is None else compile_filter(body.filter),
                filter_key=json.dumps(body.filter, sort_keys=True),
                kind=body.kind(),
                offsets=body.offsets(),
            )
        except BadQuery as error:
            places.append(error)
        else:
            places.append(asked)
    return places


# ---- 2 and 4 wait: read your own writes


def _missing(asked: Asked) -> dict[int, int]:
    if asked.problem is not None or not asked.offsets:
        return {}
    return missing(asked.serving.store, asked.offsets)


async def _wait_all(asked: Iterable[Asked], limiters: Limiters) -> None:
    waiting = [one for one in asked if _missing(one)]
    if not waiting:
        return
    async with limiters.waiting.slot():
        await asyncio.gather(*[_wait(one) for one in waiting])


async def _wait(asked: Asked) -> None:
    try:
        await reflected(asked.serving.store, asked.offsets, timeout_ms=asked.body.timeout_ms)
    except OffsetsNotReached as error:
        asked.problem = error


# ---- 3 vectors


async def _find_vectors(asked: Sequence[Asked]) -> None:
    media: dict[int, list[Asked]] = {}
    for one in asked:
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
                one.vector_D = _raw(one.body, store)
        except BadQuery as error:
            one.problem = error
    for together in media.values():
        await _embed_all(together)


async def _embed_all(asked: Sequence[Asked]) -> None:
    """Embed the queries of one generation: all with one model, where the node can."""
    many = asked[0].serving.encode_many
    if len(asked) == 1:
        await _embed(asked[0])
        return
    if many is not None:
        try:
            inputs = await asyncio.to_thread(lambda: [_input(one.body) for one in asked])
            for one, vectors in zip(asked, await many(inputs), strict=True):
                _take(one, vectors)
            return
        except BadQuery:
            pass  # one of them is bad: find out which
    at_once = asyncio.Semaphore(ENCODE_AT_ONCE)

    async def embed(one: Asked) -> None:
        async with at_once:
            await _embed(one)

    await asyncio.gather(*[embed(one) for one in asked])


async def _embed(one: Asked) -> None:
    try:
        if one.serving.encode is None:
            raise BadQuery("body", "this node has no model: ask with query or id", status=501)
        body = one.body
        encoded = body.image is not None or body.audio is not None  # base64, maybe megabytes of it
        query = await asyncio.to_thread(_input, body) if encoded else _input(body)
        _take(one, await one.serving.encode(query))
    except BadQuery as error:
        one.problem = error


def _input(body: SearchBody) -> QueryInput:
    return QueryInput(text=body.text, image=body.media("image"), audio=body.media("audio"))


def _take(one: Asked, vectors: QueryVectors) -> None:
    if vectors.space != one.serving.store.space:
        raise SpaceMismatch(vectors.space, one.serving.store.space)
    one.vector_D, one.model = vectors.fused, vectors.model


def _raw(body: SearchBody, store: VectorStore) -> Array:
    assert body.query is not None
    if body.query.space != store.space:
        raise SpaceMismatch(body.query.space, store.space)
    count = len(body.query.values)
    if count != store.dim:  # first: to look at 65,536 values takes a while
        raise BadQuery("query.values", f"has {count} values, this space has {store.dim}")
    values = body.values()
    vector_D = np.asarray(values, dtype=np.float64)
    largest = float(np.abs(vector_D).max())
    if largest == 0.0:
        raise BadQuery("query.values", "are all 0: such a vector points nowhere")
    vector_D /= largest  # first, so that no square overflows or vanishes
    return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)


# ---- 5 search


async def _search(deps: ServiceDeps, asked: Sequence[Asked]) -> None:
    groups: dict[Any, list[Asked]] = {}
    for one in asked:
        if one.problem is None:
            key = (id(one.serving), one.body.k, one.body.vector, one.filter_key)
            groups.setdefault(key, []).append(one)
    for group in groups.values():
        await _search_group(deps, group)


async def _search_group(deps: ServiceDeps, group: Sequence[Asked]) -> None:
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


def _ids(asked: Iterable[Asked]) -> list[str]:
    return list(dict.fromkeys(hit.id for one in asked for hit in one.hits or ()))


def _shown(one: Asked, payloads: Mapping[str, Payload] | None, took_ms: float) -> Outcome:
    if one.problem is not None:
        return one.problem
    assert one.hits is not None
    assert one.as_of is not None
    store = one.serving.store
    rows = rows_of(store, [hit.id for hit in one.hits])
    return {
        "hits": [
            shown(hit, (payloads or {}).get(hit.id), rows.get(hit.id), one) for hit in one.hits
        ],
        "model": one.model,
        "space": store.space,
        "generation": one.serving.generation,
        "as_of": {str(number): next_ for number, next_ in sorted(one.as_of.items())},
        "exact": one.exact,
        "payloads": "unavailable" if payloads is None else "ok",
        "took_ms": took_ms,
    }
