"""The FastAPI application of the query service.

A request passes these checks, in order: connection limits (`connections`), the host header
(`hosts`), API key and rate (`auth`), size, time and encoding of the body (`body_limit`), its fields
(`bodies`), and then its route. Every answer is JSON; a refusal is {"error": {field, reason}}
(`problems`).
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from .dependencies import Limiters, Limits, QueryInput, QueryVectors, ServiceDeps, Serving
from .limits.auth import Access, RateLimit
from .limits.body_budget import BodyBudget
from .limits.body_limit import BodyLimit, Gunzip
from .limits.connections import ConnectionLimitMiddleware
from .limits.hosts import TrustedHosts
from .openapi import describe
from .problems import add_problems
from .routes.embeddings import add_embeddings
from .routes.node import add_node
from .routes.page import add_page
from .routes.records import add_records
from .routes.search import add_search
from .routes.shared import add_shared

__all__ = [
    "Limits",
    "QueryInput",
    "QueryVectors",
    "ServiceDeps",
    "Serving",
    "create_app",
]

VERSION = "1"  # of the API, not of braid
GZIP_FROM = 1024  # bytes; a shorter answer fits in one packet
GZIP_LEVEL = 4
GZIP_APART = 16 * 1024  # bytes from which a thread compresses the answer, not the event loop


def create_app(deps: ServiceDeps) -> FastAPI:
    """The HTTP application."""
    app = FastAPI(
        title="braid",
        version=VERSION,
        description="One live space of text, pictures and sound.",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # names of generated clients' calls
    )
    _add_middleware(app, deps)
    add_problems(app, deps.metrics)
    limiters = Limiters.of(deps)
    add_search(app, deps, limiters)
    add_embeddings(app, deps, limiters)
    add_records(app, deps, limiters)
    add_node(app, deps)
    add_page(app, deps, limiters)
    add_shared(app, deps)
    describe(app, keys=deps.keys is not None)
    return app


def _add_middleware(app: FastAPI, deps: ServiceDeps) -> None:
    """Add the middleware; the last one added is the first that a request passes."""
    limits, refused = deps.limits, deps.metrics.refused
    rate = None
    if limits.rate_per_s is not None:
        rate = RateLimit(limits.rate_per_s, limits.burst)
    app.add_middleware(Gunzip, budget=BodyBudget(limits.bodies_bytes))
    app.add_middleware(
        BodyLimit,
        limit=limits.body_bytes,
        json_limit=min(limits.json_bytes, limits.body_bytes),
        limits=limits.connection,
        refused=refused,
    )
    app.add_middleware(
        GZipMiddleware,
        minimum_size=GZIP_FROM,
        compresslevel=GZIP_LEVEL,
        thread_minimum_size=GZIP_APART,
    )
    app.add_middleware(Access, keys=deps.keys, rate=rate, refused=refused)
    app.add_middleware(TrustedHosts, hosts=deps.hosts, refused=refused)
    app.add_middleware(ConnectionLimitMiddleware, limits=limits.connection, refused=refused)
