"""The index node: vectors, read committed, become searchable; queries are embedded and answered.

For each generation that is open there is a reader without a group, a store, and the model that
embeds the queries put to it. The query service gets everything it needs as functions: it knows
neither Kafka nor the model.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from encoders.embedder import Embedder, load
from encoders.errors import BadInput
from encoders.types import Model, Sample
from index.arrivals import Arrivals
from index.errors import BadQuery, UnknownGeneration
from index.generations import GenerationError, Generations
from index.metrics import ServiceMetrics
from index.payloads import Payloads
from index.recall_probe import RecentQueries, probe_for_ever
from index.service import (
    QueryInput,
    QueryVectors,
    ServiceDeps,
    Serving,
    create_app,
    server_config,
)
from index.shelf import Shelf

from .announcements import check_partitions, first_champion, follow_champion
from .errors import RegistryError
from .failpoints import Failpoints
from .models import Champion, Registry
from .producer import Producer
from .reader import Reader
from .rebuild import Rebuilder
from .settings import Settings
from .stores import gpu_for, open_kept
from .topics import ensure

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Leaves signals alone: uvicorn's own handling ends the process before the snapshot."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Generation:
    """One generation on this node: its reader, its store, and what embeds its queries.

    Args:
        arrivals: what the reader has applied last.
    """

    def __init__(self, name: str, model: Model, reader: Reader, arrivals: Arrivals) -> None:
        self.name, self.reader, self.arrivals = name, reader, arrivals
        self.embedder = Embedder(model)
        self.stopping = asyncio.Event()

    def serving(self) -> Serving:
        return Serving(
            generation=self.name,
            store=self.reader.kept.store,
            encode=self._encode,
            encode_many=self._encode_many,
            model=self.embedder.model.name,
            arrivals=self.arrivals,
        )

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
            model, embeddings = await asyncio.to_thread(self.embedder.embed_with, samples)
        except BadInput as error:
            raise BadQuery(error.field, error.reason) from error
        return [
            QueryVectors(fused=found.fused, by=dict(found.by), space=model.space, model=model.name)
            for found in embeddings
        ]


class IndexNode:
    """The state of one index node and its tasks.

    Args:
        model: embeds queries to the settings' generation; its space is that store's.
    """

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings = settings
        self._keys = settings.keys()
        self.registry = Registry(settings.models_dir, base=settings.model_name)
        self._failpoint = Failpoints.from_environment()
        self._payloads = Payloads(settings.redis_url)
        self._rebuilder = Rebuilder(settings)
        self._metrics = ServiceMetrics()
        self._gpu = gpu_for(settings)
        self._recent = RecentQueries()
        self._partitions = 0
        self._stopping = asyncio.Event()
        self.generations: Generations[Generation] = Generations(
            settings.index_home, first=settings.generation
        )
        self.generations.sweep()
        self.generations.add(settings.generation, self._make(settings.generation, model))

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a snapshot is taken on the way out."""
        self._partitions = await asyncio.to_thread(ensure, self.settings)
        await check_partitions(self.settings, self._partitions)
        async with Producer(self.settings) as producer:
            server = self._server(producer)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
            served = asyncio.create_task(server.serve(), name="serve")
            stopped = asyncio.create_task(self._stopping.wait(), name="signal")
            for_ever = self._background()
            readers = [
                asyncio.create_task(self._read(self.generations.get(name)), name=name)
                for name in self.generations.names
            ]
            try:
                done, _ = await asyncio.wait(
                    {served, stopped, *for_ever, *readers}, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()  # an error of one task ends the process
            finally:
                server.should_exit = True
                stopped.cancel()
                for name in self.generations.names:
                    self.generations.get(name).stopping.set()
                for task in for_ever:
                    task.cancel()
                await asyncio.wait({served, *for_ever, *readers}, timeout=30)
                for name in self.generations.names:
                    self.generations.get(name).embedder.close()
                await asyncio.to_thread(self._rebuilder.close)

    def _background(self) -> list[asyncio.Task[None]]:
        """What runs beside, until it is cancelled."""
        tasks = []
        if self.settings.model is None:
            following = follow_champion(self.settings, self.registry, self._take)
            tasks.append(asyncio.create_task(following, name="models"))
        if self.settings.recall_probe_s:
            probing = probe_for_ever(
                lambda: self._serving(None),
                self._recent,
                self._metrics,
                every_s=self.settings.recall_probe_s,
                rng=random.Random(0),
            )
            tasks.append(asyncio.create_task(probing, name="probe"))
        return tasks

    def _server(self, producer: Producer) -> uvicorn.Server:
        return _Server(
            server_config(
                create_app(self._deps(producer)),
                host=self.settings.http_host,
                port=self.settings.http_port,
            )
        )

    def _make(self, name: str, model: Model) -> Generation:
        settings = self.settings.model_copy(update={"generation": name})
        kept = open_kept(
            settings, model, metrics=self._metrics, failpoint=self._failpoint, gpu=self._gpu
        )
        arrivals = Arrivals()
        reader = Reader(
            settings,
            kept,
            metrics=self._metrics,
            failpoint=self._failpoint,
            applied=arrivals.applied,
        )
        return Generation(name, model, reader, arrivals)

    async def _read(self, generation: Generation) -> None:
        await generation.reader.run(self._partitions, generation.stopping)

    async def _take(self, champion: Champion) -> None:
        generation = self.generations.serving
        if champion.name == generation.embedder.model.name:
            return
        held = generation.reader.kept.store.space
        if champion.space != held:
            raise RegistryError(
                f"{champion.name} lives in space {champion.space}, this index holds {held}"
            )
        model = await asyncio.to_thread(
            load, self.registry.path(champion.name), device=self.settings.device
        )
        await asyncio.to_thread(model.check)
        generation.embedder.swap(model)
        log.info("queries are embedded by %s from here on", model.name)

    def _serving(self, name: str | None) -> Serving:
        try:
            found = self.generations.serving if name is None else self.generations.get(name)
        except GenerationError:
            raise UnknownGeneration(
                name or self.generations.alias.name, self.generations.names
            ) from None
        return found.serving()

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
            generations=lambda: self.generations.names,
            metrics=self._metrics,
            keys=self._keys,
            limits=self.settings.limits(),
            recent=self._recent,
            shelf=Shelf(self._payloads, budget=self.settings.media_bytes),
            rebuild=self._rebuilder.rebuild,
        )

    def _not_ready(self) -> str | None:
        if self.generations.serving.reader.caught_up:
            return None
        return "still reading vectors up to where they were at start"

    def _status(self) -> dict[str, Any]:
        generation = self.generations.serving
        return {
            "model": generation.embedder.model.name,
            "partitions": self._partitions,
            **generation.reader.status(),
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
