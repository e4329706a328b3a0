"""The workers of one process: one for each generation that is fed.

There is a worker for the serving generation and, while a new generation is built or an old one is
in its rollback window, another one. Each has its own group, topic, transactional id and model.

An error of the serving generation's worker ends the process. Any other worker is restarted with
exponential backoff, and the serving one continues.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from braid.encoders.embedder import load
from braid.encoders.feature_cache import FeatureCache
from braid.encoders.types import Model

from ..errors import BrokerError, RegistryError
from ..kafka.admin import Admin
from ..kafka.topics import ensure
from ..kafka.waiting import until_reachable
from ..monitoring.metrics import WorkerMetrics
from ..registry.canaries import Canary
from ..registry.generations import GenerationRecords
from ..registry.handover import Ownership
from ..registry.ownership import handovers_of
from ..registry.versions import Registry
from ..retries import Retries
from ..settings import Settings
from .backfill import backfill_for
from .canary_shadow import CanaryShadow
from .in_flight import Showcase
from .source import Throttle
from .worker import Worker

log = logging.getLogger(__name__)

STOP_WORKER_S = 30.0  # more than the sum of a worker's own shutdown timeouts


@dataclass(slots=True)
class Hosted:
    """A worker, its thread, and the error that ended it."""

    worker: Worker
    thread: threading.Thread = field(init=False)
    error: BaseException | None = None


class Host:
    """Starts, swaps and ends the process's workers. Its methods are called by one thread.

    Args:
        slot: this process's part of the transactional ids.
        ended: called from the serving worker's thread when it ends, with the error; None: it was
            stopped.
        cache: of features, which all models share; None: there is none.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        slot: str,
        metrics: WorkerMetrics,
        showcase: Showcase | None,
        ended: Callable[[BaseException | None], None],
        cache: FeatureCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._registry = settings, registry
        self._slot, self._metrics, self._showcase = slot, metrics, showcase
        self._ended, self._cache = ended, cache
        self._hosted: dict[str, Hosted] = {}
        self._serving = settings.generation
        self._building: frozenset[str] = frozenset()
        self._shadow: CanaryShadow | None = None
        self._retries = Retries[tuple[str, str]](clock)  # by generation and model
        self.problems: Mapping[
            str, str
        ] = {}  # generation -> why its worker or model is not as the registry says

    @property
    def models(self) -> Mapping[str, str]:
        """Generation -> the model that feeds it."""
        return {name: hosted.worker.model.name for name, hosted in self._hosted.items()}

    def watched(self) -> list[tuple[str, Worker]]:
        """The workers with their generations, for the watchdog."""
        return [
            (name, hosted.worker)
            for name, hosted in list(self._hosted.items())
            if hosted.error is None
        ]

    @property
    def serving(self) -> str:
        """The serving generation, as of the last `follow`."""
        return self._serving

    @property
    def live(self) -> Worker | None:
        """The serving generation's worker."""
        hosted = self._hosted.get(self._serving)
        return None if hosted is None else hosted.worker

    def start(self, generation: str, model: Model, *, serves: bool, known: bool = True) -> None:
        """Start a worker for a generation, at its group's committed offsets.

        Args:
            serves: it is the serving generation.
            known: ownership follows the registry; else this worker publishes every prediction.
        """
        settings = self._settings
        if serves:
            until_reachable(
                settings,
                lambda bound_s: ensure(settings, generation, role="worker", timeout_s=bound_s),
            )
            self._serving = generation
        else:
            ensure(settings, generation, role="worker")
        if settings.kafka.group_protocol == "consumer":
            _set_timeouts(settings, generation)
        ownership = None
        entry = GenerationRecords(self._registry.log).get(generation)
        if known:
            champion = self._registry.champion()
            first = champion.generation if champion is not None else generation
            handovers = handovers_of(settings, self._registry)
            ownership = Ownership(handovers, generation=generation, first=first)
        worker = Worker(
            settings,
            model,
            generation=generation,
            transactional_id=f"{settings.group(generation)}-{self._slot}",
            metrics=self._metrics,
            showcase=self._showcase if serves else None,
            ownership=ownership,
            backfill=backfill_for(settings, self._registry, entry) if known else None,
            throttle=Throttle(settings.refresh.backfill_duty_cycle, lambda: self._busy(generation)),
        )
        hosted = self._hosted[generation] = Hosted(worker)
        hosted.thread = threading.Thread(target=self._run, args=[generation, hosted], daemon=True)
        hosted.thread.start()
        log.info("%s feeds generation %s", model.name, generation)

    def follow(self, fed: Mapping[str, str], serving: str, canary: Canary | None = None) -> None:
        """Start, switch and stop workers according to the registry.

        A new version is loaded and checked beside the old one, which continues if that fails.

        Args:
            canary: the running one; it runs in the serving generation's worker.

        Raises:
            RegistryError: a generation could not be followed, and why; the others were.
        """
        self._serving = serving
        generation_records = GenerationRecords(self._registry.log).all()
        self._building = frozenset(
            item.generation for item in generation_records if item.state == "building"
        )
        self._end_shadow(unless=canary)
        self._retries.keep(fed.items())
        problems = {}
        for generation, name in fed.items():
            try:
                self._feed(generation, name)
            except RegistryError as error:  # the other generations are still followed
                problems[generation] = str(error)
        for generation, item in self._hosted.items():
            item.worker.show(self._showcase if generation == serving else None)
        for generation in set(self._hosted) - set(fed):
            self.stop(generation)
        self._begin_shadow(canary)
        self.problems = problems
        if problems:
            raise RegistryError("; ".join(f"{name}: {why}" for name, why in problems.items()))

    def stop(self, generation: str) -> None:
        """Stop a generation's worker, which first publishes what it has encoded."""
        hosted = self._hosted.pop(generation)
        hosted.worker.stop()
        hosted.thread.join(STOP_WORKER_S)
        self._metrics.forget(generation)
        log.info("generation %s is fed no longer", generation)

    def close(self) -> None:
        for hosted in self._hosted.values():
            hosted.worker.stop()
        until = time.monotonic() + STOP_WORKER_S
        for hosted in self._hosted.values():
            hosted.thread.join(max(0.0, until - time.monotonic()))

    def _feed(self, generation: str, name: str) -> None:
        """Make sure that a generation has a worker with this model.

        After a failure it waits for the backoff, unless the serving generation has no worker.
        """
        hosted = self._hosted.get(generation)
        if hosted is not None and hosted.error is not None:
            del self._hosted[generation]
            self._retries.failed((generation, hosted.worker.model.name), _described(hosted.error))
            hosted = None
        if hosted is not None and hosted.worker.model.name == name:
            return
        failure = self._retries.pausing((generation, name))
        if failure is not None and (hosted is not None or generation != self._serving):
            raise RegistryError(str(failure))
        try:
            if hosted is None:
                self.start(generation, self._loaded(name), serves=generation == self._serving)
            else:
                hosted.worker.offer(self._loaded(name))
        except Exception as error:  # the other generations continue
            failure = self._retries.failed((generation, name), _described(error))
            raise RegistryError(str(failure)) from error

    def _end_shadow(self, unless: Canary | None) -> None:
        """End the canary first: a challenger must not run beside itself as champion."""
        if self._shadow is not None and (
            unless is None or unless.number != self._shadow.canary.number
        ):
            log.info(
                "canary %d with %s ends", self._shadow.canary.number, self._shadow.canary.model
            )
            self._shadow = None
        for generation, hosted in self._hosted.items():
            hosted.worker.set_shadow(self._shadow if generation == self._serving else None)

    def _begin_shadow(self, canary: Canary | None) -> None:
        """Load the challenger once. If that fails, its records are marked as failed, which the
        comparison shows."""
        if canary is not None and self._shadow is None:
            try:
                self._shadow = CanaryShadow(canary, self._loaded(canary.model))
            except Exception as error:  # noqa: BLE001 (the champion continues alone)
                log.error("canary %d: %s: %s", canary.number, canary.model, error)
                self._shadow = CanaryShadow(canary, None, broken=f"does not load: {error}")
            else:
                log.info("canary %d begins with %s", canary.number, canary.model)
        if self.live is not None:
            self.live.set_shadow(self._shadow)

    def _loaded(self, name: str) -> Model:
        model = load(self._registry.folder(name), cache=self._cache, **self._settings.loading)
        model.check()
        return model

    def _busy(self, generation: str) -> bool:
        """Whether this generation is being built and the live worker has records in flight.

        A generation in its rollback window is not throttled, so that a rollback is up to date.
        """
        building = generation in self._building and generation != self._serving
        return building and self.live is not None and self.live.busy

    def _run(self, generation: str, hosted: Hosted) -> None:
        try:
            hosted.worker.run()
        except BaseException as error:  # noqa: BLE001 (reported to the process, or to `follow`)
            if generation == self._serving:
                log.error("the worker of %s stops: %s", generation, error)
                self._ended(error)
            else:
                log.error("the worker of %s stops, the others go on: %s", generation, error)
                self._metrics.of(generation).failed()
                hosted.error = error
        else:
            if generation in self._hosted:  # else only this worker was stopped
                self._ended(None)


def _set_timeouts(settings: Settings, generation: str) -> None:
    """Set the session timeout of the group; where that is not allowed, the broker's holds."""
    group, timeout_s = settings.group(generation), settings.kafka.session_timeout_s
    try:
        Admin(settings).set_group_timeouts(group, timeout_s)
    except BrokerError as error:
        log.warning("the broker's own session timeout holds, not %g s: %s", timeout_s, error)


def _described(error: BaseException) -> str:
    return str(error) or repr(error)
