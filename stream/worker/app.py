"""The Faust application that hosts the embed worker: `braid embed`.

The hot path is a service of the app with its own consumer, producer and group
(`braid.stream.worker.worker`): a Faust stream has a cost per event and acknowledges failed events.
Faust provides the lifecycle, supervision and the agents, such as the windows of output statistics.

`faust -A braid.stream.worker.app worker` works as well; `app` is created at its first access.
"""

from __future__ import annotations

import asyncio
import logging
import signal as signal_
from collections.abc import Iterable
from functools import partial
from typing import Any

import faust
from mode import Service
from mode.types import ServiceT

from braid.encoders.embedder import import_ahead, load
from braid.encoders.feature_cache import FeatureCache
from braid.encoders.timings import watchers
from braid.encoders.types import Model

from ..feature_cache import feature_cache_of
from ..kafka.access import prepare
from ..kafka.security import faust_credentials
from ..kafka.slots import claim_slot
from ..kafka.topics import ensure
from ..kafka.waiting import until_reachable, until_reachable_async
from ..liveness.ending import STOP_WITHIN_S, end_within
from ..liveness.interpreter import tune_interpreter
from ..liveness.progress_watch import Watchdog
from ..media.payload_writer import RedisShowcase
from ..media.thumbnails import isolated_decoding
from ..monitoring import metrics as metrics_
from ..monitoring.drift import add_drift
from ..monitoring.heartbeat import Heartbeat
from ..monitoring.steps import traced
from ..monitoring.trace import trace_of
from ..registry.announcements import (
    FIRST_MODEL,
    answered,
    check_partitions,
    first_champion,
    follow_news,
)
from ..registry.canaries import Canaries
from ..registry.generations import GenerationRecords
from ..registry.versions import registry_of
from ..settings import Settings
from ..settings import load as load_settings
from ..tracing import tracing_of
from ..trainer.schedule import Trigger, add_schedule
from .health import health, watched_worker
from .join.loop import JoinThread
from .supervisor import Host

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
END_WITHIN_S = 30.0  # a shutdown after an error takes a few seconds


METADATA_MS = 5_000
"""Faust learns of the partitions of a changelog, which it has just made, no later; until then the
agent of drift fails on each message (PartitionsMismatch). aiokafka's default is five minutes."""


def create_app(settings: Settings) -> faust.App:
    """The Faust app of one embed worker."""
    datadir = settings.home / "faust"
    datadir.mkdir(parents=True, exist_ok=True)
    app = WorkerApp(
        settings.app_id,
        broker=[f"aiokafka://{address}" for address in settings.kafka.bootstrap.split(",")],
        broker_credentials=faust_credentials(settings),
        web_enabled=False,  # Faust's own server listens on every address
        topic_disable_leader=True,
        topic_allow_declare=False,  # `ensure` has made all topics
        topic_partitions=settings.kafka.partitions,
        topic_replication_factor=settings.kafka.replication,
        datadir=str(datadir),
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=settings.kafka.session_timeout_s,
        broker_heartbeat_interval=settings.kafka.session_timeout_s / 5,
        consumer_metadata_max_age_ms=METADATA_MS,
    )
    metrics, trigger = metrics_.WorkerMetrics(), Trigger(settings)
    add_schedule(app, settings, trigger)
    add_drift(app, settings, metrics, trigger)
    app.embed = EmbedService(settings, metrics)
    return app


class WorkerApp(faust.App):
    """Starts the embed service first and stops it first.

    Faust starts its registered services after the first rebalance and the recovery of its tables.
    The hot path must wait for neither.
    """

    embed: EmbedService

    def on_init_dependencies(self) -> Iterable[ServiceT]:
        return [self.embed, *super().on_init_dependencies()]

    async def on_stop(self) -> None:
        await self.embed.stop()
        await super().on_stop()


class EmbedService(Service):
    """Runs the workers on their threads, sends heartbeats, and follows the registry."""

    def __init__(self, settings: Settings, metrics: metrics_.WorkerMetrics, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings
        self.registry = registry_of(settings)
        self.metrics = metrics
        self.host: Host | None = None
        self._cache: FeatureCache | None = None
        self._join: JoinThread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._serves = asyncio.Event()
        self._without_model = False

    async def on_start(self) -> None:
        self._ended = asyncio.get_running_loop().create_future()

    @Service.task
    async def _serve(self) -> None:
        """Start the join and the serving worker, on threads of their own.

        An error of the serving worker ends the process.
        """
        assert self._ended is not None
        settings = self.settings
        if settings.metrics.port is not None:
            metrics_.serve(
                self.metrics.registry, settings.metrics.host, settings.metrics.port, self._health
            )
        partitions = await until_reachable_async(settings, partial(_ensure, settings))
        await until_reachable_async(
            settings, lambda bound_s: check_partitions(settings, partitions, timeout_s=bound_s)
        )
        self._slot = claim_slot(settings)
        watchers.append(self.metrics.sub_batches.add)
        if (trace := trace_of(settings)) is not None:
            watchers.append(traced(trace))
        self._join = JoinThread(settings, slot=self._slot.name, metrics=self.metrics.join)
        self._join.start()
        self._cache = feature_cache_of(settings)
        self.metrics.cache.show(self._cache)
        generation, model = await self._first()
        self._showcase = RedisShowcase(settings.redis.address, dropped=self.metrics.not_shown)
        self._heartbeat = Heartbeat(settings, self._slot.name, self.metrics)
        host = Host(
            settings,
            self.registry,
            slot=self._slot.name,
            metrics=self.metrics,
            showcase=self._showcase,
            ended=self._end,
            cache=self._cache,
        )
        self._watchdog = Watchdog(
            settings, lambda: [watched_worker(settings, *each) for each in host.watched()]
        ).start()
        known = settings.model.spec is None
        tune_interpreter()
        await asyncio.to_thread(host.start, generation, model, serves=True, known=known)
        self.host = host
        self._serves.set()
        await asyncio.shield(self._ended)

    async def on_stop(self) -> None:
        watchers.clear()
        if self._join is not None:
            self._join.stop()
        if self.host is not None:
            self._watchdog.stop()
            await asyncio.to_thread(self.host.close)
            self._showcase.close()
            self._heartbeat.close()
        if self._cache is not None:
            self._cache.close()
        if self._join is not None:
            await asyncio.to_thread(self._join.close)
            self._slot.release()

    @Service.task
    async def _refresh(self) -> None:
        await self._serves.wait()
        if self.settings.model.spec is None:
            await follow_news(self.settings, self._look)

    @Service.task
    async def _beat(self) -> None:
        while not self.should_stop:
            if (host := self.host) is not None:
                owned = host.live.owned if host.live is not None else []
                beat = self._heartbeat.beat
                problems = {**host.problems, **(self._join.problems if self._join else {})}
                await asyncio.to_thread(beat, host.serving, owned, problems)
            await self.sleep(HEARTBEAT_S)

    def _health(self) -> tuple[bool, dict[str, Any]]:
        host = self.host
        if self._without_model:
            return True, {"status": FIRST_MODEL}
        serving = self.settings.generation if host is None else host.serving
        live, away = (None, None) if host is None else (host.live, self._watchdog.broker.reason)
        return health(self.settings, live, serving, away)

    async def _first(self) -> tuple[str, Model]:
        """The serving generation and its model."""
        source = self.settings.model.spec
        generation = self.settings.generation
        if source is None:
            registry = self.registry
            self._without_model = await answered(self.settings, registry.champion) is None
            champion = await first_champion(self.settings, registry)
            self._without_model = False
            folder = await answered(self.settings, partial(registry.folder, champion.name))
            source = str(folder)
            generation = champion.generation
        model = await asyncio.to_thread(load, source, cache=self._cache, **self.settings.loading)
        return generation, model

    async def _look(self) -> None:
        """Follow the registry: load new versions, check them, and switch between two batches."""
        assert self.host is not None
        champion = await asyncio.to_thread(self.registry.champion)
        if champion is not None:
            fed = await asyncio.to_thread(GenerationRecords(self.registry.log).fed)
            canary = await asyncio.to_thread(Canaries(self.registry.log).running, champion)
            await asyncio.to_thread(self.host.follow, fed, champion.generation, canary)

    def _end(self, error: BaseException | None) -> None:
        """End the process after the serving worker has ended."""
        assert self._ended is not None
        if error is not None:
            # If the app stops while the thread of Faust's consumer rejoins its group, that thread
            # remains, and Python waits for it without limit.
            end_within(END_WITHIN_S, status=1, why="the worker stopped")
        self._ended.get_loop().call_soon_threadsafe(_set_ended, self._ended, error)


async def _ensure(settings: Settings, bound_s: float) -> int:
    return await asyncio.to_thread(
        ensure, settings, settings.generation, role="worker", timeout_s=bound_s
    )


class _Process(faust.Worker):
    """Faust's worker, with a time limit for its end after a signal, and with braid's logging.

    Faust's own would replace the handlers of `logs.set_up`, which redact secrets.
    """

    def _setup_logging(self) -> None: ...

    def _schedule_shutdown(self, signal: signal_.Signals) -> None:
        end_within(STOP_WITHIN_S, status=0, why=signal.name)
        super()._schedule_shutdown(signal)


def _set_ended(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)


def run(settings: Settings) -> None:
    """Run the worker in this process; ends by SystemExit.

    Waits for the broker.

    Raises:
        ConfigError: the topics do not match the settings, or worker.profile cannot be written.
    """
    trace_of(settings)
    tracing_of(settings, "braid-embed")
    import_ahead(settings.model.spec)  # while Kafka is connected to, or the first model trained
    # Before Faust looks at its topics, and counts on as many partitions.
    partitions = until_reachable(
        settings,
        lambda bound_s: prepare(settings, settings.generation, "worker", timeout_s=bound_s),
    )
    settings = settings.replace(kafka={"partitions": partitions})
    worker = _Process(
        create_app(settings),
        redirect_stdouts=False,
        quiet=True,
        debug=False,
    )
    worker.spinner = None  # writes terminal codes to standard output
    with isolated_decoding(settings):
        worker.execute_from_commandline()


def __getattr__(name: str) -> Any:
    if name == "app":
        return create_app(load_settings())
    raise AttributeError(name)
