"""The query service: HTTP in front of a vector store.

A request passes, in this order: who asks and how often (`access`), the body's size and encoding
(`body_limit`), its fields (`bodies`), and then its route. Every answer is JSON; whatever is
refused gets {"error": {field, reason}} (`problems`).
"""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from .access import Access, RateLimit
from .body_limit import BodyLimit, Gunzip
from .deps import MIB as MIB
from .deps import Gates, Limits, QueryInput, QueryVectors, ServiceDeps, Serving
from .docs_page import add_docs
from .node_routes import add_node
from .openapi import describe
from .page_routes import add_page
from .problems import add_problems
from .record_routes import add_records
from .search_routes import add_search

__all__ = [
    "Limits",
    "QueryInput",
    "QueryVectors",
    "ServiceDeps",
    "Serving",
    "create_app",
    "server_config",
]

VERSION = "1"  # of the calls, not of braid
GZIP_FROM = 1024  # bytes; a shorter answer would fit one packet anyway
GZIP_LEVEL = 4  # the event loop waits for it


def create_app(deps: ServiceDeps) -> FastAPI:
    """The HTTP application."""
    app = FastAPI(
        title="braid",
        version=VERSION,
        description="One live space of text, pictures and sound.",
        docs_url=None,
        redoc_url=None,
    )
    _add_middleware(app, deps)
    add_problems(app, deps.metrics)
    add_search(app, deps, Gates.of(deps))
    add_records(app, deps)
    add_node(app, deps)
    add_docs(app)
    add_page(app, deps)
    describe(app, keys=deps.keys is not None)
    return app


def server_config(
    app: FastAPI, *, host: str, port: int, log_level: str = "warning"
) -> uvicorn.Config:
    """How uvicorn serves the application.

    A client's word about its address (`x-forwarded-for`) is not taken, or each request could come
    from another one and no rate would ever be reached.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=log_level,
        lifespan="off",
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )


def _add_middleware(app: FastAPI, deps: ServiceDeps) -> None:
    """What is added last meets a request first."""
    limits, refused = deps.limits, deps.metrics.refused
    rate = None
    if limits.rate_per_s is not None:
        rate = RateLimit(limits.rate_per_s, limits.burst)
    app.add_middleware(Gunzip, limit=limits.body_bytes)
    app.add_middleware(BodyLimit, limit=limits.body_bytes, refused=refused)
    app.add_middleware(GZipMiddleware, minimum_size=GZIP_FROM, compresslevel=GZIP_LEVEL)
    app.add_middleware(Access, keys=deps.keys, rate=rate, refused=refused)
