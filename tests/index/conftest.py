"""A query service on loopback, served by uvicorn as in production."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from braid.index.client import Client
from braid.index.errors import BadQuery, UnknownGeneration
from braid.index.payloads import Payloads
from braid.index.segments.live_store import LiveStore
from braid.index.service.app import (
    Limits,
    QueryInput,
    QueryVectors,
    ServiceDeps,
    Serving,
    create_app,
)
from braid.index.service.dependencies import CONNECTION
from braid.index.service.limits.connections import ConnectionLimits
from braid.index.service.server import server_config
from tests.index.oracle import DIM, SPACE, Oracle, unit, upsert

IDS = [f"r{number}" for number in range(30)]
MAX_BODY = 64 * 1024


@dataclass
class Node:
    """A running query service, and what a test may change behind it."""

    url: str = ""
    store: LiveStore = field(default_factory=lambda: LiveStore(space=SPACE, dim=DIM, block=16))
    oracle: Oracle = field(default_factory=Oracle)
    payloads: Payloads = field(default_factory=lambda: Payloads(None))
    asked: list[QueryInput] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    space: str = SPACE
    not_ready: str | None = None
    broken: BaseException | None = None

    def serving(self, name: str | None) -> Serving:
        if name not in (None, "g0001"):
            raise UnknownGeneration(str(name), ["g0001"])
        return Serving(generation="g0001", store=self.store, encode=self.encode, model="m-query")

    async def encode(self, query: QueryInput) -> QueryVectors:
        """Stands for the model: a picture must begin with its magic number."""
        self.asked.append(query)
        if self.broken is not None:
            raise self.broken
        if query.image is not None and not query.image.startswith(b"\x89PNG"):
            raise BadQuery("image", "does not decode")
        films = () if query.video is None else (query.video,)
        vector_D = unit(query.text, query.image, query.audio, *films)
        return QueryVectors(fused=vector_D, by={}, space=self.space, model="m-query")

    async def delete(self, id: str) -> tuple[int, int]:
        await asyncio.sleep(0)
        self.deleted.append(id)
        return 1, 41 + len(self.deleted)

    def status(self) -> Mapping[str, Any]:
        return {"lag": {"0": 0}}

    def reset(self) -> None:
        fresh = Node(url=self.url)
        for name in ("store", "oracle", "payloads", "asked", "deleted", "space"):
            setattr(self, name, getattr(fresh, name))
        self.not_ready = self.broken = None
        writes = [
            upsert(id_, number, meta={"number": number, "lang": "de" if number % 2 else "fr"})
            for number, id_ in enumerate(IDS)
        ]
        self.oracle.apply(writes)
        self.store.apply(writes, positions={0: 40, 1: 2}, progress={0: 30, 1: 5})

    def expected(self, query_D: np.ndarray, **options: Any) -> list[str]:
        return [id_ for id_, _ in self.oracle.search(query_D, **options)]


@contextmanager
def serve(app: FastAPI, limits: ConnectionLimits = CONNECTION) -> Iterator[str]:
    """The application on a free port of loopback, as long as the context lasts; its address."""
    config = server_config(app, host="127.0.0.1", port=0, limits=limits, log_level="critical")
    with running(uvicorn.Server(config)) as url:
        yield url


@contextmanager
def running(server: uvicorn.Server) -> Iterator[str]:
    """The server on a thread; its address."""
    thread = threading.Thread(target=server.run, name="service")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            threading.Event().wait(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


async def no_dead_letters() -> Mapping[str, Any]:
    return {"since_ms": 0, "total": 0, "complete": True, "by": []}


def deps_of(node: Node, **options: Any) -> ServiceDeps:
    """What a service of that node stands on."""
    given: dict[str, Any] = {"limits": Limits(body_bytes=MAX_BODY), "payloads": _Current(node)}
    return ServiceDeps(
        serving=node.serving,
        delete=node.delete,
        status=node.status,
        not_ready=lambda: node.not_ready,
        dead_letters=no_dead_letters,
        **(given | options),
    )


@contextmanager
def serving(node: Node, **options: Any) -> Iterator[tuple[str, ServiceDeps]]:
    """A service of that node beside the shared one, with settings of its own."""
    deps = deps_of(node, **options)
    with serve(create_app(deps), deps.limits.connection) as url:
        yield url, deps


@pytest.fixture(scope="session")
def _served() -> Iterator[Node]:
    node = Node()
    with serving(node) as (url, _):
        node.url = url
        yield node


class _Current(Payloads):
    """The payloads that the test has put in place."""

    def __init__(self, node: Node) -> None:
        super().__init__(None)
        self._node = node

    @property
    def available(self) -> bool:
        return self._node.payloads.available

    def get_many(self, ids: Any) -> Any:
        return self._node.payloads.get_many(ids)


@pytest.fixture
def node(_served: Node) -> Node:
    _served.reset()
    return _served


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    with Client(node.url) as client:
        yield client


@pytest.fixture
def http(node: Node) -> Iterator[httpx.Client]:
    # The timeout is what finds an answer that never comes.
    with httpx.Client(base_url=node.url, timeout=20) as http:
        yield http
