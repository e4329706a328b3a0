"""`POST /v1/search` and `POST /v1/search/batch`."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ...errors import BadQuery
from ...responses import BatchAnswer, SearchAnswer
from ..bodies import read_batch, read_search
from ..dependencies import Limiters, ServiceDeps
from ..limits.auth import cost
from ..openapi import BATCH_BODY, SEARCH_BODY
from ..problems import problem, problems
from ..requests import SearchBody
from ..search import answer
from ..searcher import Searcher
from .response_json import many_answers, one_answer


def add_search(app: FastAPI, deps: ServiceDeps, limiters: Limiters) -> None:
    """Add the two calls to the application."""
    searcher = Searcher(deps)

    @app.post(
        "/v1/search",
        response_model=SearchAnswer,
        responses=problems(400, 404, 409, 412, 501, 503),
        openapi_extra={"requestBody": SEARCH_BODY},
        tags=["search"],
    )
    async def search(request: Request) -> Response:
        """What is like this?

        Ask with any of the version's modalities (several make one query), or with a record's id, or
        with a vector; as JSON, or as an upload whose parts have the same names.
        """
        body = await read_search(request)
        request.state.charge(cost([body.k]) - 1)  # the middleware has charged 1
        began = time.perf_counter()
        outcome = await answer(deps, limiters, [body], searcher.one)
        if isinstance(outcome, BadQuery):
            raise outcome
        deps.metrics.searched(time.perf_counter() - began, body.label())
        return one_answer(outcome, limit=deps.limits.answer_bytes)

    @app.post(
        "/v1/search/batch",
        response_model=BatchAnswer,
        responses=problems(400, 503),
        openapi_extra={"requestBody": BATCH_BODY},
        tags=["search"],
    )
    async def search_batch(request: Request) -> Response:
        """What is like each of these?

        Each query is checked and answered by itself: a bad one has an error with its status in its
        place. Queries that agree on generation, k, vector and filter are searched at once. All are
        answered when the last has waited for its offsets.
        """
        bodies = await read_batch(request)
        ks = [body.k if isinstance(body, SearchBody) else 1 for body in bodies]
        request.state.charge(cost(ks) - 1)
        began = time.perf_counter()
        outcomes = await answer(deps, limiters, bodies, searcher.many)
        took = time.perf_counter() - began
        deps.metrics.searched(took, "batch")
        answers = [
            problem(one.field, one.reason) | {"status": one.status}
            if isinstance(one, BadQuery)
            else one
            for one in outcomes
        ]
        limit = deps.limits.answer_bytes
        return await many_answers(answers, round(took * 1000, 3), limit=limit)
