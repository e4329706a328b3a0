"""A generation filled with another one's vectors through an adapter, by a worker that dies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from confluent_kafka import Producer, TopicPartition

from braid.encoders.manifest import FILE_NAME, read_manifest, sha256_of
from braid.encoders.model.adapter import FILE, Adapter
from braid.encoders.model.null import NullModel
from braid.encoders.types import Sample
from braid.stream.errors import RegistryError, WorkerError
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import (
    PROGRESS_KEY,
    Vector,
    Vector32,
    decode_progress,
    decode_vector,
    encode_vector,
)
from braid.stream.kafka.topics import ensure
from braid.stream.registry.generations import GenerationRecord
from braid.stream.registry.promotion import promote
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings
from braid.stream.worker import backfill
from braid.stream.worker.backfill import Backfill, Chunk, Origin, backfill_for
from tests.stream.harness import Deployment, topic_of, wait_for
from tests.stream.running import running, wait_until_idle

pytestmark = pytest.mark.kafka

COUNT = 400


class Moved(NullModel):
    """The null model in a space of its own."""

    def __init__(self) -> None:
        super().__init__(16)
        self.name, self.space = "moved", "s-moved"


def origin(settings: Settings, **changes: Any) -> Origin:
    model = Moved()
    given: dict[str, Any] = {
        "topic": settings.vectors_topic(settings.generation),
        "before": NullModel(16).space,
        "space": model.space,
        "model": model.name,
        "adapt": negated,
    }
    return Origin(**given | changes)


def negated(vectors_nD: Vector32) -> Vector32:
    return -vectors_nD


def texts(start: int, end: int, word: str) -> Iterator[dict[str, Any]]:
    for number in range(start, end):
        yield {"id": f"r{number}", "text": f"{word} {number}", "meta": {"number": number}}


def rows(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message.key != PROGRESS_KEY]


def latest(messages: list[Message]) -> dict[bytes, Message]:
    """By key, what the topic holds in the end."""
    return {message.key or b"": message for message in rows(messages)}


def send(deployment: Deployment, topic: str, key: bytes, value: bytes, *, partition: int) -> None:
    producer = Producer({"bootstrap.servers": deployment.settings.kafka.bootstrap})
    producer.produce(topic_of(deployment.settings, topic), value, key, partition)
    assert producer.flush(30) == 0


def fill_first(deployment: Deployment) -> None:
    """The old generation: rows, some written again, some deleted, one of these written again; the
    last of partition 0 is a dead letter, so that its progress ends behind its rows."""
    deployment.produce(texts(0, COUNT, "first"))
    deployment.produce(texts(0, 60, "second"))
    for id_ in ("r1", "r2", "r399"):
        deployment.delete(id_)
    deployment.produce(texts(2, 3, "third"))
    send(deployment, "records", b"bad", b"no map", partition=0)
    with running(deployment.settings, NullModel(16)) as run:
        wait_until_idle(run, deployment.lag)


def test_what_is_stored_is_mapped_once_though_the_worker_dies(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_first(deployment)
    settings = deployment.settings.replace(generation="g0002")
    ensure(settings, settings.generation)
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 30)
    target = settings.vectors_topic(settings.generation)

    def backfilled() -> Backfill:
        return Backfill(settings, origin(deployment.settings), target=target)

    monkeypatch.setenv("BRAID_FAILPOINT", "after-chunk:raise:7")
    with running(settings, Moved(), backfill=backfilled()) as run:
        assert "failpoint" in str(run.wait_for_end())
    begun = len(rows(deployment.read_of(settings, "vectors")))
    assert 0 < begun < COUNT
    monkeypatch.delenv("BRAID_FAILPOINT")
    with running(settings, Moved(), backfill=backfilled()) as run:
        wait_until_idle(run, lambda: deployment.lag(settings))
        deployment.produce(texts(COUNT, COUNT + 20, "fresh"))
        wait_for(
            "what comes is embedded",
            lambda: len(deployment.read_of(settings, "vectors")) >= COUNT + 61 + 20,
            timeout=30,
        )

    old, made = deployment.read("vectors"), deployment.read_all(settings, "vectors")
    kept, held = latest(old), latest(made)
    assert len(rows(made)) == len(rows(old)) + 20  # each once, and none was embedded again
    for key, message in kept.items():
        if message.value is None:
            assert held[key].value is None
            assert held[key].headers == message.headers
            continue
        before, after = decode_vector(message.value), decode_vector(held[key].value or b"")
        assert np.array_equal(after.fused, -before.fused)
        assert np.array_equal(after.by["text"], -before.by["text"])
        assert (after.space, after.model) == ("s-moved", "moved")
        assert (after.id, after.ts, after.meta) == (before.id, before.ts, before.meta)
        assert after.source == before.source
        assert held[key].partition == message.partition
    for number in range(COUNT, COUNT + 20):
        message = held[f"r{number}".encode()]
        sample = Sample(id="", text=f"fresh {number}")
        (own,) = Moved().encode([Moved().prepare(sample)])
        assert np.array_equal(decode_vector(message.value or b"").fused, own.fused)
    marks: dict[int, list[int]] = {}
    for message in made:
        if message.key == PROGRESS_KEY:
            marks.setdefault(message.partition, []).append(decode_progress(message.value or b""))
    assert {number: max(offsets) for number, offsets in marks.items()} == deployment.ends("records")
    assert all(offsets == sorted(offsets) for offsets in marks.values())
    assert len(deployment.read("dead-letters")) == 1


def test_rows_whose_progress_was_compacted_away_tell_it_themselves(deployment: Deployment) -> None:
    row = Vector(
        id="r",
        ts=7,
        space=NullModel(16).space,
        model="null-16",
        fused=np.ones(16, np.float32),
        by={},
        meta={},
        source=41,
    )
    send(deployment, "vectors", b"r", encode_vector(row), partition=1)
    settings = deployment.settings
    filling = Backfill(settings, origin(settings), target="elsewhere")
    committed = [TopicPartition(settings.topic("records"), 1, -1001)]
    chunks: list[Chunk] = []
    while filling.busy:
        if chunk := filling.next(lambda: committed):
            chunks.append(chunk)
            filling.published(chunk)
    assert chunks[-1].offset == 42
    assert [output.key for chunk in chunks for output in chunk.rows] == [b"r"]


def test_a_row_of_another_space_stops_the_worker(deployment: Deployment) -> None:
    deployment.produce(texts(0, 5, "first"))
    with running(deployment.settings, NullModel(16)) as run:
        wait_until_idle(run, deployment.lag)
    settings = deployment.settings.replace(generation="g0002")
    ensure(settings, settings.generation)
    wrong = origin(deployment.settings, before="s-other")
    filling = Backfill(settings, wrong, target=settings.vectors_topic(settings.generation))
    with running(settings, Moved(), backfill=filling) as run:
        error = run.wait_for_end()
    assert isinstance(error, WorkerError)
    assert "is of space s-" in str(error)
    assert "the adapter of moved maps s-other" in str(error)


def test_a_version_whose_adapter_maps_stored_vectors_is_filled_with_them(
    deployment: Deployment, three_versions: Registry
) -> None:
    settings, registry = deployment.settings, three_versions
    promote(settings, registry, "tiny-0001")
    folder = registry.path("tiny-0003")
    manifest = read_manifest(folder)
    turn_DD = torch.linalg.qr(torch.randn(manifest.dim, manifest.dim))[0]
    adapter = Adapter(kind="procrustes", tensors={"R": turn_DD})
    (folder / FILE).write_bytes(adapter.to_bytes())
    story = {
        "kind": "procrustes",
        "file": FILE,
        "applied": False,
        "maps": "stored vectors",
        "from": registry.manifest("tiny-0001").space,
        "to": manifest.space,
    }
    changed = replace(
        manifest,
        files={**manifest.files, FILE: sha256_of(folder / FILE)},
        compatibility={"adapter": story},
    )
    (folder / FILE_NAME).write_text(changed.to_json())

    begun = promote(settings, registry, "tiny-0003")
    assert isinstance(begun, GenerationRecord)
    assert (begun.state, begun.source) == ("building", "g0001")
    filling = backfill_for(settings, registry, begun)
    assert filling is not None
    assert filling._target == settings.vectors_topic("g0002")
    given_nD = np.eye(4, manifest.dim, dtype=np.float32)
    assert np.allclose(filling.origin.adapt(given_nD), given_nD @ turn_DD.numpy(), atol=1e-6)
    assert filling.origin.topic == settings.vectors_topic(settings.generation)
    assert (filling.origin.before, filling.origin.space) == (story["from"], story["to"])
    assert backfill_for(settings, registry, replace(begun, state="serving")) is None
    assert backfill_for(settings, registry, replace(begun, source=None)) is None
    (folder / FILE).write_bytes(b"damaged")
    with pytest.raises(RegistryError, match="its adapter does not load"):
        backfill_for(settings, registry, begun)
