"""`GET` and `DELETE` of one record: `/v1/records/{id}`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from starlette.convertors import Convertor, register_url_convertor

from ...responses import DeleteAnswer, RecordAnswer
from ...store import VectorStore
from ..dependencies import Limiters, ServiceDeps
from ..problems import problems
from ..requests import MAX_WAIT_MS
from ..search import unknown_record
from ..waiting import OFFSETS, missing, read_offsets, reflected

MinOffsets = Annotated[
    str | None,
    Query(
        max_length=4096,
        pattern=f"^{OFFSETS}$",
        description="partition:offset of `records`, joined by commas: all before these must "
        "be reflected; for a record of one's own, the offset that producing returned plus one",
        examples=["0:42"],
    ),
]
TimeoutMs = Annotated[
    int, Query(ge=0, le=MAX_WAIT_MS, description="how long to wait for min_offsets")
]
Id = Annotated[str, Path(description="a record's id, percent-encoded, dots and slashes too")]


class _Anything(Convertor[str]):
    """An id in a path: slashes as in Starlette's `path`, and line breaks, which `path` refuses."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def add_records(app: FastAPI, deps: ServiceDeps, limiters: Limiters) -> None:
    """Add the two calls to the application."""
    register_url_convertor("anything", _Anything())

    async def wait(store: VectorStore, min_offsets: str | None, timeout_ms: int) -> None:
        offsets = {} if min_offsets is None else read_offsets(min_offsets)
        if missing(store, offsets):
            async with limiters.waiting.slot():
                await reflected(store, offsets, timeout_ms=timeout_ms)

    @app.get(
        "/v1/records/{id:anything}",
        response_model=RecordAnswer,
        responses=problems(404, 412),
        tags=["records"],
    )
    async def get_record(
        id: Id,
        generation: Annotated[
            str | None, Query(max_length=64, description="without it the serving one")
        ] = None,
        min_offsets: MinOffsets = None,
        timeout_ms: TimeoutMs = 2000,
    ) -> Any:
        """One record as the index holds it."""
        serving = deps.serving(generation)
        await wait(serving.store, min_offsets, timeout_ms)
        row = await asyncio.to_thread(serving.store.get, id)  # may call a server
        if row is None:
            raise unknown_record(id)
        payloads = await asyncio.to_thread(deps.payloads.get_many, [id])
        payload = (payloads or {}).get(id)
        return {
            "id": row.id,
            "ts": row.ts,
            "meta": dict(row.meta),
            "model": row.model,
            "version": row.version,
            "partition": row.partition,
            "space": serving.store.space,
            "generation": serving.generation,
            "text": payload.text if payload else None,
            "uri": payload.links if payload else None,
            "vectors": {name: vector_D.tolist() for name, vector_D in row.vectors.items()},
        }

    @app.delete(
        "/v1/records/{id:anything}",
        status_code=202,
        response_model=DeleteAnswer,
        responses=problems(404, 412),
        tags=["records"],
    )
    async def delete_record(
        id: Id, min_offsets: MinOffsets = None, timeout_ms: TimeoutMs = 2000
    ) -> Any:
        """Request a deletion: a null is produced to `records`, and the index applies it later."""
        await wait(deps.store(), min_offsets, timeout_ms)
        if await asyncio.to_thread(deps.store().get, id) is None:
            raise unknown_record(id)
        partition, offset = await deps.delete(id)
        return {"id": id, "partition": partition, "offset": offset}
