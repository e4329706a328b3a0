"""The files of the web page, one of them made here, and Swagger UI."""

from __future__ import annotations

import hashlib
import json
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles

from braid.modalities import MODALITIES

from ...errors import BadQuery

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Only our own scripts run, and no other origin is contacted.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # cached, but revalidated each time (304)
}


def add_files(app: FastAPI) -> None:
    """Serve the page's files from the package."""
    bodies = {
        file.name: file.read_bytes()
        for file in resources.files("braid.index").joinpath("page").iterdir()
        if file.is_file()
    }
    bodies["constants.js"] = _constants()
    files: dict[str, tuple[bytes, str, str]] = {}
    for name, body in bodies.items():
        suffix = "." + name.rpartition(".")[2]
        if suffix in TYPES:
            tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            files[name] = (body, TYPES[suffix], tag)

    def answer(request: Request, name: str) -> Response:
        if name not in files:
            raise BadQuery("path", f"the page has no file {name[:80]!r}", status=404)
        body, type_, tag = files[name]
        headers = PAGE_HEADERS | {"etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=type_, headers=headers)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return answer(request, "docs.html")

    # Swagger UI itself: FastAPI's own page would load it from another host.
    app.mount("/docs", StaticFiles(packages=[("fastapi_offline", "static")]))

    @app.get("/page/{name}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        return answer(request, name)


def _constants() -> bytes:
    """The table of modalities as a module of the page."""
    table = {
        name: {"noun": one.noun, "endings": list(one.endings), "shown": one.shown}
        for name, one in MODALITIES.items()
    }
    return f"export const MODALITIES = {json.dumps(table)};\n".encode()
