"""Generations that were dropped while an index node was away: nothing of them stays or answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest

from braid.encoders.model.null import NullModel
from braid.index.generations import Generations
from braid.index.service.app import create_app
from braid.stream.index_node import generations as managing
from braid.stream.index_node.node import IndexNode
from braid.stream.kafka.producer import Producer
from braid.stream.registry.generations import GenerationRecord, GenerationRecords
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings


def left(settings: Settings, *names: str, serves: str) -> None:
    """What an index node kept before it was stopped."""
    generations: Generations[str] = Generations(settings.index_home, first=serves)
    for name in names:
        generations.add(name, name)
        generations.folder(name).mkdir(parents=True)
    generations.flip(serves)


def node_of(settings: Settings, generation: str, model: str = "null") -> IndexNode:
    null = NullModel(16)
    null.name = model
    return IndexNode(settings, generation, null)


def test_a_node_whose_generation_is_gone_says_so_until_the_next_is_read(
    three_versions: Registry,
) -> None:
    settings = Settings(home=three_versions.root.parent)
    left(settings, "g0001", serves="g0001")
    node = node_of(settings, "g0002")
    why = "g0001 was searched here last and is not open, g0002 is still being read"
    transport = httpx.ASGITransport(create_app(node._deps(cast(Producer, None))))

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()) == (503, {"ready": False, "reason": why})
            for answer in (
                await client.post("/v1/search", json={"text": "a"}),
                await client.get("/v1/status"),
                await client.get("/v1/generations"),
                await client.get("/v1/records/a"),
            ):
                assert answer.status_code == 503
                assert answer.json() == {"error": {"field": "generation", "reason": why}}
                assert answer.headers["retry-after"] == "1"
            for name, status in (("g0002", 200), ("g0001", 404)):
                response = await client.post("/v1/search", json={"text": "a", "generation": name})
                assert response.status_code == status
            node._manager.generations.flip("g0002")
            response = await client.post("/v1/search", json={"text": "a"})
            assert response.json()["generation"] == "g0002"
            assert (await client.get("/readyz")).json()["reason"].startswith("still reading")

    asyncio.run(ask())


def test_what_is_left_of_a_dropped_generation_is_removed(
    three_versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only of those that the registry says are dropped, and not before another one serves here."""
    settings = Settings(home=three_versions.root.parent, kafka={"broker_timeout_s": 1.0})
    registry, generation_records = three_versions, GenerationRecords(three_versions.log)
    registry.promote("tiny-0003", generation="g0004", why="built")
    gone = GenerationRecord(generation="g0001", model="tiny-0001", space="s", state="dropped")
    for entry in (
        gone,
        replace(gone, generation="g0002"),
        replace(gone, generation="g0003", state="grace", until_ms=10**15),
        replace(gone, generation="g0005", state="building"),
    ):
        generation_records.put(entry)
    left(settings, "g0001", "g0002", "g0003", "g0004", "g0005", "g0006", serves="g0002")
    (settings.index_home / "notes").mkdir()
    node = node_of(settings, "g0004", "tiny-0003")
    manager = node._manager
    manager.partitions = 1
    deleted: list[str] = []

    def delete(_: Any, entry: GenerationRecord) -> bool:
        deleted.append(entry.generation)
        return True

    async def refresh(name: str, model: str) -> None:
        """No other generation is opened."""

    monkeypatch.setattr(managing, "delete_resources", delete)
    monkeypatch.setattr(manager, "_refresh", refresh)

    def kept() -> list[str]:
        return sorted(path.name for path in settings.index_home.iterdir() if path.is_dir())

    asyncio.run(manager.look())
    assert kept() == ["g0002", "g0003", "g0004", "g0005", "g0006", "notes"]
    manager.generations.flip("g0004")
    asyncio.run(manager.look())
    assert kept() == ["g0003", "g0004", "g0005", "g0006", "notes"]
    assert deleted == ["g0001", "g0002"]
