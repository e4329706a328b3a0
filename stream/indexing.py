"""The index node: vectors, read committed, become searchable; queries are embedded and answered.

One reader without a group applies a generation's `vectors` topic to the store, starting from the
offsets in the store's own snapshot. The query service gets everything it needs as functions: it
knows neither Kafka nor the model.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from encoders.embedder import Embedder, load
from encoders.errors import BadInput
from encoders.types import Model, Sample
from index.errors import BadQuery, SnapshotError, UnknownGeneration
from index.flat import FlatStore, gpu_found
from index.metrics import ServiceMetrics
from index.payloads import Payloads
from index.recall_probe import RecentQueries, probe_for_ever
from index.service import QueryInput, QueryVectors, ServiceDeps, Serving, create_app
from index.snapshot import restore, save
from index.store import Delete, Upsert

from .announcements import check_partitions, first_champion, follow_champion
from .errors import BadRecord, RegistryError, Unreachable
from .failpoints import Failpoints
from .models import Champion, Registry
from .producer import Producer
from .records import PROGRESS_KEY, Vector, decode_progress, decode_vector
from .settings import Settings
from .topics import ensure

log = logging.getLogger(__name__)

READ_MS = 200
READ_RECORDS = 2000


@dataclass
class Applied:
    """What one read of `vectors` says, in the store's terms."""

    writes: list[Upsert | Delete] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    progress: dict[int, int] = field(default_factory=dict)
    unreadable: int = 0


def translate(messages: Sequence[ConsumerRecord], *, space: str, dim: int) -> Applied:
    """Messages of `vectors` as writes, positions and progress.

    What is not a vector of this space and length is left out and counted: it must never be
    searched beside the others, and stopping at it would mean stopping for good.
    """
    applied = Applied()
    for message in messages:
        partition = message.partition
        applied.positions[partition] = message.offset + 1
        try:
            if message.key == PROGRESS_KEY:
                applied.progress[partition] = decode_progress(message.value)
            elif message.value is None:
                headers = dict(message.headers)
                applied.writes.append(
                    Delete(
                        id=message.key.decode(),
                        partition=partition,
                        version=int(headers["source"]),
                        ts=int(headers["ts"]),
                    )
                )
            else:
                vector = decode_vector(message.value)
                _check_fits(vector, space, dim)
                applied.writes.append(
                    Upsert(
                        id=vector.id,
                        partition=partition,
                        version=vector.source,
                        ts=vector.ts,
                        model=vector.model,
                        fused=vector.fused,
                        by=dict(vector.by),
                        meta=dict(vector.meta),
                    )
                )
        except (BadRecord, KeyError, ValueError, AttributeError) as error:
            # Only our own workers write here: something else did. It is said aloud, and shown
            # in /v1/status.
            applied.unreadable += 1
            log.error("vectors[%d]@%d is not a vector: %s", partition, message.offset, error)
    return applied


def _check_fits(vector: Vector, space: str, dim: int) -> None:
    if vector.space != space:
        raise BadRecord("space", f"is {vector.space!r}, this index holds {space!r}")
    for name, array_D in {"fused": vector.fused, **vector.by}.items():
        if array_D.shape != (dim,) or not np.isfinite(array_D).all():
            raise BadRecord(name, f"must be {dim} finite values, its shape is {array_D.shape}")


class IndexNode:
    """The state of one index node and its tasks.

    Args:
        model: embeds queries; its space is the store's.
    """

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings = settings
        self._keys = settings.keys()
        self.registry = Registry(settings.models_dir, base=settings.model_name)
        self._failpoint = Failpoints.from_environment()
        self._embedder = Embedder(model)
        self._payloads = Payloads(settings.redis_url)
        self._faiss: dict[str, Any] = {
            "threads": settings.faiss_threads,
            "gpu": gpu_found() if settings.faiss_gpu is None else settings.faiss_gpu,
        }
        self._store = self._first_store(model)
        self._metrics = ServiceMetrics()
        self._recent = RecentQueries()
        self._partitions = 0
        self._ends: dict[int, int] = {}
        self._caught_up = False
        self._unreadable = 0
        self._snapshot_at = time.monotonic()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a snapshot is taken on the way out."""
        self._partitions = await asyncio.to_thread(ensure, self.settings)
        await check_partitions(self.settings, self._partitions)
        async with Producer(self.settings) as producer:
            app = create_app(self._deps(producer))
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    host=self.settings.http_host,
                    port=self.settings.http_port,
                    log_level="warning",
                    lifespan="off",
                    timeout_graceful_shutdown=5,
                )
            )
            tasks = {
                asyncio.create_task(server.serve(), name="serve"),
                asyncio.create_task(self._apply(), name="apply"),
            }
            if self.settings.model is None:
                tasks.add(
                    asyncio.create_task(
                        follow_champion(self.settings, self.registry, self._take), name="models"
                    )
                )
            if self.settings.recall_probe_s:
                tasks.add(asyncio.create_task(self._probe(), name="probe"))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # an error of one task ends the process
            finally:
                self._stopping.set()
                server.should_exit = True
                for task in tasks:
                    if task.get_name() in ("models", "probe"):
                        task.cancel()
                await asyncio.wait(tasks, timeout=10)
                await asyncio.to_thread(self._snapshot)
                self._embedder.close()

    async def _probe(self) -> None:
        await probe_for_ever(
            lambda: self._serving(None),
            self._recent,
            self._metrics,
            every_s=self.settings.recall_probe_s,
            rng=random.Random(0),
        )

    async def _apply(self) -> None:
        """Read `vectors` from the snapshot's offsets on, and write what it says into the store."""
        topic = self.settings.topic("vectors")
        partitions = [TopicPartition(topic, number) for number in range(self._partitions)]
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.kafka_bootstrap,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="none",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=4 * 1024 * 1024,
        )
        try:
            await consumer.start()
            consumer.assign(partitions)
            await self._seek(consumer, partitions)
            self._ends = {
                part.partition: end
                for part, end in (await consumer.end_offsets(partitions)).items()
            }
            while not self._stopping.is_set():
                batches = await consumer.getmany(timeout_ms=READ_MS, max_records=READ_RECORDS)
                messages = [message for batch in batches.values() for message in batch]
                if messages:
                    applied = translate(messages, space=self._store.space, dim=self._store.dim)
                    await asyncio.to_thread(self._write, applied)
                    self._failpoint("after-apply")
                await self._note_caught_up(consumer, partitions)
                age_s = time.monotonic() - self._snapshot_at
                self._metrics.snapshot_age(age_s)
                if age_s > self.settings.snapshot_every_s:
                    await asyncio.to_thread(self._snapshot)
        except KafkaError as error:
            raise Unreachable(f"reading {topic}: {error!r}") from error
        finally:
            await consumer.stop()

    async def _seek(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        beginnings = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        kept = {part: self._store.positions.get(part.partition, 0) for part in partitions}
        outside = [
            part for part, at in kept.items() if at > ends[part] or 0 < at < beginnings[part]
        ]
        if outside and not self.settings.embedded:  # that broker's ends are not to be trusted
            # The topic is not the one that the snapshot was made from, or it forgot deletions.
            log.warning("the snapshot does not fit %s: rebuilding from the beginning", outside)
            self._store = self._empty_store(self._embedder.model)
            kept = dict.fromkeys(partitions, 0)
        for part, at in kept.items():
            consumer.seek(part, max(at, beginnings[part]))

    def _write(self, applied: Applied) -> None:
        self._unreadable += applied.unreadable
        self._store.apply(applied.writes, positions=applied.positions, progress=applied.progress)
        now_s = time.time()
        self._metrics.applied(len(applied.writes))
        for write in applied.writes:
            self._metrics.fresh(now_s - write.ts / 1000)

    async def _note_caught_up(
        self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
    ) -> None:
        if self._caught_up:
            return
        for part in partitions:
            if await consumer.position(part) < self._ends[part.partition]:
                return
        self._caught_up = True
        log.info("caught up: %d records are searchable", len(self._store))

    def _snapshot(self) -> None:
        self._failpoint("before-snapshot")
        self._snapshot_at = time.monotonic()
        try:
            save(self._store, self.settings.index_dir, generation=self.settings.generation)
        except SnapshotError as error:  # a full disk: the topic is still there, and so is the index
            log.error("no snapshot was written, the last one stays: %s", error)

    def _first_store(self, model: Model) -> FlatStore:
        store = restore(self.settings.index_dir, **self._faiss)
        if store is None:
            return self._empty_store(model)
        if store.space != model.space or store.dim != model.dim:
            log.warning(
                "the snapshot holds space %s, the model makes %s: starting empty",
                store.space,
                model.space,
            )
            return self._empty_store(model)
        log.info("restored %d records from the snapshot", len(store))
        return store

    def _empty_store(self, model: Model) -> FlatStore:
        return FlatStore(space=model.space, dim=model.dim, **self._faiss)

    async def _take(self, champion: Champion) -> None:
        if champion.name == self._embedder.model.name:
            return
        if champion.space != self._store.space:
            raise RegistryError(
                f"{champion.name} lives in space {champion.space}, this index holds "
                f"{self._store.space}"
            )
        model = await asyncio.to_thread(
            load, self.registry.path(champion.name), device=self.settings.device
        )
        await asyncio.to_thread(model.check)
        self._embedder.swap(model)
        log.info("queries are embedded by %s from here on", model.name)

    async def _encode(self, query: QueryInput) -> QueryVectors:
        (vectors,) = await self._encode_many([query])
        return vectors

    async def _encode_many(self, queries: Sequence[QueryInput]) -> list[QueryVectors]:
        """A query is a record with fewer modalities: it is embedded by the same functions."""
        samples = [
            Sample(id="query", text=query.text, image=query.image, audio=query.audio)
            for query in queries
        ]
        try:
            model, embeddings = await asyncio.to_thread(self._embedder.embed_with, samples)
        except BadInput as error:
            raise BadQuery(error.field, error.reason) from error
        return [
            QueryVectors(fused=found.fused, by=dict(found.by), space=model.space, model=model.name)
            for found in embeddings
        ]

    def _serving(self, name: str | None) -> Serving:
        held = self.settings.generation
        if name not in (None, held):
            raise UnknownGeneration(str(name), [held])
        return Serving(
            generation=held,
            store=self._store,
            encode=self._encode,
            encode_many=self._encode_many,
            model=self._embedder.model.name,
        )

    def _deps(self, producer: Producer) -> ServiceDeps:
        async def delete(id_: str) -> tuple[int, int]:
            sent = await producer.delete(id_)
            assert sent is not None
            return sent

        return ServiceDeps(
            serving=self._serving,
            payloads=self._payloads,
            delete=delete,
            status=self._status,
            not_ready=self._not_ready,
            metrics=self._metrics,
            keys=self._keys,
            limits=self.settings.limits(),
            recent=self._recent,
        )

    def _not_ready(self) -> str | None:
        return None if self._caught_up else "still reading vectors up to where they were at start"

    def _status(self) -> dict[str, Any]:
        return {
            "model": self._embedder.model.name,
            "partitions": self._partitions,
            "caught_up": self._caught_up,
            "unreadable": self._unreadable,
            "topic": self.settings.topic("vectors"),
        }


def run(settings: Settings) -> None:
    """The process: wait for a model, then serve."""

    async def main() -> None:
        settings.keys()  # wrong ones end the process now, not when a model has come
        given = settings.model
        if given is None:
            registry = Registry(settings.models_dir, base=settings.model_name)
            champion = await first_champion(settings, registry)
            given = str(registry.path(champion.name))
        model = await asyncio.to_thread(load, given, device=settings.device)
        await IndexNode(settings, model).run()

    asyncio.run(main())
