"""Error responses: every exception as {"error": {"field", "reason"}}, and their OpenAPI."""

from __future__ import annotations

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import BadQuery, Busy, NotServing, StoreError
from ..metrics import ServiceMetrics
from ..responses import ErrorAnswer
from .bodies import refusal
from .limits.body_limit import BodyTooLarge

log = logging.getLogger(__name__)

OBJECT = re.compile(r"<[\w.]+(?: object)? at 0x[0-9a-fA-F]+>")
MOST_FIELD = 200  # characters
MOST_REASON = 500
MEANINGS = {
    400: "the body cannot be read",
    401: "no known API key; only where keys are set",
    403: "sent by a web page of another origin",
    404: "no such record or generation",
    408: "the body came too slowly, or not whole",
    409: "a vector of another space",
    412: "min_offsets were not reached in time; with retry-after",
    413: "the body is larger than the limit",
    415: "a content type or content encoding that is not taken",
    421: "the host header names another host",
    422: "a field breaks a limit",
    429: "too many requests; only where a rate is set; with retry-after",
    500: "the service failed; its log says why",
    501: "this node has no model to embed queries with",
    503: "too many searches, connections or bytes of bodies at once, no generation is open to "
    "search, or the vectors' own server fails; with retry-after",
}


ANY_CALL = (401, 403, 408, 413, 415, 421, 422, 429, 500, 503)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: these statuses and those of every call below `/v1/`."""
    return {
        status: {"model": ErrorAnswer, "description": MEANINGS[status]}
        for status in sorted({*statuses, *ANY_CALL})
    }


def problem(field: str, reason: str) -> dict[str, dict[str, str]]:
    """The body of an error response; long names and values of the query are shortened."""
    return {
        "error": {"field": _printable(field, MOST_FIELD), "reason": _printable(reason, MOST_REASON)}
    }


def add_problems(app: FastAPI, metrics: ServiceMetrics) -> None:
    """Map every exception to an error response, and count it."""

    @app.exception_handler(BadQuery)
    async def bad_query(_: Request, error: BadQuery) -> JSONResponse:
        metrics.refused("busy" if isinstance(error, (Busy, NotServing)) else "query")
        return JSONResponse(problem(error.field, error.reason), error.status, _again(error))

    @app.exception_handler(StoreError)
    async def store_failed(_: Request, error: StoreError) -> JSONResponse:
        log.error("%s", error)  # may name hosts, so it is not in the answer
        reason = "failed: the server that keeps the vectors does not answer as it should"
        return JSONResponse(problem("store", reason), 503, {"retry-after": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await bad_query(request, refusal(error.errors()[0]))

    @app.exception_handler(BodyTooLarge)
    async def too_large(_: Request, error: BodyTooLarge) -> JSONResponse:
        metrics.refused("size")
        return JSONResponse(error.body, status_code=413, headers={"connection": "close"})

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 503:
            metrics.refused("busy")
        where = "body" if error.status_code in (400, 408) else "request"
        return JSONResponse(problem(where, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> JSONResponse:
        """An internal error; uvicorn logs the traceback and closes the connection."""
        answer = JSONResponse(problem("request", f"failed: {type(error).__name__}"), 500)
        answer.headers["connection"] = "close"  # so that clients do not reuse the connection
        return answer


def _again(error: BadQuery) -> dict[str, str]:
    return {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}


def _printable(text: str, most: int) -> str:
    """At most `most` characters, without half a surrogate pair, which cannot be encoded.

    The `repr` of buffers in messages of libraries is replaced.
    """
    text = OBJECT.sub("the data", text[: 4 * most])
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return short.encode("utf-8", "backslashreplace").decode()
