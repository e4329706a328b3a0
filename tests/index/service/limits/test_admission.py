"""Concurrency limits with a bounded queue; beyond them 503."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from braid.index.client import AsyncClient, Client, Retry
from braid.index.errors import Busy, ServiceError
from braid.index.segments.live_store import LiveStore
from braid.index.service.app import Limits, ServiceDeps
from braid.index.service.limits.admission import ConcurrencyLimiter
from braid.index.service.searcher import SMALL_K
from tests.index.conftest import MAX_BODY, Node, serving
from tests.index.oracle import DIM, SPACE, upsert
from tests.index.service.test_bad_queries import problem


class Held(LiveStore):
    """A store that searches only when it is let."""

    def __init__(self) -> None:
        super().__init__(space=SPACE, dim=DIM)
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def search(self, *args: Any, **options: Any) -> Any:
        self.begun.release()
        assert self.go.wait(20)
        return super().search(*args, **options)


def gauge(deps: ServiceDeps, name: str) -> float:
    value = deps.metrics.registry.get_sample_value(name)
    assert value is not None
    return value


def test_beyond_the_line_a_search_is_refused_and_health_is_not(node: Node) -> None:
    node.store = store = Held()
    store.apply([upsert("r1", 1)], positions={}, progress={})
    limits = Limits(body_bytes=MAX_BODY, searches=2, queue_size=1)
    with (
        serving(node, limits=limits) as (url, deps),
        httpx.Client(base_url=url, timeout=20) as http,
        ThreadPoolExecutor(3) as pool,
    ):
        alone = {"id": "r1", "k": SMALL_K + 1}  # else two may be searched together
        ask = lambda: httpx.post(f"{url}/v1/search", json=alone, timeout=30)  # noqa: E731
        try:
            running = [pool.submit(ask) for _ in range(3)]
            for _ in range(2):
                assert store.begun.acquire(timeout=20)
            while gauge(deps, "braid_searches_waiting") < 1:
                assert not any(one.done() for one in running)
                threading.Event().wait(0.01)
            assert gauge(deps, "braid_searches_in_flight") == 2
            answer = http.post("/v1/search", json={"id": "r1"})
            result, why = problem(answer, 503)
            assert result == "request"
            assert "the limit is 2 and 1" in why
            assert answer.headers["retry-after"] == "1"
            assert problem(http.post("/v1/search/batch", json={"queries": [{"id": "r1"}]}), 503)
            assert http.get("/healthz").status_code == 200
            assert not store.begun.acquire(blocking=False)
        finally:
            store.go.set()
        assert [one.result().status_code for one in running] == [200, 200, 200]
        assert gauge(deps, "braid_searches_waiting") == 0
        assert gauge(deps, "braid_searches_in_flight") == 0
        refused = deps.metrics.registry.get_sample_value("braid_refused_total", {"reason": "busy"})
        assert refused == 2
        assert http.post("/v1/search", json={"id": "r1"}).status_code == 200


def test_who_waits_for_offsets_takes_no_ones_place(node: Node) -> None:
    limits = Limits(body_bytes=MAX_BODY, searches=1, queue_size=0, offset_waits=1)
    late: dict[str, Any] = {"text": "q", "min_offsets": {"0": 99}, "timeout_ms": 20_000}
    with (
        serving(node, limits=limits) as (url, deps),
        httpx.Client(base_url=url, timeout=30) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(lambda: httpx.post(f"{url}/v1/search", json=late, timeout=30))
        while gauge(deps, "braid_searches_waiting_for_offsets") < 1:
            assert not waiting.done()
            threading.Event().wait(0.01)
        refused = http.post("/v1/search", json={**late, "timeout_ms": 1})
        assert "wait for offsets" in problem(refused, 503)[1]
        assert http.post("/v1/search", json={"text": "q"}).status_code == 200
        assert not waiting.done()
        node.store.apply([], positions={}, progress={0: 99})
        assert waiting.result().status_code == 200
        assert gauge(deps, "braid_searches_waiting_for_offsets") == 0


def test_the_clients_come_back_after_as_long_as_they_were_told(node: Node) -> None:
    node.store = store = Held()
    store.apply([upsert("r1", 1)], positions={}, progress={})
    limits = Limits(body_bytes=MAX_BODY, searches=1, queue_size=0)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        store.go.set()
        first.result()

    async def asleep(seconds: float) -> None:
        await asyncio.to_thread(sleep, seconds)

    async def ask(url: str) -> Any:
        async with AsyncClient(url, sleep=asleep) as client:
            return await client.search(id="r1")

    with serving(node, limits=limits) as (url, _), ThreadPoolExecutor(1) as pool:

        def search_held() -> Any:
            store.go.clear()
            held = pool.submit(
                lambda: httpx.post(f"{url}/v1/search", json={"id": "r1"}, timeout=30)
            )
            assert store.begun.acquire(timeout=20)
            return held

        first = search_held()
        with Client(url, sleep=sleep) as client:
            assert client.search(id="r1").hits
        assert store.begun.acquire(timeout=20)
        first = search_held()
        assert asyncio.run(ask(url)).hits
        assert store.begun.acquire(timeout=20)
        assert slept == [1.0, 1.0]
        first = search_held()
        for retry in (Retry(times=0), Retry(longest_s=0.5)):
            with Client(url, sleep=sleep, retry=retry) as client:
                with pytest.raises(ServiceError) as caught:
                    client.search(id="r1")
                assert caught.value.status == 503
        assert slept == [1.0, 1.0]
        store.go.set()


def test_a_place_is_given_back_whatever_happens() -> None:
    async def main() -> None:
        limiter = ConcurrencyLimiter("things", 1, 1)

        async def hold(begun: asyncio.Event) -> None:
            async with limiter.slot():
                begun.set()
                await asyncio.sleep(60)

        for _ in range(3):  # cancelled inside and in line
            begun, never = asyncio.Event(), asyncio.Event()
            inside = asyncio.create_task(hold(begun))
            await begun.wait()
            queued = asyncio.create_task(hold(never))
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                async with limiter.slot():
                    pass
            queued.cancel()
            inside.cancel()
            await asyncio.gather(inside, queued, return_exceptions=True)
            assert not never.is_set()
        with pytest.raises(KeyError):
            async with limiter.slot():
                raise KeyError
        async with limiter.slot():
            pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"searches": 0}, "searches: must be at least 1, got 0"),
        ({"queue_size": -1}, "queue_size: must be at least 0, got -1"),
        ({"rate_per_s": 0.0}, "rate_per_s: must be above 0"),
        ({"burst": 0}, "burst"),
        ({"body_bytes": 0}, "body_bytes"),
    ],
)
def test_limits_that_let_nothing_through_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Limits(**options)
