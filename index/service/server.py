"""The HTTP server of a node: listens from its start, and answers 503 until the node is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..metrics import ServiceMetrics
from .limits.connections import HEADER_BYTES, ConnectionLimits, protocol
from .limits.hosts import Hosts, TrustedHosts
from .problems import add_problems, problem
from .routes.files import add_files

BACKLOG = 256  # connections that wait in the kernel to be accepted
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
RETRY_AFTER_S = 5


def server_config(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    limits: ConnectionLimits,
    log_level: str = "warning",
) -> uvicorn.Config:
    """The uvicorn configuration of the application.

    `x-forwarded-for` is not trusted: a client could name another address in each request and evade
    the rate limit.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=log_level,
        log_config=None,  # what it logs goes to the root logger
        lifespan="off",
        http=protocol(limits),
        ws="none",
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=4 * limits.connections,  # `limits.connections` refuses before
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )


class NodeServer(uvicorn.Server):
    """Serves `app`, which at first answers 503 with `reason` (`waiting_app`).

    Attributes:
        app: may be replaced while the server runs.
        reason: what the node waits for.
        retry_after_s: after which a call may be answered.
        served: the server's task; its end ends the process.
    """

    served: asyncio.Task[None]

    def __init__(self, *, host: str, port: int, hosts: Hosts, limits: ConnectionLimits) -> None:
        self.reason, self.retry_after_s = "starting", RETRY_AFTER_S
        self.app: ASGIApp = waiting_app(lambda: self.reason, hosts, lambda: self.retry_after_s)
        super().__init__(server_config(_Current(self), host=host, port=port, limits=limits))

    def start(self) -> asyncio.Task[None]:
        """Serve in a task, until `should_exit`."""
        self.served = asyncio.create_task(self.serve(), name="serve")
        return self.served

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn's own handling ends the process before the snapshot."""
        yield


class _Current:
    """The present application of a server."""

    def __init__(self, server: NodeServer) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._server.app(scope, receive, send)


def waiting_app(
    reason: Callable[[], str],
    hosts: Hosts,
    retry_after_s: Callable[[], int] = lambda: RETRY_AFTER_S,
) -> FastAPI:
    """The HTTP application until the node has a model and a broker: the page, and 503 with the
    reason for all calls.

    Args:
        reason: what the node waits for now.
        retry_after_s: after how many seconds a call may be answered.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    metrics = ServiceMetrics()
    app.add_middleware(TrustedHosts, hosts=hosts, refused=metrics.refused)
    add_problems(app, metrics)
    add_files(app)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"ok": False, "reason": reason()}, status_code=503)

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        return JSONResponse({"ready": False, "reason": reason()}, status_code=503)

    @app.api_route("/{path:path}", methods=METHODS)
    async def everything(request: Request) -> JSONResponse:
        return JSONResponse(problem("model", reason()), 503, {"retry-after": str(retry_after_s())})

    return app
