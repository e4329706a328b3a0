"""Each bad query gets a 4xx with the invalid field and the reason."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from braid.index.client import Client
from braid.index.errors import BadQuery
from tests.index.conftest import IDS, MAX_BODY, Node
from tests.index.oracle import DIM, SPACE, delete, unit

GOOD = unit("q").tolist()
RAW = {"values": GOOD, "space": SPACE}


def without(position: int, value: object) -> dict[str, Any]:
    return {"query": {"values": [*GOOD[:position], value, *GOOD[position + 1 :]], "space": SPACE}}


BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"text": "q", "k": 0}, 422, "k", "greater than or equal to 1"),
    ({"text": "q", "k": -1}, 422, "k", "greater than or equal to 1"),
    ({"text": "q", "k": 1_000_000}, 422, "k", "less than or equal to 1000"),
    ({"text": "q", "k": "10"}, 422, "k", "integer"),
    ({"text": "q", "k": 10.0}, 422, "k", "integer"),
    ({"text": "q", "k": True}, 422, "k", "integer"),
    ({"text": "q", "k": None}, 422, "k", "integer"),
    ({"text": "q", "filter": {"lang": {"like": "d"}}}, 422, "filter.lang.like", "unknown operator"),
    ({"text": "q", "filter": {}}, 422, "filter", "non-empty"),
    ({"text": "q", "filter": ["lang"]}, 422, "filter", "dictionary"),
    ({"query": {"values": GOOD[1:], "space": SPACE}}, 422, "query.values", f"has {DIM - 1}"),
    ({"query": {"values": [*GOOD, 0.5], "space": SPACE}}, 422, "query.values", f"has {DIM + 1}"),
    ({"query": {"values": [0.0] * DIM, "space": SPACE}}, 422, "query.values", "all 0"),
    ({"query": {"values": [], "space": SPACE}}, 422, "query.values", "at least 1"),
    ({"query": {"values": GOOD}}, 422, "query.space", "required"),
    ({"query": {"values": GOOD, "space": "s-other"}}, 409, "space", "s-test"),
    (without(2, "0.5"), 422, "query.values.2", "number"),
    (without(2, None), 422, "query.values.2", "number"),
    (without(2, True), 422, "query.values.2", "number"),
    (without(2, 10**400), 422, "query.values", ""),
    ({"query": {**RAW, "dtype": "f2"}}, 422, "query.dtype", "not permitted"),
    ({}, 422, "body", "none of them"),
    ({"k": 3}, 422, "body", "none of them"),
    ({"text": "q", "id": "r1"}, 422, "body", "media and id"),
    ({"text": "q", "query": RAW}, 422, "body", "media and query"),
    ({"id": "r1", "query": RAW}, 422, "body", "id and query"),
    ({"text": ""}, 422, "text", "at least 1"),
    ({"text": 7}, 422, "text", "string"),
    ({"text": "\ud800"}, 422, "text", "string"),
    ({"text": "q", "colour": "red"}, 422, "colour", "not permitted"),
    ({"text": "q", "\ud800": 1}, 422, "body", "unicode"),
    ({"text": "q", "filter": {"\ud800": {"like": 1}}}, 422, "filter.\\ud800.like", "operator"),
    ({"text": "q", "vector": "smell"}, 422, "vector", "fused"),
    ({"image": "not base64!"}, 422, "image", "base64"),
    ({"image": "iVBO!Rw0K"}, 422, "image", "base64"),
    ({"image": "ü"}, 422, "image", "base64"),
    ({"audio": "abc"}, 422, "audio", "base64"),
    ({"image": ""}, 422, "image", "empty"),
    ({"image": base64.b64encode(b"broken").decode()}, 422, "image", "does not decode"),
    ({"id": "nobody"}, 404, "id", "nobody"),
    ({"id": "\ud800"}, 422, "id", "string"),
    ({"id": "r1", "vector": "audio"}, 422, "vector", "has fused, image, text"),
    ({"text": "q", "min_offsets": {"0": 31}, "timeout_ms": 30}, 412, "min_offsets", "is at 30"),
    ({"text": "q", "min_offsets": {"9": 1}, "timeout_ms": 0}, 412, "min_offsets", "partition 9"),
    ({"text": "q", "min_offsets": {"zero": 1}}, 422, "min_offsets", "zero"),
    ({"text": "q", "min_offsets": {"-1": 1}}, 422, "min_offsets", "-1"),
    ({"text": "q", "min_offsets": {"9" * 5000: 1}}, 422, "min_offsets", "999"),
    ({"text": "q", "min_offsets": {"0": -1}}, 422, "min_offsets", "-1"),
    ({"text": "q", "min_offsets": {"0": "1"}}, 422, "min_offsets.0", "integer"),
    ({"text": "q", "timeout_ms": 30_001}, 422, "timeout_ms", "30000"),
    ({"text": "q", "k": 0, "min_offsets": {"0": 99}, "timeout_ms": 9000}, 422, "k", "greater"),
    (
        {"query": {"values": [1.0], "space": SPACE}, "min_offsets": {"0": 99}, "timeout_ms": 9000},
        422,
        "query.values",
        "has 1",
    ),
]


def problem(answer: httpx.Response, status: int) -> tuple[str, str]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"field", "reason"}
    return body["error"]["field"], body["error"]["reason"]


@pytest.mark.parametrize(("body", "status", "field", "reason"), BAD)
def test_a_bad_query_is_refused_with_field_and_reason(
    node: Node, http: httpx.Client, body: dict[str, Any], status: int, field: str, reason: str
) -> None:
    answer = http.post(
        "/v1/search", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    refused, why = problem(answer, status)
    assert refused.startswith(field) if "values" in field else refused == field
    assert reason in why
    assert len(why) < 400
    assert http.post("/v1/search", json={"id": "r1", "k": 1}).json()["hits"][0]["id"] == "r1"


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "field"),
    [
        (b"", JSON, 422, "body"),
        (b"", {}, 422, "body"),
        (b"null", JSON, 422, "body"),
        (b"[]", JSON, 422, "body"),
        (b'"text"', JSON, 422, "body"),
        (b"not json", JSON, 400, "body"),
        (b'{"text": "q"', JSON, 400, "body"),
        (b'{"text": "q"} {}', JSON, 400, "body"),
        (b'{"text": "\xff\xfe"}', JSON, 400, "body"),
        (b"[" * 60_000, JSON, 422, "body"),
        (b"[" * 60, JSON, 400, "body"),
        (b'{"text": "q", "k": ' + b"9" * 5000 + b"}", JSON, 400, "body"),
        (b'{"text": "q"}', {"content-type": "text/plain"}, 415, "body"),
        (b'{"text": "q"}', {"content-type": "application/x-www-form-urlencoded"}, 415, "body"),
        (b'{"text": "q", "k": NaN}', JSON, 422, "k"),
        (b'{"text": "q", "filter": {"a": NaN}}', JSON, 422, "filter.a"),
        (b'{"text": "q", "filter": {"a": {"gte": -Infinity}}}', JSON, 422, "filter.a.gte"),
    ],
)
def test_a_body_that_is_no_query(
    http: httpx.Client, content: bytes, headers: dict[str, str], status: int, field: str
) -> None:
    refused, why = problem(http.post("/v1/search", content=content, headers=headers), status)
    assert refused == field
    assert why


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_raw_vector_that_is_not_finite(http: httpx.Client, value: bytes) -> None:
    values = b"[" + b", ".join([value, *[b"0.5"] * (DIM - 1)]) + b"]"
    body = b'{"query": {"space": "s-test", "values": ' + values + b"}}"
    refused, why = problem(http.post("/v1/search", content=body, headers=JSON), 422)
    assert refused == "query.values[0]"
    assert "finite" in why


def test_a_model_of_another_space_is_never_asked_of_this_index(
    node: Node, http: httpx.Client
) -> None:
    node.space = "s-other"
    refused, why = problem(http.post("/v1/search", json={"text": "q"}), 409)
    assert refused == "space"
    assert "s-other" in why
    assert SPACE in why


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1024):
        yield b" " * 1024


def test_a_body_over_the_limit_announced_and_chunked(http: httpx.Client) -> None:
    for content in (b" " * (MAX_BODY + 1), chunks(MAX_BODY + 1024), chunks(40 * MAX_BODY)):
        answer = http.post("/v1/search", content=content, headers=JSON)
        refused, why = problem(answer, 413)
        assert refused == "body"
        assert str(MAX_BODY) in why
    announced = http.post("/v1/search", content=b" " * (MAX_BODY + 1), headers=JSON)
    assert str(MAX_BODY + 1) in problem(announced, 413)[1]  # known before it came
    body = json.dumps({"id": "r1"}).encode()
    padded = body + b" " * (MAX_BODY - len(body))
    assert http.post("/v1/search", content=padded, headers=JSON).status_code == 200
    assert http.post("/v1/search", content=iter([body]), headers=JSON).status_code == 200


def test_an_unknown_record_cannot_be_got_or_deleted(node: Node, http: httpx.Client) -> None:
    node.store.apply([delete(IDS[0], 1000)], positions={}, progress={})
    for id_ in ("nobody", IDS[0], "", "%ED%A0%80", "%00"):
        for method in ("GET", "DELETE"):
            assert problem(http.request(method, f"/v1/records/{id_}"), 404)
    assert node.deleted == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/search", 405), ("PUT", "/v1/records/a", 405)],
)
def test_paths_that_are_not_there(http: httpx.Client, method: str, path: str, status: int) -> None:
    assert problem(http.request(method, path), status)[0] == "request"


def test_the_client_tells_a_bad_query_from_a_service_that_fails(client: Client) -> None:
    with pytest.raises(BadQuery) as refused:
        client.search(text="q", k=0)
    assert (refused.value.field, refused.value.status) == ("k", 422)
    with pytest.raises(BadQuery) as refused:
        client.get("nobody")
    assert refused.value.status == 404
    with pytest.raises(BadQuery) as refused:
        client.search(values=GOOD, space="s-other")
    assert refused.value.status == 409
    with pytest.raises(BadQuery, match="not yet at 99") as refused:
        client.search(text="q", min_offsets={0: 99}, timeout_ms=10)
    assert refused.value.status == 412
