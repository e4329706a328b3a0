"""The index node: reads `vectors`, keeps the index, embeds and answers queries.

For each generation that is open there is a reader without a group, a store, and the model that
embeds the queries put to it. The query service gets everything it needs as functions: it knows
neither Kafka nor the model.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import resource
import signal
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from braid.encoders.embedder import import_ahead, load
from braid.encoders.feature_cache import FeatureCache
from braid.encoders.types import Model
from braid.index.errors import NotServing, UnknownGeneration
from braid.index.generations import GenerationError
from braid.index.media_cache import SHARED_PREFIX, MediaCache
from braid.index.metrics import ServiceMetrics
from braid.index.payloads import Payloads
from braid.index.service.app import ServiceDeps, Serving, create_app
from braid.index.service.dependencies import RecentQueries
from braid.index.service.recall_probe import probe_for_ever
from braid.index.service.server import RETRY_AFTER_S, NodeServer

from ..collector import collect_as_usual
from ..failpoints import Failpoints
from ..feature_cache import CacheMetrics, feature_cache_of
from ..kafka.access import prepare
from ..kafka.producer import Producer
from ..kafka.waiting import until_reachable_async, where
from ..liveness.ending import STOP_WITHIN_S, end_within
from ..liveness.progress_watch import Watchdog, Watched
from ..media.rebuild import Rebuilder
from ..media.thumbnails import isolated_decoding
from ..registry.announcements import (
    FIRST_MODEL,
    answered,
    check_partitions,
    first_champion,
    follow_news,
)
from ..registry.versions import registry_of
from ..settings import Settings
from .dead_letter_counts import DeadLetterCounts
from .generations import Manager
from .stores import gpu_for

log = logging.getLogger(__name__)

PART_S = 6.0  # for each half of an orderly end
BEAT_S = 1.0
FIRST_MODEL_S = 60  # a client need not ask again before: somebody has to make it
# Times the bound of a worker: a snapshot of millions of rows is written or loaded meanwhile.
SLOW_DISK = 10
OTHER_FILES = 1024  # open beside connections: segments, the broker, Redis


class IndexNode:
    """The state of one index node and its tasks.

    Args:
        model: embeds queries to the generation; its space is that store's.
        cache: of features, which all models share; None: there is none.
    """

    def __init__(
        self,
        settings: Settings,
        generation: str,
        model: Model,
        cache: FeatureCache | None = None,
    ) -> None:
        self.settings, self._generation = settings, generation
        self._keys, self._hosts, self._limits = settings.keys(), settings.hosts(), settings.limits()
        self.registry = registry_of(settings)
        self._payloads = Payloads(settings.redis.address)
        self._rebuilder = Rebuilder(settings)
        self._metrics = ServiceMetrics()
        CacheMetrics(self._metrics.registry).show(cache)
        self._recent = RecentQueries()
        self._stopping = asyncio.Event()
        self._manager = Manager(
            settings,
            self.registry,
            first=generation,
            metrics=self._metrics,
            failpoint=Failpoints.from_environment(),
            gpu=gpu_for(settings),
            cache=cache,
        )
        self._manager.open(generation, model)

    async def run(self, server: NodeServer) -> None:
        """Serve until SIGTERM or SIGINT; a snapshot is taken on the way out."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        stopped = asyncio.create_task(self._stopping.wait(), name="signal")
        starting = asyncio.create_task(self._started(), name="start")
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            self._manager.stop()
            return
        stopped.cancel()
        partitions, producer = await starting
        gc.collect()
        gc.freeze()  # the model and the modules: to visit them stops all queries for 0.3 s
        server.app = create_app(self._deps(producer))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(producer)
            served = server.served
            stopped = asyncio.create_task(self._stopping.wait(), name="signal")
            for_ever = self._background()
            reading = asyncio.create_task(self._manager.run(partitions), name="reading")
            try:
                done, _ = await asyncio.wait(
                    {served, stopped, reading, *for_ever}, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()  # an error of one task ends the process
            except Exception:
                end_within(STOP_WITHIN_S, status=1, why="a part of the index node failed")
                raise
            finally:
                server.should_exit = True
                stopped.cancel()
                for task in for_ever:
                    task.cancel()
                await asyncio.wait(for_ever or {served}, timeout=PART_S)
                self._manager.stop()
                await asyncio.wait({served, reading}, timeout=PART_S)
                await asyncio.to_thread(self._rebuilder.close)

    async def _started(self) -> tuple[int, Producer]:
        """The partition count and a connected producer; a broker that is away is waited for."""
        settings = self.settings

        async def partitions_of(bound_s: float) -> int:
            partitions = await asyncio.to_thread(
                prepare, settings, self._generation, "index", timeout_s=bound_s
            )
            await check_partitions(settings, partitions, timeout_s=bound_s)
            return partitions

        async def connected(_: float) -> Producer:
            return await Producer(settings).__aenter__()

        partitions = await until_reachable_async(settings, partitions_of)
        return partitions, await until_reachable_async(settings, connected)

    def _stop(self, number: int) -> None:
        end_within(STOP_WITHIN_S, status=0, why=signal.Signals(number).name)
        self._stopping.set()

    async def _beat(self) -> None:
        """Tell the watchdog that the event loop runs, until it is cancelled."""
        watchdog = Watchdog(self.settings, self._watched).start()
        try:
            while True:
                for name in self._manager.generations.names:
                    self._manager.generations.get(name).reader.progress.pass_()
                await asyncio.sleep(BEAT_S)
        finally:
            watchdog.stop()

    def _watched(self) -> list[Watched]:
        readers = {
            name: self._manager.generations.get(name).reader
            for name in self._manager.generations.names
        }
        return [
            Watched(
                name=f"the reader of {name}",
                progress=reader.progress,
                readable=reader.readable,
                bound_s=SLOW_DISK * self.settings.worker.progress_timeout_s,
            )
            for name, reader in readers.items()
        ]

    def _background(self) -> list[asyncio.Task[None]]:
        """What runs beside, until it is cancelled."""
        tasks = [asyncio.create_task(self._beat(), name="beat")]
        if self.settings.model.spec is None:
            following = follow_news(self.settings, self._manager.look)
            tasks.append(asyncio.create_task(following, name="models"))
        if self.settings.index.recall_probe_s:
            probing = probe_for_ever(
                lambda: self._serving(None),
                self._recent,
                self._metrics,
                every_s=self.settings.index.recall_probe_s,
                rng=random.Random(0),
            )
            tasks.append(asyncio.create_task(probing, name="probe"))
        return tasks

    def _serving(self, name: str | None) -> Serving:
        generations = self._manager.generations
        try:
            generation = generations.serving if name is None else generations.get(name)
        except GenerationError:
            if name is None:
                raise NotServing(self._closed()) from None
            raise UnknownGeneration(name, generations.names) from None
        return generation.serving()

    def _closed(self) -> str:
        """Why nothing is searched by default: this node was away when generations changed."""
        generations = self._manager.generations
        return (
            f"{generations.alias.name} was searched here last and is not open, "
            f"{', '.join(generations.names)} is still being read"
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
            generations=lambda: self._manager.generations.names,
            metrics=self._metrics,
            keys=self._keys,
            hosts=self._hosts,
            limits=self._limits,
            recent=self._recent,
            media_cache=MediaCache(self._payloads, budget=self.settings.media.bytes),
            rebuild=self._rebuilder.rebuild,
            enlarge=self._rebuilder.enlarge,
            shared=MediaCache(
                # Megabytes that come late: searches must not take Redis for unavailable.
                Payloads(self.settings.redis.address),
                budget=self.settings.media.shared_bytes,
                prefix=SHARED_PREFIX,
            ),
            dead_letters=DeadLetterCounts(self.settings),
        )

    def _not_ready(self) -> str | None:
        try:
            serving = self._manager.generations.serving
        except GenerationError:
            return self._closed()
        return serving.reader.behind()

    def _status(self) -> dict[str, Any]:
        generation = self._manager.generations.serving
        return {
            "model": generation.embedder.model.name,
            "partitions": self._manager.partitions,
            **generation.reader.status(),
            "building": self._manager.building(),
        }


def _allow_files(count: int) -> None:
    """Raise this process's limit on open files to what is needed, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


async def run_node(settings: Settings, server: NodeServer) -> None:
    """Wait for a model and the broker, then serve; the server's reason says what is waited for."""
    source, generation = settings.model.spec, settings.generation
    if source is None:
        import_ahead(source)
        registry = registry_of(settings)
        server.reason = f"waiting for the registry at {registry.place}"
        if await answered(settings, registry.champion) is None:
            server.reason = FIRST_MODEL
            server.retry_after_s = FIRST_MODEL_S
        champion = await first_champion(settings, registry)
        server.reason = f"fetching {champion.name} from {registry.place}"
        server.retry_after_s = RETRY_AFTER_S
        source = str(await answered(settings, partial(registry.folder, champion.name)))
        generation = champion.generation
    server.reason = f"loading the model {Path(source).name}"
    cache = feature_cache_of(settings)
    model = await asyncio.to_thread(load, source, cache=cache, **settings.loading)
    _allow_files(OTHER_FILES + 2 * settings.http.connections)
    server.reason = f"waiting for Kafka at {where(settings)}"
    collect_as_usual()
    with isolated_decoding(settings):
        try:
            await IndexNode(settings, generation, model, cache).run(server)
        finally:
            if cache is not None:
                await asyncio.to_thread(cache.close)
