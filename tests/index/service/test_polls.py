"""Long polls: limited, woken together, with shared answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import Request
from starlette.types import Message

from braid.index.service.app import Limits, Serving
from braid.index.service.dependencies import ServiceDeps
from braid.index.service.polls import ChangeWatcher, CoalescedAnswers, until_disconnect
from braid.index.service.recent_writes import RecentWrites
from tests.index.conftest import MAX_BODY, Node, serving
from tests.index.oracle import upsert
from tests.index.service.test_bad_queries import problem


@dataclass
class Watched(Node):
    recent_writes: RecentWrites = field(default_factory=RecentWrites)

    def serving(self, name: str | None) -> Serving:
        return Serving(
            generation="g0001",
            store=self.store,
            encode=self.encode,
            model="m-query",
            recent_writes=self.recent_writes,
        )

    def put(self, id: str, version: int) -> None:
        write = upsert(id, version)
        self.store.apply([write], positions={0: version + 1}, progress={0: version + 1})
        self.recent_writes.applied([write])


@contextmanager
def watched(polls: int, **options: Any) -> Iterator[tuple[Watched, str, ServiceDeps]]:
    node = Watched()
    node.put("first", 1)
    limits = Limits(body_bytes=MAX_BODY, polls=polls, **options)
    with serving(node, limits=limits) as (url, deps):
        yield node, url, deps


def polling(deps: ServiceDeps) -> float:
    value = deps.metrics.registry.get_sample_value("braid_polls")
    assert value is not None
    return value


def until(condition: Any) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not come to that")


def test_beyond_the_limit_a_poll_is_refused_and_all_others_hear_of_what_arrives() -> None:
    with (
        watched(3) as (node, url, deps),
        httpx.Client(base_url=url, timeout=60) as http,
        ThreadPoolExecutor(3) as pool,
    ):
        params = {"since": http.get("/v1/live").json()["number"], "wait_ms": 5000}
        while True:
            asked = [
                pool.submit(lambda: httpx.get(f"{url}/v1/live", params=params, timeout=60))
                for _ in range(3)
            ]
            until(lambda: polling(deps) == 3 or all(one.done() for one in asked))  # noqa: B023
            if polling(deps) == 3:
                break
        refused = http.get("/v1/live", params=params)
        assert problem(refused, 503)[0] == "request"
        assert refused.headers["retry-after"] == "1"
        assert http.get("/healthz").status_code == 200
        assert http.get("/v1/live").status_code == 200  # does not wait
        node.put("second", 2)
        answers = [one.result() for one in asked]
        assert [[r["id"] for r in one.json()["records"]] for one in answers] == [["second"]] * 3
        assert polling(deps) == 0


def test_who_goes_away_makes_room() -> None:
    with watched(1) as (_, url, deps), httpx.Client(base_url=url, timeout=60) as http:
        params = {"since": http.get("/v1/live").json()["number"], "wait_ms": 5000}
        with (
            httpx.Client(base_url=url, timeout=httpx.Timeout(30, read=0.3)) as hasty,
            pytest.raises(httpx.ReadTimeout),
        ):
            hasty.get("/v1/live", params=params)
        until(lambda: polling(deps) == 0)
        quiet = http.get("/v1/live", params={**params, "wait_ms": 1})
        assert quiet.json()["records"] == []


def test_a_wait_ends_with_the_connection() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def main() -> None:
        request = Request({"type": "http"}, gone)
        waiting = asyncio.Event()  # of what never comes
        await asyncio.wait_for(until_disconnect(request, waiting.wait()), 30)

    asyncio.run(main())


def test_polls_are_paid_from_a_bucket_of_their_own() -> None:
    with (
        watched(1, rate_per_s=0.001, burst=1) as (_, url, _),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        statuses = [http.get("/v1/live").status_code for _ in range(60)]
        assert statuses[:50] == [200] * 50
        assert statuses[-1] == 429
        assert http.get("/v1/status").status_code == 200
        assert http.get("/v1/status").status_code == 429


def test_one_task_looks_however_many_wait() -> None:
    async def main() -> None:
        number, looked = 1, 0

        def look() -> int:
            nonlocal looked
            looked += 1
            return number

        watch = ChangeWatcher(look)
        waiting = [asyncio.create_task(watch.changed(1, timeout_s=30)) for _ in range(500)]
        late = asyncio.create_task(watch.changed(1, timeout_s=0.01))
        await late
        await asyncio.sleep(0.2)
        assert looked < 600  # once each, and now and then: not 500 times in each step
        number = 2
        await asyncio.wait_for(asyncio.gather(*waiting), 30)
        await watch.changed(1, timeout_s=30)
        number = 3
        await watch.changed(2, timeout_s=30)  # and it looks again

    asyncio.run(main())


def test_an_answer_is_made_once_for_all() -> None:
    async def main() -> None:
        now, made = 0.0, 0

        async def make() -> bytes:
            nonlocal made
            made += 1
            await asyncio.sleep(0.01)
            return b"%d" % made

        shared = CoalescedAnswers(clock=lambda: now)
        assert set(await asyncio.gather(*[shared.get("a", make) for _ in range(50)])) == {b"1"}
        assert await shared.get("b", make) == b"2"
        assert await shared.get("a", make) == b"1"
        now = 1.0
        assert await shared.get("a", make) == b"3"
        for number in range(100):
            await shared.get(number, make)
        assert len(shared._made) == 16

    asyncio.run(main())
