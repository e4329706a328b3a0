"""Files of queries that a link names by their hash.

A link cannot hold the bytes. They are kept in Redis only when somebody shares a search, within a
budget of their own and for 30 days at most, so that a link may lead to a 404.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, create_model

from braid.modalities import MEDIA, listed

from ...errors import BadQuery
from ...media_cache import MIB, Kind, Media, MediaCache
from ..bodies import read_json
from ..dependencies import ServiceDeps
from ..requests import from_base64

MAX_BYTES = 3 * MIB  # of one; the page makes larger pictures and sounds smaller
KIND: Kind = "query"
# Bytes that anybody may have sent: no browser shows them as a page.
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox",
    "content-disposition": "attachment",
    "cache-control": "private, max-age=86400, immutable",
}

Key = Annotated[str, Query(pattern="^[0-9a-f]{64}$")]


FILES: dict[str, Any] = dict.fromkeys(MEDIA, (str | None, None))
SharedBody: type[BaseModel] = create_model(
    "SharedBody", __config__=ConfigDict(extra="forbid", strict=True), **FILES
)
"""`POST /v1/shared`: files in base64, by modality."""


def add_shared(app: FastAPI, deps: ServiceDeps) -> None:
    """Add the two calls to the application."""
    shared = deps.shared

    @app.post("/v1/shared", include_in_schema=False)
    async def share(request: Request) -> dict[str, str]:
        """Keep a query's files; their keys by modality."""
        body = await read_json(request, SharedBody)
        if shared is None:
            raise BadQuery("path", "this node keeps no shared searches", status=404)
        return await asyncio.to_thread(_keep, shared, body)

    @app.get("/v1/shared", include_in_schema=False)
    async def shared_(key: Key) -> Response:
        """The bytes of a shared file."""
        media = None if shared is None else await asyncio.to_thread(shared.get, KIND, key)
        if media is None:
            raise BadQuery("key", "is not, or no longer, kept", status=404)
        return Response(media.data, media_type="application/octet-stream", headers=HEADERS)


def _keep(shared: MediaCache, body: BaseModel) -> dict[str, str]:
    """Store the files; their keys by modality. Raises BadQuery."""
    files = {name: _bytes(name, encoded) for name, encoded in body if encoded is not None}
    if not files:
        raise BadQuery("body", f"must hold {listed(MEDIA, 'or')}")
    keys = {name: sha256(data).hexdigest() for name, data in files.items()}
    shared.put_many(
        {(KIND, keys[name]): Media(data=data, type=f"{name}/query") for name, data in files.items()}
    )
    if not all(shared.has(KIND, key) for key in keys.values()):  # stored, and not evicted at once
        reason = "cannot be kept: Redis does not answer, or its budget is too small"
        raise BadQuery("body", reason, status=503)
    return keys


def _bytes(name: str, encoded: str) -> bytes:
    data = from_base64(name, encoded)
    if not 0 < len(data) <= MAX_BYTES:
        raise BadQuery(name, f"has {len(data)} bytes, 1 to {MAX_BYTES} can be shared")
    return data
