"""The application of a node without a model: health, and 503 for all other calls."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ..metrics import ServiceMetrics
from .limits.hosts import Hosts, TrustedHosts
from .problems import problem

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
RETRY_AFTER_S = 5


def waiting_app(reason: str, hosts: Hosts) -> FastAPI:
    """The HTTP application until there is a model: `/healthz` is 200, other calls are 503."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHosts, hosts=hosts, refused=ServiceMetrics().refused)

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        return JSONResponse({"ready": False, "reason": reason}, status_code=503)

    @app.api_route("/{path:path}", methods=METHODS)
    async def everything(request: Request) -> JSONResponse:
        return JSONResponse(problem("model", reason), 503, {"retry-after": str(RETRY_AFTER_S)})

    return app
