"""Display data from Redis; its absence is reported without a long wait."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgpack
import pytest
import redis

from braid.index.client import Client
from braid.index.payloads import KEY, RETRY_S, Payload, Payloads
from tests.index.conftest import Node
from tests.services import Valkey


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


BIRD = Payload(
    text="a red bird",
    uri={"image": "https://example.org/bird.png"},
    labels={"category": "animals", "tags": ["red", "bird"]},
    predictions={"category": {"prob": 0.5, "by": {"text": {"label": "animals", "prob": 0.5}}}},
    predicted={"category": "animals"},
)


def test_without_an_address_there_are_none() -> None:
    payloads = Payloads(None)
    assert payloads.get_many(["a"]) is None
    assert not payloads.put_many({"a": BIRD})
    assert not payloads.drop_many(["a"])
    assert not payloads.available


def test_after_a_failure_redis_is_left_alone_for_a_while() -> None:
    clock, calls = Clock(), 0

    def refused(client: redis.Redis) -> object:
        nonlocal calls
        calls += 1
        raise redis.ConnectionError

    payloads = Payloads("redis://127.0.0.1:1/0", clock=clock)
    assert payloads.available
    assert payloads.execute(refused) is None
    assert not payloads.available
    clock.now += RETRY_S - 0.01
    assert payloads.execute(refused) is None
    assert calls == 1
    clock.now += 0.02
    assert payloads.execute(refused) is None
    assert calls == 2
    clock.now += RETRY_S + 0.01
    assert payloads.execute(lambda client: "here") == "here"
    assert payloads.available


def test_only_one_call_tries_whether_redis_is_back() -> None:
    clock = Clock()
    payloads = Payloads("redis://127.0.0.1:1/0", clock=clock)
    assert payloads.get_many(["a"]) is None
    clock.now += RETRY_S + 1
    asked, answer = threading.Event(), threading.Event()

    def slow(client: redis.Redis) -> object:
        asked.set()
        assert answer.wait(10)
        return []

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(payloads.execute, slow)
        assert asked.wait(10)
        # `slow` would wait for `answer` here too.
        assert payloads.execute(slow) is None
        answer.set()
        assert first.result() == []
    assert payloads.available


@pytest.mark.redis
def test_payloads_are_kept_found_and_dropped(valkey: str) -> None:
    payloads = Payloads(valkey)
    plain = Payload()
    assert payloads.put_many({"a": BIRD, "ü/☃": plain})
    assert payloads.get_many(["ü/☃", "nobody", "a"]) == {"a": BIRD, "ü/☃": plain}
    assert payloads.drop_many(["a", "nobody"])
    assert payloads.get_many(["a"]) == {}
    assert payloads.put_many({})
    assert payloads.get_many([]) == {}
    assert payloads.drop_many([])
    assert payloads.available


@pytest.mark.redis
def test_half_a_surrogate_pair_is_no_reason_to_leave_redis_alone(valkey: str) -> None:
    payloads = Payloads(valkey)
    assert not payloads.put_many({"\ud800": BIRD})
    assert not payloads.put_many({"a": Payload(text="\ud800")})
    assert payloads.get_many(["\ud800"]) is None
    assert payloads.available
    assert payloads.put_many({"a": BIRD})


@pytest.mark.redis
@pytest.mark.parametrize(
    "value",
    [
        b"\xc1",
        b"text",
        b"",
        msgpack.packb(3),
        msgpack.packb({"text": "no uri"}),
        msgpack.packb({"text": 7, "uri": {}}),
        msgpack.packb({"text": "x", "uri": None}),
        msgpack.packb({"text": "x", "uri": {"image": 1}}),
        msgpack.packb({"text": "x", "uri": {}, "labels": 3}),
        msgpack.packb({"text": "x", "uri": {}, "predicted": {1: "x"}}),
        msgpack.packb({"text": "x", "uri": {}, "predictions": {"task": 1}}),
        msgpack.packb({"text": "x", "uri": {}, "predictions": {2: {}}}),
        msgpack.packb({"text": "x", "uri": {}})[:-1],
    ],
)
def test_what_something_else_wrote_is_not_shown(
    valkey: str, node: Node, client: Client, value: bytes
) -> None:
    node.payloads = Payloads(valkey)
    node.payloads.put_many({"r1": BIRD})
    with redis.Redis.from_url(valkey) as server:
        server.set(KEY + "r0", value)
    answer = client.search(text="q", k=1000)
    shown = {hit.id: (hit.text, hit.uri) for hit in answer.hits}
    assert answer.payloads == "ok"
    assert shown["r0"] == (None, None)
    assert shown["r1"] == (BIRD.text, BIRD.uri)
    assert client.get("r0").text is None


@pytest.mark.redis
def test_a_key_of_another_type_is_nobody(valkey: str, node: Node, client: Client) -> None:
    node.payloads = Payloads(valkey)
    with redis.Redis.from_url(valkey) as server:
        server.lpush(KEY + "r0", b"a list")
    assert client.search(id="r0", k=1).hits[0].text is None


@pytest.mark.redis
def test_hits_show_text_and_links(valkey: str, node: Node, client: Client) -> None:
    node.payloads = Payloads(valkey)
    node.payloads.put_many({"r1": BIRD})
    hit = client.search(id="r1", k=1).hits[0]
    assert (hit.id, hit.text, hit.uri) == ("r1", BIRD.text, BIRD.uri)
    record = client.get("r1")
    assert (record.text, record.uri) == (BIRD.text, BIRD.uri)
    assert client.status().payloads is True


@pytest.mark.redis
def test_redis_stopped_and_back_again(own_valkey: Valkey, node: Node, client: Client) -> None:
    clock = Clock()
    node.payloads = Payloads(own_valkey.address, clock=clock)
    node.payloads.put_many({"r1": BIRD})

    def shown() -> tuple[str, str | None]:
        answer = client.search(id="r1", k=1)
        assert [hit.id for hit in answer.hits] == ["r1"]
        return answer.payloads, answer.hits[0].text

    assert shown() == ("ok", BIRD.text)
    own_valkey.stop()
    assert shown() == ("unavailable", None)
    assert shown() == ("unavailable", None)
    assert client.get("r1").text is None
    assert client.status().payloads is False
    own_valkey.start()
    clock.now += RETRY_S + 0.1
    assert shown() == ("ok", None)  # it came back empty
    node.payloads.put_many({"r1": BIRD})
    assert shown() == ("ok", BIRD.text)
    assert client.status().payloads is True


@pytest.mark.redis
def test_redis_paused_and_back_again(own_valkey: Valkey, node: Node) -> None:
    """It keeps its connections open and says nothing: the worst way of being gone."""
    clock = Clock()
    node.payloads = Payloads(own_valkey.address, clock=clock)
    node.payloads.put_many({"r1": BIRD})
    query = {"id": "r1", "k": 1}
    # The timeout stands for "quickly": an answer that waits for Redis never comes.
    with httpx.Client(base_url=node.url, timeout=5) as http:
        assert http.post("/v1/search", json=query).json()["payloads"] == "ok"
        own_valkey.pause()
        try:
            for _ in range(20):
                answer = http.post("/v1/search", json=query).json()
                assert answer["payloads"] == "unavailable"
                assert answer["hits"][0]["text"] is None
            assert not node.payloads.put_many({"r2": BIRD})
            clock.now += RETRY_S + 0.1
            assert http.post("/v1/search", json=query).json()["payloads"] == "unavailable"
        finally:
            own_valkey.resume()
        clock.now += RETRY_S + 0.1
        answer = http.post("/v1/search", json=query).json()
    assert answer["payloads"] == "ok"
    assert answer["hits"][0]["text"] == BIRD.text


def test_a_write_waits_for_the_call_that_tries_whether_redis_is_back() -> None:
    """Else what one thread writes is lost because another one was first to ask."""
    now = 100.0
    payloads = Payloads("redis://127.0.0.1:1", clock=lambda: now)
    assert not payloads.put_many({"a": Payload(text="x")})  # nobody is there: left alone
    now += RETRY_S + 0.1
    trying, may_end = threading.Event(), threading.Event()

    def slow(client: object) -> str:
        trying.set()
        assert may_end.wait(10)
        return "there"

    trial = threading.Thread(target=payloads.execute, args=[slow])
    trial.start()
    assert trying.wait(10)
    assert payloads.execute(lambda client: "late") is None  # a query does not wait
    threading.Timer(0.1, may_end.set).start()
    assert payloads.execute(lambda client: "late", patient=True) == "late"
    trial.join()
