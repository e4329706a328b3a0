"""The blocking and the asyncio client return and raise the same."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import braid.index
from braid.index import calls
from braid.index.client import AsyncClient, Client, Retry
from braid.index.errors import BadQuery, BraidIndexError, ServiceError
from braid.index.responses import DeleteAnswer, SearchAnswer
from braid.index.service.requests import MAX_BATCH, MAX_BATCH_HITS
from tests.index.conftest import IDS, Node
from tests.index.oracle import DIM, SPACE

PNG = b"\x89PNG a picture"

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "words": ("search", (), {"text": "a red bird", "k": 3}),
    "an upload": ("search", (), {"text": "a", "image": PNG, "filter": {"lang": "de"}, "k": 2}),
    "a vector": ("search", (), {"values": [1.0] * DIM, "space": SPACE, "vector": "text"}),
    "offsets": ("search", (), {"id": "r2", "min_offsets": {0: 30}, "generation": "g0001"}),
    "many": ("search_many", ([{"id": "r2"}, {"image": PNG}, {"id": "nobody"}],), {}),
    "a record": ("get", ("r3",), {"generation": "g0001"}),
    "status": ("status", (), {}),
    "generations": ("generations", (), {}),
    "ready": ("ready", (), {}),
}
BAD: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "k": ("search", (), {"text": "q", "k": 0}),
    "nobody": ("get", ("nobody",), {}),
    "NaN": ("search", (), {"values": [float("nan")], "space": SPACE}),
    "NaN in an upload": ("search", (), {"image": PNG, "filter": {"a": float("nan")}}),
    "half a pair": ("search", (), {"text": "\ud800"}),
    "half a pair in an upload": ("search", (), {"text": "\ud800", "image": PNG}),
    "half a pair in an id": ("get", ("\ud800",), {}),
    "no file": ("search", (), {"image": Path("/no/such/file.png")}),
    "no bytes": ("search", (), {"image": "a string"}),
    "no such part": ("search", (), {"colour": "red"}),
}


def plain(result: Any) -> Any:
    """Without what differs from call to call; errors by what they say."""
    if isinstance(result, BraidIndexError):
        return type(result).__name__, str(result), getattr(result, "status", None)
    if isinstance(result, list):
        return [plain(one) for one in result]
    if isinstance(result, BaseModel):
        return type(result), result.model_dump(exclude={"took_ms"})
    return result


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return plain(call())
    except BraidIndexError as error:
        return plain(error)


@pytest.mark.parametrize("what", [*CALLS, *BAD])
def test_both_clients_say_and_raise_the_same(node: Node, what: str) -> None:
    name, given, options = (CALLS | BAD)[what]

    async def ask() -> Any:
        async with AsyncClient(node.url) as client:
            return await getattr(client, name)(*given, **options)

    with Client(node.url) as client:
        output = outcome(lambda: getattr(client, name)(*given, **options))
    assert outcome(lambda: asyncio.run(ask())) == output
    refused = isinstance(output, tuple) and output[0] == "BadQuery"
    assert refused == (what in BAD), output


def test_the_clients_have_the_same_calls() -> None:
    def public(client: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(call).parameters)
            for name, call in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_")
        }

    assert public(Client) == public(AsyncClient)
    assert len(public(Client)) >= 8


def test_deleting_from_both(node: Node) -> None:
    async def delete() -> Any:
        async with AsyncClient(node.url) as client:
            return await client.delete("r2")

    with Client(node.url) as client:
        assert client.delete("r1") == DeleteAnswer(id="r1", partition=1, offset=42)
    assert asyncio.run(delete()) == DeleteAnswer(id="r2", partition=1, offset=43)


def test_many_asynchronous_searches_at_once(node: Node) -> None:
    async def ask() -> list[SearchAnswer]:
        async with AsyncClient(node.url) as client:
            return await asyncio.gather(*[client.search(id=id_, k=1) for id_ in IDS])

    assert [answer.hits[0].id for answer in asyncio.run(ask())] == IDS


def test_nobody_answers() -> None:
    async def ask(call: str) -> Any:
        async with AsyncClient("http://127.0.0.1:1") as client:
            return await getattr(client, call)()

    assert asyncio.run(ask("ready")) is False
    with pytest.raises(ServiceError) as caught:
        asyncio.run(ask("status"))
    assert caught.value.status == 0
    with pytest.raises(ServiceError, match="no address"):
        AsyncClient("http://host:port")


def test_more_queries_than_a_batch_holds(node: Node) -> None:
    assert (calls.MAX_BATCH, calls.MAX_BATCH_HITS) == (MAX_BATCH, MAX_BATCH_HITS)
    ids = [IDS[number % len(IDS)] for number in range(2 * MAX_BATCH + 3)]
    with Client(node.url) as client:
        answers = client.search_many([{"id": id_, "k": 1} for id_ in ids])
        assert client.search_many([]) == []
    assert [one.hits[0].id for one in answers if isinstance(one, SearchAnswer)] == ids


def test_the_errors_of_a_batch_stand_in_their_places(node: Node) -> None:
    with Client(node.url) as client:
        answers = client.search_many([{"id": "r1"}, {"id": "nobody"}, {"text": "q", "k": 0}])
    assert isinstance(answers[0], SearchAnswer)
    for error, field, status in ((answers[1], "id", 404), (answers[2], "k", 422)):
        assert isinstance(error, BadQuery)
        assert (error.field, error.status) == (field, status)


def test_large_bodies_are_packed_on_request(node: Node) -> None:
    text = "a red bird " * 500
    packed = calls.search({"text": text}, pack=True)
    assert packed.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(packed.content or b"")) == {"text": text}
    assert "content-encoding" not in calls.search({"text": "a"}, pack=True).headers
    assert "content-encoding" not in calls.search({"text": text}, pack=False).headers
    with Client(node.url, gzip=True) as client:
        assert client.search(text=text).hits
        assert client.search_many([{"text": text}] * 3)
    assert {query.text for query in node.asked} == {text}


def test_how_long_to_wait() -> None:
    assert calls.wait_s(503, "2", tried=1) == 2.0
    assert [calls.wait_s(429, None, tried=tried) for tried in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert calls.wait_s(503, "Wed, 21 Oct 2015 07:28:00 GMT", tried=1) == 0.25
    for status in (200, 404, 412, 422, 500, 501):
        assert calls.wait_s(status, "1", tried=1) is None


@pytest.mark.parametrize(
    ("status", "content"),
    [(200, b""), (200, b"<html>"), (502, b"bad gateway"), (404, b"[]x"), (500, b"\xff")],
)
def test_another_service_behind_the_address(status: int, content: bytes) -> None:
    with pytest.raises(ServiceError, match="without JSON") as caught:
        calls.read(calls.STATUS, status, content)
    assert caught.value.status == status
    with pytest.raises(ServiceError, match="None: None"):
        calls.read(calls.STATUS, 500, b'{"error": "flat"}')


def test_the_package_exports_them_lazily() -> None:
    assert braid.index.Client is Client
    assert braid.index.AsyncClient is AsyncClient
    assert braid.index.Retry is Retry
    assert {"Client", "AsyncClient", "BadQuery"} <= set(dir(braid.index))
    with pytest.raises(AttributeError, match="attribute Clint"):
        _ = braid.index.Clint  # type: ignore[attr-defined]


def test_what_json_cannot_hold_is_not_even_sent() -> None:
    image = b"\x89PNG"
    for wrong in ({"text": "q", "filter": {"a": float("nan")}}, {"values": [float("inf")]}):
        with pytest.raises(BadQuery, match="cannot be sent"):
            calls.search(wrong, pack=False)  # type: ignore[arg-type]
        with pytest.raises(BadQuery, match="cannot be sent"):
            calls.search({"image": image, **wrong}, pack=False)  # type: ignore[typeddict-item]
        with pytest.raises(BadQuery, match="cannot be sent"):
            calls.search_batch([wrong], pack=False)  # type: ignore[list-item]
