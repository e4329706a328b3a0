"""Opens, refreshes, flips and drops the generations of one index node.

The registry decides: the champion names the serving generation, and
`braid.stream.registry.generations` the generations that are fed. The first node that finds a built
generation ready flips to it (`braid.stream.registry.promotion`); the others follow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from braid.encoders.embedder import load
from braid.encoders.feature_cache import FeatureCache
from braid.encoders.types import Model
from braid.index.generations import Generations
from braid.index.metrics import ServiceMetrics
from braid.index.segments.gpu import Gpu
from braid.index.service.recent_writes import RecentWrites

from ..errors import RegistryError, StreamError
from ..failpoints import Failpoints
from ..kafka.admin import Admin
from ..kafka.topics import ensure
from ..registry.announcements import announce_anew
from ..registry.generations import GenerationRecord, GenerationRecords
from ..registry.ownership import finish, return_ownership
from ..registry.promotion import delete_resources, end_grace, flip, return_abandoned, superseded_by
from ..registry.versions import Champion, Registry
from ..settings import Settings
from .flip_check import Readiness, readiness
from .generation import Generation
from .reader import Reader
from .stores import open_store

log = logging.getLogger(__name__)


class Manager:
    """Opens and closes generations. `open` before `run`, everything else while it runs.

    Args:
        first: the generation that serves until the node has an alias.
        cache: of features, which all models share; None: there is none.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        first: str,
        metrics: ServiceMetrics,
        failpoint: Failpoints,
        gpu: Gpu | None,
        cache: FeatureCache | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._registry = settings, registry
        self._metrics, self._failpoint, self._gpu = metrics, failpoint, gpu
        self._cache, self._wall = cache, wall
        self._generation_records = GenerationRecords(registry.log)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._readiness: dict[str, Readiness] = {}
        self._handed_over: int | None = None  # the champion whose generation owns all predictions
        self._announced = False  # the champion, once after the start
        self._deleted: set[str] = set()  # dropped generations whose topic and group are deleted
        self._changed = asyncio.Event()
        self._stopping = False
        self.partitions = 0
        self.generations: Generations[Generation] = Generations(settings.index_home, first=first)
        self.generations.sweep()

    def open(self, name: str, model: Model) -> None:
        """Open a generation with the model for its queries."""
        metrics = self._metrics.of(name)
        kept = open_store(
            self._settings, name, model, metrics=metrics, failpoint=self._failpoint, gpu=self._gpu
        )
        recent_writes = RecentWrites()
        reader = Reader(
            self._settings,
            name,
            kept,
            metrics=metrics,
            failpoint=self._failpoint,
            applied=recent_writes.applied,
        )
        self.generations.add(name, Generation(name, model, reader, recent_writes))
        self._changed.set()

    async def run(self, partitions: int) -> None:
        """Run the readers of all open generations until `stop`; raises the error of any reader."""
        self.partitions = partitions
        while True:
            self._changed.clear()
            for name in self.generations.names:
                generation = self.generations.get(name)
                if name not in self._readers and not generation.stopping.is_set():
                    reading = generation.reader.run(partitions, generation.stopping)
                    self._readers[name] = asyncio.create_task(reading, name=f"read {name}")
            waking = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait(
                    {waking, *self._readers.values()}, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                waking.cancel()
            for name, task in list(self._readers.items()):
                if task.done():
                    del self._readers[name]
                    if (error := task.exception()) is not None:
                        kind = type(error).__name__
                        log.critical("the reader of %s failed: %s: %s", name, kind, error)
                        raise error
            if self._stopping and not self._readers:
                return

    def stop(self) -> None:
        """Stop the readers, which persist their stores."""
        self._stopping = True
        for name in self.generations.names:
            generation = self.generations.get(name)
            generation.stopping.set()
            generation.embedder.close()
        self._changed.set()

    def building(self) -> dict[str, Any]:
        """The readiness of the generations that are being built."""
        return {name: asdict(state) for name, state in self._readiness.items()}

    async def look(self) -> None:
        """Follow the registry, and flip to a generation that is ready.

        Raises:
            RegistryError, CheckpointError: a generation could not be followed; the others were.
        """
        champion = await asyncio.to_thread(self._registry.champion)
        if champion is None or self._stopping or not self.partitions:
            return
        now_ms = 1000 * self._wall()
        await asyncio.to_thread(return_abandoned, self._settings, self._registry, now_ms=now_ms)
        fed = await asyncio.to_thread(self._generation_records.fed)
        problems = []
        for name, model in fed.items():
            try:
                await self._refresh(name, model)
            except Exception as error:  # noqa: BLE001 (the other generations are still followed)
                problems.append(f"{name}: {error}")
        await self._follow_alias(champion)
        for name in set(self.generations.names) - set(fed) - {self.generations.alias.name}:
            await self._drop(name)
        await self._build()
        if self._handed_over != champion.seq and await asyncio.to_thread(
            finish, self._settings, self._registry, now_ms=now_ms
        ):
            self._handed_over = champion.seq
        await asyncio.to_thread(end_grace, self._settings, self._registry, now_ms=now_ms)
        for entry in await asyncio.to_thread(self._generation_records.all):
            name = entry.generation
            if entry.state != "dropped" or name in fed:
                continue
            if name in self.generations.kept() and name != self.generations.alias.name:
                await asyncio.to_thread(self.generations.drop, name)
                log.info("generation %s was dropped while this node was away", name)
            if name in self._deleted:
                continue
            if await asyncio.to_thread(delete_resources, self._settings, entry):
                self._deleted.add(name)
        if not self._announced:
            self._announced = True
            try:
                await asyncio.to_thread(announce_anew, self._settings, self._registry)
            except StreamError as error:  # processes look into the registry, too
                log.warning("the champion is not announced again: %s", error)
        if problems:
            raise RegistryError("; ".join(problems))

    async def _refresh(self, name: str, model_name: str) -> None:
        """Open a generation, or switch it to its present version."""
        if name not in self.generations.names:
            model = await self._loaded(model_name)
            await asyncio.to_thread(ensure, self._settings, name, role="index")
            self.open(name, model)
            log.info("generation %s is open, embedded by %s", name, model_name)
            return
        generation = self.generations.get(name)
        if generation.embedder.model.name == model_name:
            return
        model = await self._loaded(model_name)
        held = generation.reader.kept.store.space
        if model.space != held:
            raise RegistryError(f"{model_name} lives in space {model.space}, it holds {held}")
        generation.embedder.swap(model)
        log.info("queries to %s are embedded by %s from here on", name, model_name)

    async def _follow_alias(self, champion: Champion) -> None:
        """Serve the champion's generation as soon as this node has caught up with it."""
        to = champion.generation
        if to == self.generations.alias.name or to not in self.generations.names:
            return
        if self.generations.get(to).reader.caught_up:
            self._readiness.pop(to, None)
            await asyncio.to_thread(self.generations.flip, to)
            await asyncio.to_thread(self.generations.get(to).reader.kept.serve)

    async def _drop(self, name: str) -> None:
        self.generations.get(name).stopping.set()
        reading = self._readers.get(name)
        if reading is not None:
            await asyncio.wait({reading})
        dropped = await asyncio.to_thread(self.generations.drop, name)
        self._readiness.pop(name, None)
        if dropped is not None:
            await asyncio.to_thread(dropped.reader.kept.drop)
            dropped.embedder.close()
        self._metrics.forget(name)
        log.info("generation %s is dropped", name)

    async def _build(self) -> None:
        """Check the readiness of built generations, and flip to a ready one."""
        serving = self.generations.alias.name
        for entry in await asyncio.to_thread(self._generation_records.all):
            name = entry.generation
            if entry.state != "building" or name not in self.generations.names:
                continue
            if not self.generations.get(name).reader.caught_up:
                continue
            current = await asyncio.to_thread(self._readiness_of, entry, serving)
            by = await asyncio.to_thread(superseded_by, self._registry, entry)
            if current.waits_for is None and by:
                await asyncio.to_thread(return_ownership, self._settings, self._registry, entry)
                current = replace(current, stops=by)
            before = self._readiness.get(name)
            self._readiness[name] = current
            if current.stops and (before is None or before.stops != current.stops):
                log.error("%s does not take over: %s", name, current.stops)
            if current.waits_for or current.stops:
                continue
            flipped = await asyncio.to_thread(
                flip,
                self._settings,
                self._registry,
                name,
                entry.model,
                why=f"built for {entry.model}",
                now_ms=1000 * self._wall(),
                after=entry.seq,
            )
            await self._follow_alias(flipped)

    def _readiness_of(self, entry: GenerationRecord, serving: str) -> Readiness:
        topic = self._settings.topic("records")
        ends = Admin(self._settings).ends(topic, self.partitions)
        stores = {
            name: self.generations.get(name).reader.kept.store
            for name in (serving, entry.generation)
        }
        return readiness(self._settings, entry, stores, serving=serving, ends=ends)

    async def _loaded(self, name: str) -> Model:
        model = await asyncio.to_thread(
            load,
            self._registry.folder(name),
            cache=self._cache,
            **self._settings.loading,
        )
        await asyncio.to_thread(model.check)
        return model
