"""Routes for status, generations, dead letters, health, readiness and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ...errors import BadQuery, UnknownGeneration
from ...responses import (
    DeadLettersAnswer,
    GenerationsAnswer,
    HealthAnswer,
    ReadyAnswer,
    StatusAnswer,
)
from ...store import is_exact
from ..dependencies import ServiceDeps, Serving
from ..problems import problems

METRICS = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def add_node(app: FastAPI, deps: ServiceDeps) -> None:
    """Add the calls to the application."""

    @app.get("/v1/status", response_model=StatusAnswer, responses=problems(), tags=["node"])
    async def status() -> Any:
        """Rows, offsets, model and space."""
        serving = deps.serving(None)
        store = serving.store
        return {
            "generation": serving.generation,
            "modalities": serving.modalities,
            "positions": {str(n): next_ for n, next_ in sorted(store.positions.items())},
            "progress": {str(n): next_ for n, next_ in sorted(store.progress.items())},
            "payloads": deps.payloads.available,
            "ready": deps.not_ready() is None,
            **await asyncio.to_thread(store.stats),  # may call a server
            **deps.status(),
        }

    @app.get(
        "/v1/generations", response_model=GenerationsAnswer, responses=problems(), tags=["node"]
    )
    async def generations() -> Any:
        """Which generations can be searched, and which one is without being named."""
        serving, opened = _generations(deps)
        return {
            "serving": serving,
            "generations": [
                await asyncio.to_thread(_generation, opened[name]) for name in sorted(opened)
            ],
        }

    @app.get(
        "/v1/dead-letters", response_model=DeadLettersAnswer, responses=problems(404), tags=["node"]
    )
    async def dead_letters() -> Any:
        """The records of the last hour that could not be processed, by step and kind of error."""
        if deps.dead_letters is None:
            raise BadQuery("path", "this node does not count dead letters", status=404)
        return await deps.dead_letters()

    @app.get(
        "/healthz",
        response_model=HealthAnswer,
        response_model_exclude_none=True,
        responses={503: {"model": HealthAnswer, "description": "it waits for one of them"}},
        tags=["node"],
    )
    async def healthz() -> Any:
        """The node has started: it has a model and has reached the broker."""
        return {"ok": True}

    @app.get(
        "/readyz",
        response_model=ReadyAnswer,
        response_model_exclude_none=True,
        responses={503: {"model": ReadyAnswer, "description": "the node is not ready yet"}},
        tags=["node"],
    )
    async def readyz() -> Any:
        """The node has caught up and is ready."""
        reason = deps.not_ready()
        if reason is not None:
            return JSONResponse({"ready": False, "reason": reason}, status_code=503)
        return {"ready": True}

    @app.get("/metrics", response_class=PlainTextResponse, responses=METRICS, tags=["node"])  # type: ignore[arg-type]
    async def prometheus() -> Response:
        """Prometheus text."""
        _, opened = _generations(deps)
        stats = {name: await asyncio.to_thread(one.store.stats) for name, one in opened.items()}
        serving, still = _generations(deps)  # without generations that were dropped meanwhile
        for name in still.keys() & stats.keys():
            metrics = deps.metrics.of(name)
            metrics.rows(stats[name]["records"], stats[name].get("segments", ()))
            metrics.serving(name == serving)
        text = await asyncio.to_thread(generate_latest, deps.metrics.registry)
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)


def _generations(deps: ServiceDeps) -> tuple[str, dict[str, Serving]]:
    """The serving generation's name, and all generations that can be searched, by name."""
    serving = deps.serving(None)
    opened = {serving.generation: serving}
    for name in deps.generations() if deps.generations is not None else ():
        try:
            opened.setdefault(name, deps.serving(name))
        except UnknownGeneration:
            continue  # dropped just now
    return serving.generation, opened


def _generation(serving: Serving) -> dict[str, Any]:
    store = serving.store
    return {
        "name": serving.generation,
        "space": store.space,
        "dim": store.dim,
        "records": len(store),
        "model": serving.model,
        "exact": is_exact(store),
    }
