"""The query service: HTTP in front of a vector store.

It knows no model and no Kafka: what turns a query into a vector, what produces a deletion and what
tells the node's state are functions handed to it in `ServiceDeps`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

from .body_limit import BodyLimit, BodyTooLarge
from .errors import BadQuery, SpaceMismatch
from .filters import compile_filter
from .metrics import ServiceMetrics
from .payloads import Payloads
from .requests import SearchAnswer, SearchBody
from .store import Array, Hit, VectorStore

MIB = 1024 * 1024
POLL_S = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryInput:
    """What a person asks with: a record with fewer modalities."""

    text: str | None = None
    image: bytes | None = None
    audio: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryVectors:
    """The query in the shared space, float32[D] each, and which model put it there."""

    fused: Array
    by: Mapping[str, Array]
    space: str
    model: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceDeps:
    """What the service stands on.

    Attributes:
        store: the store to search now; asked anew for every query.
        encode: embeds a query; raises BadQuery. None refuses everything but raw vectors and ids.
        delete: produces a record's deletion; returns its partition and offset in `records`.
        status: merged into `/v1/status`.
        not_ready: why the node is not ready, or None.
    """

    store: Callable[[], VectorStore]
    encode: Callable[[QueryInput], Awaitable[QueryVectors]] | None
    payloads: Payloads
    delete: Callable[[str], Awaitable[tuple[int, int]]]
    status: Callable[[], Mapping[str, Any]]
    not_ready: Callable[[], str | None]
    generation: str
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)
    max_body_bytes: int = 32 * MIB


def create_app(deps: ServiceDeps) -> FastAPI:
    """The HTTP application. Every answer is JSON; a bad query gets {"error": {field, reason}}."""
    register_url_convertor("anything", _Anything())
    app = FastAPI(title="braid", description="One live space of text, pictures and sound.")
    app.add_middleware(BodyLimit, limit=deps.max_body_bytes)
    _add_errors(app)
    _add_health(app, deps)

    @app.post("/v1/search", response_model=SearchAnswer)
    async def search(body: SearchBody) -> dict[str, Any]:
        """What is like this?"""
        began = time.perf_counter()
        keep = None if body.filter is None else compile_filter(body.filter)
        kind, offsets = body.kind(), body.offsets()
        store = deps.store()
        if kind == "id":  # may be a record that the caller has just written
            await _wait_until(store, offsets, body.timeout_ms / 1000)
        if kind == "media":
            vectors_D, model = await _embedded(deps, store, body)
        elif kind == "query":
            assert body.query is not None
            if body.query.space != store.space:
                raise SpaceMismatch(body.query.space, store.space)
            vectors_D, model = _unit(body.values(), store.dim), None
        else:
            vectors_D, model = _of_record(store, str(body.id), body.vector)
        if kind != "id":  # only now: a bad query is refused at once
            await _wait_until(store, offsets, body.timeout_ms / 1000)
        as_of = store.progress  # before the search, which may reflect more
        (hits,) = await asyncio.to_thread(
            store.search, vectors_D[None, :], k=body.k, vector=body.vector, filter=keep
        )
        shown, payloads = await _shown(deps, hits)
        took = time.perf_counter() - began
        deps.metrics.searched(took)
        return {
            "hits": shown,
            "model": model,
            "space": store.space,
            "generation": deps.generation,
            "as_of": {str(number): next_ for number, next_ in sorted(as_of.items())},
            "exact": True,
            "payloads": payloads,
            "took_ms": round(took * 1000, 3),
        }

    @app.get("/v1/records/{id:anything}")
    async def get(id: str) -> dict[str, Any]:
        """One record as the index holds it."""
        store = deps.store()
        row = store.get(id)
        if row is None:
            raise BadQuery("id", f"no record {id[:256]!r}", status=404)
        found = await asyncio.to_thread(deps.payloads.get_many, [id])
        payload = (found or {}).get(id)
        return {
            "id": row.id,
            "ts": row.ts,
            "meta": dict(row.meta),
            "model": row.model,
            "version": row.version,
            "partition": row.partition,
            "space": store.space,
            "text": payload.text if payload else None,
            "uri": dict(payload.uri) if payload else None,
            "vectors": {name: vector_D.tolist() for name, vector_D in row.vectors.items()},
        }

    @app.delete("/v1/records/{id:anything}", status_code=202)
    async def delete(id: str) -> dict[str, Any]:
        """Ask for a deletion: a null goes to `records`, and the index follows."""
        if deps.store().get(id) is None:
            raise BadQuery("id", f"no record {id[:256]!r}", status=404)
        partition, offset = await deps.delete(id)
        return {"id": id, "partition": partition, "offset": offset}

    return app


class _Anything(Convertor[str]):
    """An id in a path: slashes as in Starlette's `path`, and line breaks, which that refuses."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def _add_health(app: FastAPI, deps: ServiceDeps) -> None:
    @app.get("/v1/status")
    async def status() -> dict[str, Any]:
        """Rows, offsets, model and space."""
        store = deps.store()
        return {
            "generation": deps.generation,
            "positions": {str(n): next_ for n, next_ in sorted(store.positions.items())},
            "progress": {str(n): next_ for n, next_ in sorted(store.progress.items())},
            "payloads": deps.payloads.available,
            "ready": deps.not_ready() is None,
            **store.stats(),
            **deps.status(),
        }

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """The process lives."""
        return {"ok": True}

    @app.get("/readyz")
    async def readyz() -> Response:
        """The node has caught up and may be asked."""
        reason = deps.not_ready()
        if reason is not None:
            return JSONResponse({"ready": False, "reason": reason}, status_code=503)
        return JSONResponse({"ready": True})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        deps.metrics.rows(len(deps.store()))
        text = generate_latest(deps.metrics.registry)
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    def problem(field: str, reason: str, status: int) -> JSONResponse:
        # A name or text from the query may hold half a surrogate pair, which no answer can.
        sound = {"field": _printable(field), "reason": _printable(reason)}
        return JSONResponse({"error": sound}, status_code=status)

    @app.exception_handler(BadQuery)
    async def bad_query(_: Request, error: BadQuery) -> JSONResponse:
        return problem(error.field, error.reason, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part != "body"] or ["body"]
        given = first.get("input")
        if first["type"] == "json_invalid":
            return problem("body", f"is not JSON: {first['ctx']['error']}", 400)
        if where == ["body"] and isinstance(given, bytes):
            return problem("body", "must be JSON, sent as content-type: application/json", 415)
        seen = "" if isinstance(given, (dict, list, type(None))) else f", got {str(given)[:60]!r}"
        return problem(".".join(where), f"{first['msg']}{seen}", 422)

    @app.exception_handler(BodyTooLarge)
    async def too_large(_: Request, error: BodyTooLarge) -> JSONResponse:
        return JSONResponse(error.body, status_code=413, headers={"connection": "close"})

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        where = "body" if error.status_code == 400 else "request"
        return problem(where, str(error.detail), error.status_code)

    @app.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> JSONResponse:
        """Our fault; the server writes the traceback to its log and ends the connection."""
        answer = problem("request", f"failed: {type(error).__name__}", 500)
        answer.headers["connection"] = "close"  # said, so that no client sends its next query here
        return answer


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


async def _wait_until(store: VectorStore, offsets: Mapping[int, int], timeout_s: float) -> None:
    """Wait until the index reflects these offsets of `records`: read your own writes."""
    deadline = time.monotonic() + timeout_s
    while True:
        progress = store.progress
        missing = {n: at for n, at in offsets.items() if progress.get(n, 0) < at}
        if not missing:
            return
        if time.monotonic() >= deadline:
            n, at = next(iter(missing.items()))
            raise BadQuery(
                "min_offsets",
                f"partition {n} is at {progress.get(n, 0)}, not yet at {at} "
                f"after {timeout_s:g} s; try again",
                status=504,
            )
        await asyncio.sleep(POLL_S)


async def _embedded(deps: ServiceDeps, store: VectorStore, body: SearchBody) -> tuple[Array, str]:
    if deps.encode is None:
        raise BadQuery("body", "this node has no model: ask with query or id", status=501)
    query = QueryInput(text=body.text, image=body.media("image"), audio=body.media("audio"))
    vectors = await deps.encode(query)
    if vectors.space != store.space:
        raise SpaceMismatch(vectors.space, store.space)
    return vectors.fused, vectors.model


def _unit(values: list[float], dim: int) -> Array:
    if len(values) != dim:
        raise BadQuery("query.values", f"has {len(values)} values, this space has {dim}")
    vector_D = np.asarray(values, dtype=np.float64)
    largest = float(np.abs(vector_D).max())
    if largest == 0.0:
        raise BadQuery("query.values", "are all 0: such a vector points nowhere")
    vector_D /= largest  # first, so that no square overflows or vanishes
    return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)


def _of_record(store: VectorStore, id: str, vector: str) -> tuple[Array, str]:
    row = store.get(id)
    if row is None:
        raise BadQuery("id", f"no record {id[:256]!r}", status=404)
    if vector not in row.vectors:
        have = ", ".join(sorted(row.vectors))
        raise BadQuery("vector", f"record {id!r} has no {vector} vector, it has {have}")
    return row.vectors[vector], row.model


async def _shown(deps: ServiceDeps, hits: list[Hit]) -> tuple[list[dict[str, Any]], str]:
    payloads = await asyncio.to_thread(deps.payloads.get_many, [hit.id for hit in hits])
    shown = []
    for hit in hits:
        payload = (payloads or {}).get(hit.id)
        shown.append(
            {
                "id": hit.id,
                "score": hit.score,
                "text": payload.text if payload else None,
                "uri": dict(payload.uri) if payload else None,
                "meta": dict(hit.meta),
                "model": hit.model,
                "version": hit.version,
                "partition": hit.partition,
            }
        )
    return shown, "unavailable" if payloads is None else "ok"
