"""The workers of one process: one for each generation that is to be fed.

The live generation's worker and, while a new space is built or an old one waits out its grace,
another beside it, each with its own group, topic, transactional id and model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from encoders.embedder import load
from encoders.types import Model

from .canary import Canary
from .errors import RegistryError
from .handover import Handovers, Roles
from .items import Showcase
from .mapping import filling
from .metrics import WorkerMetrics
from .models import Registry
from .pace import Pace
from .rollout import Rollouts
from .settings import Settings
from .topics import ensure
from .trial import Trial
from .worker import Worker

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Hosted:
    """A worker and its thread."""

    worker: Worker
    thread: threading.Thread


class Host:
    """Starts, swaps and ends the process's workers. Its methods are called by one thread.

    Args:
        slot: this process's part of the transactional ids.
        ended: called from a worker's thread when it ends, with what ended it; None: it was stopped.
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
    ) -> None:
        self._settings, self._registry = settings, registry
        self._slot, self._metrics, self._showcase = slot, metrics, showcase
        self._ended = ended
        self._hosted: dict[str, Hosted] = {}
        self._serving = settings.generation
        self._trial: Trial | None = None

    @property
    def models(self) -> Mapping[str, str]:
        """Generation -> the model that feeds it."""
        return {name: its.worker.model.name for name, its in self._hosted.items()}

    @property
    def serving(self) -> str:
        """The generation that serves, as far as is known here."""
        return self._serving

    @property
    def live(self) -> Worker | None:
        """The serving generation's worker."""
        hosted = self._hosted.get(self._serving)
        return None if hosted is None else hosted.worker

    def start(self, generation: str, model: Model, *, serves: bool, known: bool = True) -> None:
        """Feed a generation with a model, from its group's offsets on.

        Args:
            serves: it is the live one; others leave it the machine.
            known: the registry says who predicts what; without one this worker predicts all.
        """
        settings = self._settings.model_copy(update={"generation": generation})
        ensure(settings)
        if serves:
            self._serving = generation
        roles = None
        rollout = Rollouts(self._registry.root).get(generation)
        if known:
            champion = self._registry.champion()
            first = champion.generation if champion is not None else generation
            roles = Roles(Handovers(self._registry.root), generation=generation, first=first)
        worker = Worker(
            settings,
            model,
            transactional_id=f"{settings.group}-{self._slot}",
            metrics=self._metrics,
            showcase=self._showcase if serves else None,
            roles=roles,
            filling=filling(settings, self._registry, rollout) if known else None,
            pace=Pace(settings.rebuild_share, lambda: self._busy(generation)),
        )
        thread = threading.Thread(target=self._run, args=[generation, worker], daemon=True)
        self._hosted[generation] = Hosted(worker, thread)
        thread.start()
        log.info("%s feeds generation %s", model.name, generation)

    def follow(self, fed: Mapping[str, str], serving: str, canary: Canary | None = None) -> None:
        """Bring the workers in line with what the registry wants fed, and tried out.

        A new version is loaded and checked beside the old one, which goes on if anything is wrong.

        Args:
            canary: runs beside the champion, in the serving generation's worker.

        Raises:
            RegistryError, CheckpointError: one of them could not be followed, and why; the others
                were.
        """
        self._serving = serving
        self._end_trial(unless=canary)
        problems = []
        for generation, name in fed.items():
            hosted = self._hosted.get(generation)
            try:
                if hosted is None:
                    self.start(generation, self._loaded(name), serves=generation == serving)
                elif hosted.worker.model.name != name:
                    hosted.worker.offer(self._loaded(name))
            except Exception as error:  # noqa: BLE001 (one must not keep the others from theirs)
                problems.append(f"{generation}: {error}")
        for generation, its in self._hosted.items():
            its.worker.show(self._showcase if generation == serving else None)
        for generation in set(self._hosted) - set(fed):
            self.stop(generation)
        self._begin_trial(canary)
        if problems:
            raise RegistryError("; ".join(problems))

    def stop(self, generation: str) -> None:
        """End a generation's worker after what it has encoded."""
        hosted = self._hosted.pop(generation)
        hosted.worker.stop()
        hosted.thread.join()
        self._metrics.forget(generation)
        log.info("generation %s is fed no longer", generation)

    def close(self) -> None:
        for hosted in self._hosted.values():
            hosted.worker.stop()
        for hosted in self._hosted.values():
            hosted.thread.join()

    def _end_trial(self, unless: Canary | None) -> None:
        """First of all: a challenger that becomes champion must not be tried out beside itself."""
        if self._trial is not None and (
            unless is None or unless.number != self._trial.canary.number
        ):
            log.info("canary %d with %s ends", self._trial.canary.number, self._trial.canary.model)
            self._trial = None
        for generation, its in self._hosted.items():
            its.worker.try_out(self._trial if generation == self._serving else None)

    def _begin_trial(self, canary: Canary | None) -> None:
        """Load a challenger, if it is not there. One that does not load is tried once; its records
        are marked as failed, so that whoever waits for the comparison learns of it."""
        if canary is not None and self._trial is None:
            try:
                self._trial = Trial(canary, self._loaded(canary.model))
            except Exception as error:  # noqa: BLE001 (whatever it is, the champion goes on alone)
                log.error("canary %d: %s: %s", canary.number, canary.model, error)
                self._trial = Trial(canary, None, broken=f"does not load: {error}")
            else:
                log.info("canary %d begins with %s", canary.number, canary.model)
        if self.live is not None:
            self.live.try_out(self._trial)

    def _loaded(self, name: str) -> Model:
        model = load(self._registry.path(name), device=self._settings.device)
        model.check()
        return model

    def _busy(self, generation: str) -> bool:
        live = self._hosted.get(self._serving)
        return generation != self._serving and live is not None and live.worker.busy

    def _run(self, generation: str, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 (handed to the process)
            log.error("the worker of %s stops: %s", generation, error)
            self._ended(error)
        else:
            if generation in self._hosted:  # else it was told to, alone
                self._ended(None)
