"""`braid search`: what it waits for, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from braid.index.errors import ServiceError
from braid.stream.cli.main import app


@pytest.fixture
def starting() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a query service, and the headers of its first answers: 503 with them."""
    refusals: list[dict[str, str]] = []
    hit = {
        "id": "pictures/one",
        "score": 0.5,
        "uri": None,
        "text": None,
        "meta": {},
        "model": "m",
        "version": 1,
        "partition": 0,
        "predicted": {"kind": "animals"},
    }
    answer = {
        "hits": [hit],
        "model": "m",
        "space": "s",
        "generation": "g0001",
        "as_of": {},
        "exact": True,
        "payloads": "ok",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            refusal = refusals.pop(0) if refusals else None
            problem = {"error": {"field": "model", "reason": "loading the model m"}}
            body = json.dumps(problem if refusal is not None else {**answer, "took_ms": 1}).encode()
            self.send_response(200 if refusal is None else 503)
            for name, value in (refusal or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", refusals
        server.shutdown()


def test_a_search_waits_for_a_node_that_starts_and_shows_predictions(
    starting: tuple[str, list[dict[str, str]]],
) -> None:
    url, refusals = starting
    words = ["search", "words", "--url", url]
    refusals += [{"retry-after": "0"}] * 5
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.stdout == "0.500  pictures/one  kind: animals\n"
    refusals += [{"retry-after": "60"}] * 2
    with pytest.raises(ServiceError, match="loading the model m"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert len(refusals) == 1, "a minute is too long"
