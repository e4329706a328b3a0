"""Slow and endless clients are disconnected, and other clients are answered."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from braid.index.errors import BadQuery
from braid.index.service import bodies
from braid.index.service.app import Limits
from braid.index.service.dependencies import ServiceDeps
from braid.index.service.limits import json_bounds
from braid.index.service.limits.body_budget import FREE, BodyBudget, BudgetFull, Reservation
from braid.index.service.limits.connections import CHUNKS, ConnectionLimits
from tests.fuzz.hostile import HostileRequest, Outcome, send
from tests.index.conftest import Node, serving
from tests.index.oracle import DIM, SPACE, upsert
from tests.index.service.test_bad_queries import problem

KIB = 1024
MIB = 1024 * KIB
SHORT = ConnectionLimits(header_s=0.5, body_s=3.0, slow_s=0.5, connections=40)
JSON = (("Content-Type", "application/json"),)


@contextmanager
def short(node: Node, **options: Any) -> Iterator[tuple[str, int, httpx.Client, ServiceDeps]]:
    limits = Limits(**({"connection": SHORT} | options))
    with (
        serving(node, limits=limits) as (url, deps),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        where = urlsplit(url)
        assert where.hostname is not None
        assert where.port is not None
        yield where.hostname, where.port, http, deps


def refused(deps: ServiceDeps, reason: str) -> float:
    value = deps.metrics.registry.get_sample_value("braid_refused_total", {"reason": reason})
    assert value is not None
    return value


# ---- time


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", None), (b"POST /v1/search HT", 408), (b"GET / HTTP/1.1\r\nHost:", 408)],
)
def test_headers_that_never_end_are_waited_for_a_while(
    node: Node, sent: bytes, status: int | None
) -> None:
    with short(node) as (host, port, http, _):
        outcome = send(HostileRequest(name="half", raw=sent, stays=True), host, port)
        assert (outcome.status, outcome.closed) == (status, True)
        assert http.get("/healthz").status_code == 200


def test_headers_that_drip_have_no_more_time(node: Node) -> None:
    with short(node) as (host, port, _, _), socket.create_connection((host, port), 30) as dripping:
        dripping.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"ok":true}'):
            answer += dripping.recv(4096)
        stopped = threading.Event()

        def drip() -> None:
            for byte in b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 1000:
                try:
                    dripping.sendall(bytes([byte]))
                except OSError:
                    break
                if stopped.wait(0.05):
                    break

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(drip)
            answer = dripping.recv(4096)  # without a bound it would drip for 50 s
            stopped.set()
            done.result()
        assert b" 408 " in answer


def test_a_body_that_never_ends_is_cut_off(node: Node) -> None:
    headers = (*JSON, ("Content-Length", "5000"))
    request = HostileRequest(name="slow", headers=headers, body=(b"{",), stays=True)
    with short(node) as (host, port, http, deps):
        outcome = send(request, host, port)
        assert (outcome.status, outcome.closed) == (408, True)
        assert b"must come at" in outcome.answer
        assert refused(deps, "slow") == 1
        assert http.post("/v1/search", json={"text": "q"}).status_code == 200


def test_a_slow_body_is_read_if_it_is_not_too_slow(node: Node) -> None:
    whole = json.dumps({"text": "q"}).encode()
    pieces = (b" " * 40_000, b" " * 20_000, whole)
    request = HostileRequest(name="slow", headers=JSON, body=pieces, pause_s=0.4)
    with short(node) as (host, port, _, _):
        assert send(request, host, port).status == 200


@pytest.mark.slow
def test_a_body_that_nobody_reads_ends_too(node: Node) -> None:
    """The answer comes first; what still comes of the body is dropped, for a while."""
    head = b"DELETE /v1/records/r1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n"
    with short(node) as (host, port, _, _), socket.create_connection((host, port), 30) as dripping:
        dripping.sendall(head)
        assert b" 202 " in dripping.recv(4096)

        def drip() -> None:
            for _ in range(300):  # 30 s
                dripping.sendall(b" ")
                time.sleep(0.1)

        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            drip()


@pytest.mark.slow
def test_who_does_not_read_the_answer_is_cut_off(node: Node) -> None:
    meta = {"words": "x" * 20_000}
    writes = [upsert(f"m{number}", 50 + number, meta=meta) for number in range(600)]
    node.store.apply(writes, positions={0: 700}, progress={0: 700})
    body = json.dumps({"id": "m1", "k": 600}).encode()
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with short(node) as (host, port, http, _), socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((host, port))
        lazy.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        lazy.settimeout(60)
        assert lazy.recv(9) == b"HTTP/1.1 "
        time.sleep(3 * SHORT.slow_s)  # it reads nothing meanwhile
        read = 0
        with contextlib.suppress(ConnectionResetError):
            while received := lazy.recv(65_536):
                read += len(received)
        assert read < 11_000_000  # of 12 MB, most of which the kernels keep
        assert http.get("/healthz").status_code == 200


# ---- how many


@pytest.mark.slow
def test_beyond_the_limit_only_probes_are_answered_and_then_nobody(node: Node) -> None:
    patient = ConnectionLimits(header_s=3.0, connections=20)
    with short(node, connection=patient) as (host, port, http, deps), ExitStack() as opened:
        for _ in range(patient.connections):
            opened.enter_context(socket.create_connection((host, port)))
        result, why = problem(http.get("/v1/status"), 503)
        assert (result, why) == ("request", "too many connections, the limit is 20")
        assert refused(deps, "busy") == 1
        for probe in ("/healthz", "/readyz", "/metrics"):
            assert http.get(probe).status_code == 200
        for _ in range(patient.connections + 5):
            last = opened.enter_context(socket.create_connection((host, port), 30))
        assert b" 503 " in last.recv(4096)
        # Those that say nothing are closed, and there is room again.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if http.get("/v1/status").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        else:
            pytest.fail("the service is still full")


def test_tiny_chunks_are_refused(node: Node) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    body = (
        b"1\r\n{\r\n" + b"1\r\n \r\n" * (CHUNKS - 10) + b'b\r\n"text": "q"\r\n1\r\n}\r\n0\r\n\r\n'
    )
    with short(node) as (host, port, _, _):
        assert send(HostileRequest(name="c", raw=head + body), host, port).status == 200
        many = HostileRequest(name="c", raw=head + b"1\r\n \r\n" * (CHUNKS + 10) + body)
        assert send(many, host, port).status == 400


# ---- bytes


@pytest.mark.slow
def test_packed_bodies_that_never_end_share_a_budget(node: Node) -> None:
    """Each unpacks to a megabyte and then waits; without a budget all of it would be held."""
    packed = gzip.compress(b" " * MIB)[:-8]
    headers = (*JSON, ("Content-Encoding", "gzip"), ("Content-Length", str(len(packed) + 50)))
    request = HostileRequest(name="endless", headers=headers, body=(packed,), stays=True)
    options = {"body_bytes": 2 * MIB, "bodies_bytes": 3 * MIB}
    slow = ConnectionLimits(header_s=5, body_s=20, slow_s=5)
    outcomes: list[Outcome] = []
    with short(node, connection=slow, **options) as (host, port, http, deps):
        with ThreadPoolExecutor(20) as pool:
            sent = [pool.submit(send, request, host, port) for _ in range(20)]
            while refused(deps, "busy") < 10:  # they find no room within 2 s
                answer = http.post("/v1/search", json={"text": "q"})
                assert answer.status_code == 200  # small ones do
                time.sleep(0.05)
            outcomes = [one.result() for one in sent]
        counts = Counter(outcome.status for outcome in outcomes)
        assert counts[503] >= 10
        assert counts[503] + counts[408] == 20
        assert any(b"retry-after: 1" in outcome.answer for outcome in outcomes)
        whole = gzip.compress(b" " * MIB + b'{"text": "q"}')
        again = http.post(
            "/v1/search", content=whole, headers=dict(JSON) | {"content-encoding": "gzip"}
        )
        assert again.status_code == 200  # all was given back


def test_a_budget_counts_and_gives_back() -> None:
    import asyncio

    async def main() -> None:
        budget = BodyBudget(100, wait_s=0.05)
        one, two = Reservation(budget), Reservation(budget)
        await one.grow(FREE)
        assert budget.held == 0
        await one.grow(60)
        with pytest.raises(BudgetFull, match="503"):
            await two.grow(FREE + 50)
        assert budget.held == 60
        waiting = asyncio.create_task(two.grow(40))  # two has seen FREE + 50 already
        await asyncio.sleep(0)
        await one.release()
        await one.release()
        await waiting
        assert budget.held == 90
        await two.release()
        assert budget.held == 0

    asyncio.run(main())


def test_json_has_a_smaller_limit_than_uploads(node: Node) -> None:
    big = "x" * (300 * KIB)
    with short(node, json_bytes=200 * KIB, body_bytes=MIB) as (_, _, http, _):
        assert http.post("/v1/search", files={"text": (None, big)}).status_code == 200
        assert problem(http.post("/v1/search", json={"text": big}), 413)[0] == "body"
        packed = gzip.compress(json.dumps({"text": big}).encode())
        headers = dict(JSON) | {"content-encoding": "gzip"}
        answer = http.post("/v1/search", content=packed, headers=headers)
        assert problem(answer, 413)[0] == "body"


def test_large_json_is_read_on_another_thread(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are answered while it is read; the thread of the event loop is the service's."""
    threads: list[str] = []
    check = json_bounds.check_json

    def noted(name: str, raw: bytes) -> None:
        threads.append(threading.current_thread().name)
        check(name, raw)

    monkeypatch.setattr(bodies, "check_json", noted)
    with short(node) as (_, _, http, _):
        wide = {"text": "q", "filter": {"a": [[]] * 15_000}}
        assert problem(http.post("/v1/search", json=wide), 422)[0] == "filter.a"
        query = {"query": {"values": [0.5] * DIM, "space": SPACE}, "filter": {"a": "x" * 20_000}}
        assert http.post("/v1/search", json=query).status_code == 200
        assert http.post("/v1/search/batch", json={"queries": [query]}).status_code == 200
        places = {"ids": ["r1" * 100] * 100}
        assert http.post("/v1/map", json=places).status_code == 200
    assert len(threads) == 4
    assert "service" not in threads


def test_an_error_names_no_object(node: Node) -> None:
    node.broken = BadQuery("image", "cannot identify image file <_io.BytesIO object at 0x7f3a>")
    with short(node) as (_, _, http, _):
        answer = http.post("/v1/search", json={"text": "q"})
        assert problem(answer, 422) == ("image", "cannot identify image file the data")


def test_an_error_shows_little_of_what_it_is_about(node: Node) -> None:
    long = "n" * (200 * KIB)
    with short(node) as (_, _, http, _):
        for body in (
            {long: 1},
            {"text": "q", "filter": {long: {}}},
            {"text": "q", "filter": {"a": {"gt": [long]}}},
            {"text": "q", "k": long},
            {"text": "q", "vector": long},
            {"text": "q", "min_offsets": {long: 1}},
            {"query": {"values": [long] * 3, "space": SPACE}},
            {"text": "q", "filter": {"a": {"in": [{"b": long}]}}},
        ):
            answer = http.post("/v1/search", json=body)
            assert problem(answer, 422)
            assert len(answer.content) < 1000
