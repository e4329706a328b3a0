"""gzip: compressed answers on request, bodies within the limit after decompression."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator

import httpx
import pytest

from tests.index.conftest import MAX_BODY, Node
from tests.index.service.test_bad_queries import problem

JSON = {"content-type": "application/json"}
PACKED = JSON | {"content-encoding": "gzip"}
QUERY = json.dumps({"id": "r3", "k": 20}).encode()


def test_a_large_answer_is_packed_for_those_who_take_it(http: httpx.Client) -> None:
    def size(encoding: str) -> tuple[str | None, int]:
        headers = {"accept-encoding": encoding}
        with http.stream("POST", "/v1/search", json={"id": "r3", "k": 30}, headers=headers) as got:
            raw = b"".join(got.iter_raw())
        plain = gzip.decompress(raw) if "content-encoding" in got.headers else raw
        assert len(json.loads(plain)["hits"]) == 30
        return got.headers.get("content-encoding"), len(raw)

    packed, plain = size("gzip"), size("identity")
    assert packed[0] == "gzip"
    assert plain[0] is None
    assert packed[1] < plain[1] / 3
    short = http.get("/healthz", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in short.headers


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "identity, gzip"])
def test_a_packed_body_is_unpacked(node: Node, http: httpx.Client, encoding: str) -> None:
    headers = JSON | {"content-encoding": encoding}
    answer = http.post("/v1/search", content=gzip.compress(QUERY), headers=headers)
    assert answer.status_code == 200, answer.text
    assert (
        answer.json()["hits"] == http.post("/v1/search", content=QUERY, headers=JSON).json()["hits"]
    )
    chunks: Iterator[bytes] = iter([bytes([byte]) for byte in gzip.compress(QUERY)])
    assert http.post("/v1/search", content=chunks, headers=headers).status_code == 200


def test_a_packed_upload(node: Node, http: httpx.Client) -> None:
    request = http.build_request("POST", "/v1/search", files={"id": (None, "r3"), "k": (None, "2")})
    headers = {"content-type": request.headers["content-type"], "content-encoding": "gzip"}
    answer = http.post("/v1/search", content=gzip.compress(request.read()), headers=headers)
    assert answer.json()["hits"][0]["id"] == "r3"
    assert len(answer.json()["hits"]) == 2


def test_a_bomb_is_refused_at_the_limit(node: Node, http: httpx.Client) -> None:
    padded = QUERY + b" " * (MAX_BODY - len(QUERY))
    assert http.post("/v1/search", content=gzip.compress(padded), headers=PACKED).status_code == 200
    over = gzip.compress(padded + b" ")
    assert problem(http.post("/v1/search", content=over, headers=PACKED), 413)[0] == "body"
    bomb = gzip.compress(b" " * (60 * 1024 * 1024))
    assert len(bomb) < MAX_BODY
    assert problem(http.post("/v1/search", content=bomb, headers=PACKED), 413)[0] == "body"


@pytest.mark.parametrize(
    "body",
    [
        b"not gzip",
        zlib.compress(QUERY),
        gzip.compress(QUERY, mtime=0)[:-1],
        gzip.compress(QUERY, mtime=0)[:12],
        gzip.compress(QUERY, mtime=0)[:-6] + b"\0" * 6,
        gzip.compress(QUERY, mtime=0) + b"x",
        gzip.compress(QUERY[:5], mtime=0) + gzip.compress(QUERY[5:], mtime=0),
        b"",
    ],
)
def test_a_broken_stream_is_refused(http: httpx.Client, body: bytes) -> None:
    refused, why = problem(http.post("/v1/search", content=body, headers=PACKED), 400)
    assert refused == "body"
    assert "gzip" in why


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd"])
def test_another_encoding_is_refused(http: httpx.Client, encoding: str) -> None:
    headers = JSON | {"content-encoding": encoding}
    answer = http.post("/v1/search", content=QUERY, headers=headers)
    assert problem(answer, 415)[0] == "content-encoding"
    assert answer.headers["accept-encoding"] == "gzip"
