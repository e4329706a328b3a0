"""The page at `/` and its routes: map, recent writes, thumbnails and snippets.

The page consists of static files in `index/page`; its data comes from `/v1/...`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.staticfiles import StaticFiles

from ...errors import BadQuery
from ...media_cache import Kind, MediaCache
from ...payloads import Payload
from ...store import FUSED, Row, rows_of
from ..bodies import read_json
from ..dependencies import Limiters, ServiceDeps, Serving
from ..hit_details import HitDetails
from ..polls import ChangeWatcher, CoalescedAnswers, until_disconnect
from ..search import payload_fields, unknown_record
from ..space_map import SpaceMap

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Only our own scripts run, and no other origin is contacted.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # cached, but revalidated each time (304)
}
MEDIA_HEADERS = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
SHOWN = 24  # records of a new page
MAX_WAIT_MS = 5000
MAX_PLACED = 1000

Id = Annotated[str, Query(min_length=1, max_length=256)]


class PlaceBody(BaseModel):
    """`POST /v1/map`: ids of records to place on the map."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[str] = Field(max_length=MAX_PLACED)


def add_page(app: FastAPI, deps: ServiceDeps, limiters: Limiters) -> None:
    """Serve the page and its routes."""
    space_map = SpaceMap(deps.store, deps.payloads)
    _add_files(app)
    _add_map(app, deps, space_map)
    _add_live(app, deps, limiters, space_map)
    _add_media(app, deps)


def _add_files(app: FastAPI) -> None:
    files: dict[str, tuple[bytes, str, str]] = {}
    for file in resources.files("braid.index").joinpath("page").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in TYPES:
            body = file.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            files[file.name] = (body, TYPES[suffix], tag)

    def answer(request: Request, name: str) -> Response:
        if name not in files:
            raise BadQuery("path", f"the page has no file {name[:80]!r}", status=404)
        body, type_, tag = files[name]
        headers = PAGE_HEADERS | {"etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=type_, headers=headers)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return answer(request, "docs.html")

    # Swagger UI itself: FastAPI's own page would load it from another host.
    app.mount("/docs", StaticFiles(packages=[("fastapi_offline", "static")]))

    @app.get("/page/{name}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        return answer(request, name)


def _add_map(app: FastAPI, deps: ServiceDeps, space_map: SpaceMap) -> None:
    @app.get("/v1/map", include_in_schema=False)
    async def map_(revision: int = 0) -> Response:
        """The map; 204 if `revision` is the newest drawing."""
        drawn = await space_map.now()
        if drawn.revision == revision:
            return Response(status_code=204)
        return Response(drawn.body, media_type="application/json")

    @app.post("/v1/map", include_in_schema=False)
    async def place(request: Request) -> dict[str, Any]:
        """Coordinates of these records on the newest drawing; unknown ids are left out."""
        body = await read_json(request, PlaceBody)
        await space_map.now()
        store = deps.store()
        rows = await asyncio.to_thread(rows_of, store, body.ids)
        placed = space_map.place(row.vectors[FUSED] for row in rows.values()) or []
        return {"places": dict(zip(rows, placed, strict=False))}


def _add_live(app: FastAPI, deps: ServiceDeps, limiters: Limiters, space_map: SpaceMap) -> None:
    def number() -> int | None:
        try:
            return _number(deps.serving(None))
        except BadQuery:
            return None  # no generation answers now

    watch, answers = ChangeWatcher(number), CoalescedAnswers()

    @app.get("/v1/live", include_in_schema=False)
    async def live(
        request: Request,
        since: int | None = None,
        wait_ms: Annotated[int, Query(ge=0, le=MAX_WAIT_MS)] = 0,
    ) -> Response:
        """Writes after the number `since` (without it the newest few), and counters.

        Waits up to wait_ms for a write.
        """
        if wait_ms and since is not None and since == number():
            async with limiters.polling.slot():
                await until_disconnect(request, watch.changed(since, timeout_s=wait_ms / 1000))
        serving = deps.serving(None)
        key = (serving.generation, since, _number(serving))
        body = await answers.get(key, lambda: _arrived(deps, space_map, serving, since))
        headers = {"cache-control": "no-store"}
        return Response(body, media_type="application/json", headers=headers)


async def _arrived(
    deps: ServiceDeps, space_map: SpaceMap, serving: Serving, since: int | None
) -> bytes:
    store, number = serving.store, _number(serving)
    arrived = [] if serving.recent_writes is None else serving.recent_writes.since(since)[:SHOWN]
    ids = [write.id for write in arrived]
    if since is None and len(ids) < SHOWN:  # a node that has just started
        ids = _filled(ids, (await space_map.now()).rows)

    def made() -> bytes:
        rows = list(rows_of(store, ids).values()) if ids else []
        rows.sort(key=lambda row: ids.index(row.id))
        payloads = _payloads(deps, [row.id for row in rows])
        places = space_map.place(row.vectors[FUSED] for row in rows)
        records = [_record(row, payloads.get(row.id)) for row in rows]
        for record, at in zip(records, places or [], strict=False):
            record["at"] = at
        answer = {"number": number, "records": records, "counters": _counters(deps, serving)}
        return to_json(answer, inf_nan_mode="null")

    return await asyncio.to_thread(made)


def _number(serving: Serving) -> int:
    return 0 if serving.recent_writes is None else serving.recent_writes.number


def _payloads(deps: ServiceDeps, ids: list[str]) -> Mapping[str, Payload]:
    if not deps.payloads.available:  # without searches nothing else notices that Redis is back
        deps.payloads.execute(lambda client: client.ping())
    return deps.payloads.get_many(ids) or {}


def _filled(ids: Sequence[str], sample: Sequence[Row]) -> list[str]:
    """The ids, followed by the newest of the sample, SHOWN in all."""
    newest = sorted(sample, key=lambda row: -row.ts)
    return list(dict.fromkeys([*ids, *(row.id for row in newest)]))[:SHOWN]


def _counters(deps: ServiceDeps, serving: Serving) -> dict[str, Any]:
    recent_writes = serving.recent_writes
    return {
        "records": len(serving.store),
        "per_second": None if recent_writes is None else recent_writes.rate(),
        "freshness_s": None if recent_writes is None else recent_writes.freshness_s(),
        "model": serving.model,
        "generation": serving.generation,
        "not_ready": deps.not_ready(),
        "payloads": deps.payloads.available,
    }


def _record(row: Row, payload: Payload | None) -> dict[str, Any]:
    return {
        "id": row.id,
        "ts": row.ts,
        "meta": dict(row.meta),
        "model": row.model,
        "version": row.version,
        "modalities": sorted(name for name in row.vectors if name != FUSED),
        **payload_fields(payload),
    }


def _add_media(app: FastAPI, deps: ServiceDeps) -> None:
    media_cache = deps.media_cache or MediaCache(deps.payloads)
    hit_details = HitDetails(deps.payloads, media_cache, deps.rebuild)

    async def row_of(id: str) -> Row:
        row = await asyncio.to_thread(deps.store().get, id)  # may call a server
        if row is None:
            raise unknown_record(id)
        return row

    async def media(kind: Kind, id: str, v: int | None) -> Response:
        row = await row_of(id)
        item = await hit_details.media(kind, row)
        if item is None:
            raise BadQuery(
                kind, f"record {id[:256]!r} has none, or it is no longer kept", status=404
            )
        # A URL that contains the record's version always has the same content.
        same = v == row.version
        age = "private, max-age=86400, immutable" if same else "private, no-cache"
        headers = MEDIA_HEADERS | {"cache-control": age}
        return Response(item.data, media_type=item.type, headers=headers)

    # The id is a query parameter: in a path, browsers would resolve `..`.

    @app.get("/v1/thumb", include_in_schema=False)
    async def thumb(id: Id, v: int | None = None) -> Response:
        """A record's picture, small."""
        return await media("thumb", id, v)

    @app.get("/v1/snippet", include_in_schema=False)
    async def snippet(id: Id, v: int | None = None) -> Response:
        """The first seconds of a record's sound."""
        return await media("snippet", id, v)

    @app.get("/v1/shown", include_in_schema=False)
    async def shown_(id: Id) -> dict[str, Any]:
        """Display data of a record, rebuilt from `records` if Redis has lost it."""
        row = await row_of(id)
        return _record(row, await hit_details.payload(row))
