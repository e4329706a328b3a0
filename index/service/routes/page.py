"""The page at `/` and its routes: map, recent writes, thumbnails and snippets.

The page consists of static files in `index/page`; its data comes from `/v1/...`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from ...errors import BadQuery
from ...media_cache import Kind, Media, MediaCache
from ...payloads import Payload
from ...store import FUSED, Row, rows_of
from ..bodies import read_json
from ..dependencies import Limiters, ServiceDeps, Serving
from ..hit_details import HitDetails, Large
from ..polls import ChangeWatcher, CoalescedAnswers, until_disconnect
from ..search import unknown_record
from ..searcher import payload_fields
from ..space_map import SpaceMap
from .files import add_files

MEDIA_HEADERS = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
SMALL: Mapping[Large, Kind] = {"picture": "thumb", "sound": "snippet"}
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
    add_files(app)
    _add_map(app, deps, space_map)
    _add_live(app, deps, limiters, space_map)
    _add_media(app, deps)


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
        "modalities": serving.modalities,
        "max_upload": deps.limits.body_bytes,
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

    def answer(kind: str, item: Media | None, row: Row, v: int | None) -> Response:
        if item is None:
            raise BadQuery(
                kind, f"record {row.id[:256]!r} has none, or it is no longer kept", status=404
            )
        # A URL that contains the record's version always has the same content.
        same = v == row.version
        age = "private, max-age=86400, immutable" if same else "private, no-cache"
        headers = MEDIA_HEADERS | {"cache-control": age}
        return Response(item.data, media_type=item.type, headers=headers)

    async def large(what: Large, id: str, v: int | None) -> Response:
        """Large, which is not kept here, because one record at a time is looked at; else small."""
        row = await row_of(id)
        item = None
        if deps.enlarge is not None:
            item = await deps.enlarge(what, row.id, row.partition, row.version)
        if item is not None or what not in SMALL:
            return answer(what, item, row, v)
        return answer(what, await hit_details.media(SMALL[what], row), row, None)

    # The id is a query parameter: in a path, browsers would resolve `..`.

    @app.get("/v1/thumb", include_in_schema=False)
    async def thumb(id: Id, v: int | None = None) -> Response:
        """A record's picture, small."""
        row = await row_of(id)
        return answer("thumb", await hit_details.media("thumb", row), row, v)

    @app.get("/v1/picture", include_in_schema=False)
    async def picture(id: Id, v: int | None = None) -> Response:
        """A record's picture, large; its thumbnail if its message is gone."""
        return await large("picture", id, v)

    @app.get("/v1/sound", include_in_schema=False)
    async def sound(id: Id, v: int | None = None) -> Response:
        """A record's sound, up to a bound; the snippet if its message is gone."""
        return await large("sound", id, v)

    @app.get("/v1/text", include_in_schema=False)
    async def text(id: Id, v: int | None = None) -> Response:
        """A record's whole text, as plain text."""
        return await large("text", id, v)

    @app.get("/v1/snippet", include_in_schema=False)
    async def snippet(id: Id, v: int | None = None) -> Response:
        """The first seconds of a record's sound."""
        row = await row_of(id)
        return answer("snippet", await hit_details.media("snippet", row), row, v)

    @app.get("/v1/shown", include_in_schema=False)
    async def shown_(id: Id) -> dict[str, Any]:
        """Display data of a record, rebuilt from `records` if Redis has lost it.

        `unread` says why its text, links and labels cannot be read now; null: they are whole, or
        gone.
        """
        row = await row_of(id)
        payload, unread = None, None
        try:
            payload = await hit_details.payload(row)
        except BadQuery as error:
            unread = f"{error.field}: {error.reason}"
        predictions = {} if payload is None else dict(payload.predictions)
        own = {"partition": row.partition, "predictions": predictions, "unread": unread}
        return _record(row, payload) | own
