"""`POST /v1/search` as multipart/form-data: the same fields and checks, strictly parsed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from braid.index.service.app import QueryInput
from tests.index.conftest import MAX_BODY, Node
from tests.index.oracle import SPACE, unit
from tests.index.service.test_bad_queries import problem

PNG = b"\x89PNG a \r\n--picture--\r\n\x00\xff"
EDGE = "edge"
HEADERS = {"content-type": f"multipart/form-data; boundary={EDGE}"}
FORM = 'content-disposition: form-data; name="{}"'


def part(name: str, data: bytes | str, *more: str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    head = "\r\n".join([FORM.format(name), *more])
    return f"--{EDGE}\r\n{head}\r\n\r\n".encode() + raw + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{EDGE}--\r\n".encode()


def test_a_picture_a_sound_and_words_are_one_query(node: Node, http: httpx.Client) -> None:
    files = {"image": ("bird.png", PNG, "image/png"), "audio": ("a.ogg", b"OggS", "audio/ogg")}
    fields = {
        "text": "at night ☃",
        "k": "3",
        "vector": "image",
        "filter": json.dumps({"lang": "de"}),
        "min_offsets": json.dumps({"0": 30}),
        "timeout_ms": "100",
        "generation": "g0001",
    }
    answer = http.post("/v1/search", files=files, data=fields)
    assert answer.status_code == 200, answer.text
    assert node.asked == [QueryInput(text="at night ☃", image=PNG, audio=b"OggS")]
    query_D = unit("at night ☃", PNG, b"OggS")
    wanted = node.expected(query_D, k=3, vector="image", filter={"lang": "de"})
    assert [hit["id"] for hit in answer.json()["hits"]] == wanted


def test_an_upload_is_answered_as_the_same_json(node: Node, http: httpx.Client) -> None:
    query = {"values": unit("q").tolist(), "space": SPACE}
    for fields in ({"id": "r3", "k": 4}, {"query": query, "k": 2}, {"text": "true", "k": 1}):
        sent = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
        }
        upload = http.post("/v1/search", files={name: (None, text) for name, text in sent.items()})
        plain = http.post("/v1/search", json=fields)
        assert upload.status_code == plain.status_code == 200
        assert upload.json()["hits"] == plain.json()["hits"]
        assert upload.json()["hits"]


def test_words_may_come_as_a_file_and_parts_may_say_how_they_are_encoded(
    node: Node, http: httpx.Client
) -> None:
    body = form(
        part("text", "ä", "content-type: text/plain; charset=utf-8"),
        part("image", PNG, "Content-Transfer-Encoding: binary"),
    )
    assert http.post("/v1/search", content=body, headers=HEADERS).status_code == 200
    assert node.asked == [QueryInput(text="ä", image=PNG)]


BAD: list[tuple[bytes, int, str, str]] = [
    (form(part("colour", "red")), 422, "colour", "no part of a query"),
    (form(part("text", "a"), part("text", "b")), 422, "text", "given twice"),
    (form(part("image", PNG), part("image", PNG)), 422, "image", "given twice"),
    (form(part("image", b"")), 422, "image", "is empty"),
    (form(part("image", b"GIF")), 422, "image", "does not decode"),
    (form(part("text", b"\xff\xfe")), 400, "text", "not UTF-8"),
    (form(part("text", "")), 422, "text", "at least 1"),
    (form(part("text", "q"), part("k", "ten")), 422, "k", "not JSON"),
    (form(part("text", "q"), part("k", "0")), 422, "k", "greater than or equal to 1"),
    (form(part("text", "q"), part("k", '"3"')), 422, "k", "integer"),
    (form(part("text", "q"), part("filter", "{")), 422, "filter", "not JSON"),
    (form(part("text", "q"), part("filter", "[" * 30_000)), 422, "filter", "the limit is"),
    (form(part("text", "q"), part("vector", "smell")), 422, "vector", "fused"),
    (form(part("id", "nobody")), 404, "id", "nobody"),
    (form(part("id", "r1"), part("image", PNG)), 422, "body", "media and id"),
    (form(part("k", "3")), 422, "body", "none of them"),
    (form(), 422, "body", "none of them"),
    (form(*[part(f"p{n}", "x") for n in range(33)]), 422, "body", "more than 32 parts"),
    (part("text", "q"), 400, "body", "Unexpected end"),
    (part("text", "q") + b"--edge", 400, "body", "Unexpected end"),
    (b"", 400, "body", "Unexpected end"),
    (form(part("", "q")), 422, "", "no part of a query"),
    (part("text", "q", *["x: y"] * 9) + form(), 400, "body", "header count"),
    (b"no form at all", 400, "body", "not multipart"),
    (form(b"--edge\r\n\r\nq\r\n"), 400, "body", "Content-Disposition"),
    (form(b"--edge\r\nno header\r\n\r\nq\r\n"), 400, "body", "not multipart"),
    (
        form(b"--edge\r\ncontent-disposition: form-data\r\n\r\nq\r\n"),
        400,
        "body",
        "Content-Disposition",
    ),
    (
        form(part("text", "cQ==", "content-transfer-encoding: base64")),
        400,
        "text",
        "must not be encoded",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("body", "status", "field", "reason"), BAD)
def test_a_bad_upload_is_refused_with_field_and_reason(
    http: httpx.Client, body: bytes, status: int, field: str, reason: str
) -> None:
    answer = http.post("/v1/search", content=body, headers=HEADERS)
    refused, why = problem(answer, status)
    assert refused == field
    assert reason in why
    assert len(why) < 400


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'x' * 71}"])
def test_an_upload_needs_a_boundary(http: httpx.Client, boundary: str) -> None:
    headers = {"content-type": f"multipart/form-data{boundary}"}
    answer = http.post("/v1/search", content=form(part("text", "q")), headers=headers)
    assert problem(answer, 400)[0] == "content-type"


def test_an_upload_over_the_limit(http: httpx.Client) -> None:
    answer = http.post("/v1/search", files={"image": ("a", PNG + b"x" * MAX_BODY)})
    assert problem(answer, 413)[0] == "body"


def test_other_calls_take_no_upload(http: httpx.Client) -> None:
    files: dict[str, Any] = {"queries": (None, "[]")}
    refused, why = problem(http.post("/v1/search/batch", files=files), 415)
    assert refused == "body"
    assert "application/json" in why
    assert "multipart/form-data" in why
