"""`POST /v1/search` and `POST /v1/search/batch`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request

from .answers import BatchAnswer, SearchAnswer
from .bodies import read_batch, read_search
from .deps import Gates, ServiceDeps
from .errors import BadQuery
from .openapi import BATCH_BODY, SEARCH_BODY
from .problems import problem, problems
from .searching import answer


def add_search(app: FastAPI, deps: ServiceDeps, gates: Gates) -> None:
    """Add the two calls to the application."""

    @app.post(
        "/v1/search",
        response_model=SearchAnswer,
        responses=problems(400, 404, 409, 412, 501, 503),
        openapi_extra={"requestBody": SEARCH_BODY},
        tags=["search"],
    )
    async def search(request: Request) -> Any:
        """What is like this?

        Ask with any of text, image and audio (several make one query), or with a record's id, or
        with a vector; as JSON, or as an upload whose parts have the same names.
        """
        body = await read_search(request)
        began = time.perf_counter()
        (found,) = await answer(deps, gates, [body])
        if isinstance(found, BadQuery):
            raise found
        deps.metrics.searched(time.perf_counter() - began, body.label())
        return found

    @app.post(
        "/v1/search/batch",
        response_model=BatchAnswer,
        responses=problems(400, 503),
        openapi_extra={"requestBody": BATCH_BODY},
        tags=["search"],
    )
    async def search_batch(request: Request) -> Any:
        """What is like each of these?

        Each query is checked and answered by itself: a bad one has an error with its status in its
        place. Queries that agree on generation, k, vector and filter are searched at once. All are
        answered when the last has waited for its offsets.
        """
        bodies = await read_batch(request)
        request.state.charge(len(bodies) - 1)  # one was paid for on the way in
        began = time.perf_counter()
        found = await answer(deps, gates, bodies)
        took = time.perf_counter() - began
        deps.metrics.searched(took, "batch")
        return {
            "answers": [
                problem(one.field, one.reason) | {"status": one.status}
                if isinstance(one, BadQuery)
                else one
                for one in found
            ],
            "took_ms": round(took * 1000, 3),
        }
