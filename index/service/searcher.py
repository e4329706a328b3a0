"""Searches and renders the queries of requests, their vectors known: steps 5 and 6 of `search`.

Queries with the same generation, k, vector and filter are one call of the store's search. Small
requests that come while others are searched are searched together, in one thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic_core

from ..batching import Batcher
from ..errors import BadQuery
from ..payloads import Payload
from ..store import Array, Hit, Row, is_exact, rows_of
from .dependencies import ServiceDeps, Serving
from .explain import UnrelatedScores, scores_by_modality
from .requests import Kind, SearchBody

AT_ONCE = 2  # threads for small requests: one may wait for the payloads of another's hits
TOGETHER = 64  # small requests that are searched together at most
SMALL_K = 100


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The queries of one request, and `time.perf_counter()` at its beginning."""

    queries: Sequence[PendingQuery | BadQuery]
    began: float

    @property
    def pending(self) -> list[PendingQuery]:
        return [query for query in self.queries if isinstance(query, PendingQuery)]


class Searcher:
    """Searches and renders requests whose vectors are known; small ones together."""

    def __init__(self, deps: ServiceDeps) -> None:
        self._deps = deps
        self._together = Batcher(self._finish_all, at_once=AT_ONCE, size=TOGETHER)

    async def one(self, request: Request) -> bytes | BadQuery:
        """The answer to a request of one query, as JSON."""
        (query,) = request.queries
        if isinstance(query, PendingQuery):
            body = query.body
            if query.keep is None and body.k <= SMALL_K and not body.explain:
                return await self._together(request)
        (packed,) = await self._finish_all([request])
        return packed

    async def many(self, request: Request) -> list[Outcome]:
        """The answers to a batch."""
        (outcomes,) = await asyncio.to_thread(_finish, self._deps, [request])
        return outcomes

    async def _finish_all(self, requests: Sequence[Request]) -> list[bytes | BadQuery]:
        return await asyncio.to_thread(self._packed, requests)

    def _packed(self, requests: Sequence[Request]) -> list[bytes | BadQuery]:
        return [
            outcome if isinstance(outcome, BadQuery) else to_json(outcome)
            for (outcome,) in _finish(self._deps, requests)
        ]


def _finish(deps: ServiceDeps, requests: Sequence[Request]) -> list[list[Outcome]]:
    """Search and render the queries of several requests, in a thread."""
    pending = [one for request in requests for one in request.pending]
    groups: dict[Any, list[PendingQuery]] = {}
    for one in pending:
        if one.problem is None:
            key = (id(one.serving.store), one.body.k, one.body.vector, one.filter_key)
            groups.setdefault(key, []).append(one)
    for group in groups.values():
        _search_group(deps, group)
    payloads = deps.payloads.get_many(_ids(pending))
    rows: dict[int, dict[str, Row]] = {}
    for store in {id(one.serving.store): one.serving.store for one in pending}.values():
        rows[id(store)] = rows_of(store, _ids(one for one in pending if one.serving.store is store))
    now = time.perf_counter()
    return [
        [
            query
            if isinstance(query, BadQuery)
            else _render(
                query,
                payloads,
                rows[id(query.serving.store)],
                deps.unrelated,
                round((now - request.began) * 1000, 3),
            )
            for query in request.queries
        ]
        for request in requests
    ]


def _search_group(deps: ServiceDeps, group: Sequence[PendingQuery]) -> None:
    first = group[0]
    store, k, vector = first.serving.store, first.body.k, first.body.vector
    queries_BD = np.stack([one.vector_D for one in group if one.vector_D is not None])
    as_of = store.progress  # before the search, which may reflect more
    exact = is_exact(store)
    try:
        hit_lists = store.search(queries_BD, k=k, vector=vector, filter=first.keep)
    except BadQuery as error:
        for one in group:
            one.problem = error
        return
    for one, query_D, hits in zip(group, queries_BD, hit_lists, strict=True):
        one.hits, one.as_of = hits, as_of
        one.exact = exact and is_exact(store)  # it may have changed meanwhile
        deps.recent.add(one.serving.generation, query_D, k=k, vector=vector)


def _ids(pending: Iterable[PendingQuery]) -> list[str]:
    return list(dict.fromkeys(hit.id for one in pending for hit in one.hits or ()))


def _render(
    one: PendingQuery,
    payloads: Mapping[str, Payload] | None,
    rows: Mapping[str, Row],
    unrelated: UnrelatedScores,
    took_ms: float,
) -> Outcome:
    if one.problem is not None:
        return one.problem
    assert one.hits is not None
    assert one.as_of is not None
    assert one.vector_D is not None
    store = one.serving.store
    explanation: dict[str, Any] = {}
    if one.body.explain:
        explanation["cutoff"] = unrelated.cutoff(store, one.body.vector, one.vector_D)
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
        **explanation,
    }


def render_hit(
    hit: Hit, payload: Payload | None, row: Row | None, pending: PendingQuery
) -> dict[str, Any]:
    """A hit in the answer's form. `row` is None if the record was deleted since the search.

    `matched` is the searched modality; in a search by fused vectors it is the modality whose
    vector is nearest to the query.
    """
    query_D, vector = pending.vector_D, pending.body.vector
    assert query_D is not None
    scores = {} if row is None else scores_by_modality(row, query_D)
    nearest = max(scores, key=scores.__getitem__, default=None)
    explanation = {"scores": scores} if pending.body.explain else {}
    return {
        "id": hit.id,
        "score": hit.score,
        "meta": dict(hit.meta),
        "model": hit.model,
        "version": hit.version,
        "partition": hit.partition,
        **payload_fields(payload),
        "ts": None if row is None else row.ts,
        "modalities": sorted(scores),
        "matched": vector if vector in scores else nearest,
        **explanation,
    }


def payload_fields(payload: Payload | None) -> dict[str, Any]:
    """A payload's fields in an answer; null where there is none."""
    if payload is None:
        return {"text": None, "uri": None, "labels": None, "predicted": None}
    return {
        "text": payload.text,
        "uri": payload.links,
        "labels": dict(payload.labels),
        "predicted": dict(payload.predicted),
    }


def to_json(value: Any) -> bytes:
    """Compact JSON; null for numbers that JSON does not have."""
    return pydantic_core.to_json(value, inf_nan_mode="null")
