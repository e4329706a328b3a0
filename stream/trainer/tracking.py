"""Training runs in experiment trackers: MLflow and TensorBoard, beside the registry.

Each tracker is called on a thread of its own, so that one that is slow or away delays no epoch.
What it does not take while the run lasts is tried again, and lost `tracking.timeout_s` after the
run's end. A resumed run goes on in the tracker's run.

    parameters   the configuration, and the options of the run
    figures      loss and held-out loss by epoch; the measures on the validation split
    at the end   the version's name, space and status, the judge's verdict, the model card
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from queue import Queue
from typing import Any

from braid.encoders.config import TrainConfig
from braid.encoders.manifest import Manifest
from braid.index.redact import redacted

from ..errors import ConfigError
from ..registry.hub_card import hub_card
from ..registry.versions import Registry
from ..settings import Settings
from .runs import Run
from .tracker import About, Result, Tracker, TrackerRefused
from .window import Progress

log = logging.getLogger(__name__)

MAX_CALLS = 10_000  # that wait for a tracker; later ones are lost
PAUSE_S = 10.0  # before a call that failed is tried again
PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboard"}
"""The package of each setting's tracker, which is the name of the extra, too."""
CLIENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # a call that failed is tried again here
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # which may be JSON
}
"""Variables of MLflow's client, where they are not set."""


Call = Callable[[Tracker], None]


class _Feed(threading.Thread):
    """Calls one tracker, in order; a call that fails is tried again until `close` gives up."""

    def __init__(self, setting: str, open_run: Callable[[], Tracker]) -> None:
        super().__init__(name=f"tracking {setting}", daemon=True)
        self._setting, self._open = setting, open_run
        self._calls: Queue[Call | None] = Queue()
        self._ending, self._until = threading.Event(), math.inf
        self._tracker: Tracker | None = None
        self._lost, self._warned = 0, ""

    def put(self, call: Call) -> None:
        if self._calls.qsize() < MAX_CALLS:
            self._calls.put(call)
        else:
            self._lost += 1

    def close(self, until: float) -> None:
        """Wait until all calls are made, until a moment of the monotonic clock at most."""
        self._until = until
        self._ending.set()
        self._calls.put(None)
        self.join(max(0.0, until - time.monotonic()))
        if self.is_alive() or self._lost:
            log.warning("tracking.%s has not taken all of this run", self._setting)

    def run(self) -> None:
        self._call(lambda tracker: None)  # opens the run
        while (call := self._calls.get()) is not None:
            if not self._call(call):
                self._lost += 1

    def _call(self, call: Call) -> bool:
        while True:
            try:
                if self._tracker is None:
                    self._tracker = self._open()
                call(self._tracker)
                return True
            except TrackerRefused as error:
                self._warn(error)
                return False
            except Exception as error:  # noqa: BLE001 (of foreign libraries; the training goes on)
                self._warn(error)
            if not self._ending.wait(PAUSE_S):
                continue
            left = self._until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(1.0, left))

    def _warn(self, error: Exception) -> None:
        why = redacted(f"{error}".partition("\n")[0] or repr(error))[:300]
        if why != self._warned:
            log.warning("tracking.%s: %s; the training goes on", self._setting, why)
        self._warned = why


class Tracking:
    """The trackers of one run; without any, its methods do nothing."""

    def __init__(self, registry: Registry, feeds: list[_Feed]) -> None:
        self._registry, self._feeds = registry, feeds
        self._result: Callable[[], Result] = lambda: Result(state="KILLED", tags={}, figures={})

    def progress(self, progress: Progress | None) -> Progress:
        """A progress function that tracks the figures and calls `progress`."""

        def follow(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            named = {f"{stage}/{name.replace(' ', '_')}": float(figures[name]) for name in figures}
            if named and stage in ("train", "refit"):
                at_ms = int(time.time() * 1000)
                self._tell(lambda tracker: tracker.figures(at_ms, done, named))
            if progress is not None:
                progress(stage, done, total, figures)

        return follow

    def ended(self, manifest: Manifest, status: str) -> None:
        """The run made a version."""
        self._result = cache(lambda: self._of(manifest, status))

    def _of(self, manifest: Manifest, status: str) -> Result:
        verdict = manifest.verdict
        tags = {
            "version": manifest.name,
            "space": manifest.space,
            "status": status,
            "decision": str(verdict.get("decision", "not judged")),
            "verdict": str(verdict.get("reason", "there was no champion to compare it with")),
        }
        return Result(
            state="FINISHED",
            tags=tags,
            figures=dict(_figures(manifest)),
            card=hub_card(manifest, place=self._registry.uri_of(manifest.name)),
        )

    def failed(self, error: BaseException) -> None:
        """The run ended without a version."""
        state = "FAILED" if isinstance(error, Exception) else "KILLED"
        result = Result(state=state, tags={"error": redacted(error)[:1000]}, figures={})
        self._result = lambda: result

    def close(self, timeout_s: float) -> None:
        """Send the result, and wait for all trackers, `timeout_s` at most."""
        result, until = self._result, time.monotonic() + timeout_s
        # Made by the feed's thread: what a card needs must not fail a run that made a version.
        self._tell(lambda tracker: tracker.end(result()))
        for feed in self._feeds:
            feed.close(until)

    def _tell(self, call: Call) -> None:
        for feed in self._feeds:
            feed.put(call)


def require_trackers(settings: Settings) -> None:
    """Raises ConfigError: the package of a tracker that is set is not installed."""
    for setting, package in PACKAGES.items():
        if getattr(settings.tracking, setting) is not None and find_spec(package) is None:
            raise ConfigError(
                f"tracking.{setting}: {package} is not installed: "
                f"pip install 'braid-stream[{setting}]'"
            )


@contextmanager
def tracked(
    settings: Settings, registry: Registry, run: Run, config: TrainConfig
) -> Iterator[Tracking]:
    """Track a run while the block runs, in the trackers of the settings.

    Args:
        config: what the run trains.
    """
    asked = settings.tracking
    if asked.mlflow is None and asked.tensorboard is None:
        yield Tracking(registry, [])
        return
    about = About(run=run.id, version=run.name, parameters=_parameters(run, config))
    tracking = Tracking(registry, [_Feed(*each) for each in _openers(settings, about)])
    for feed in tracking._feeds:
        feed.start()
    try:
        yield tracking
    except BaseException as error:
        tracking.failed(error)
        raise
    finally:
        tracking.close(settings.tracking.timeout_s)


def _openers(settings: Settings, about: About) -> Iterator[tuple[str, Callable[[], Tracker]]]:
    asked = settings.tracking
    if (address := asked.mlflow) is not None:

        def in_mlflow() -> Tracker:
            for name, value in CLIENT.items():
                os.environ.setdefault(name, value)
            from .mlflow_run import MlflowRun

            return MlflowRun(address, asked.experiment, about)

        yield "mlflow", in_mlflow
    if (folder := asked.tensorboard) is not None:

        def in_tensorboard() -> Tracker:
            from .tensorboard_run import TensorBoardRun

            return TensorBoardRun(folder, about)

        yield "tensorboard", in_tensorboard


def _parameters(run: Run, config: TrainConfig) -> dict[str, Any]:
    asked = {name: value for name, value in run.asked.items() if name not in ("config", "start")}
    values = dict(config.to_dict())
    options = {**asked, "parent": run.parent, "champion": run.champion, "reason": run.reason}
    return {**dict(_leaves(values)), **dict(_leaves(options, "run"))}


def _figures(manifest: Manifest) -> Iterator[tuple[str, float]]:
    """The measures on the validation split, and of each gate the judge's numbers."""
    measured = manifest.metrics.get("validation") or {}
    numbers = dict(_leaves(measured, "validation", "/"))
    for gate in manifest.verdict.get("gates") or ():
        for key in ("champion", "challenger", "difference"):
            numbers[f"judge/{gate['metric']}/{key}"] = gate.get(key)
    for name, value in numbers.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


def _leaves(value: Any, path: str = "", dot: str = ".") -> Iterator[tuple[str, Any]]:
    """Path to value of all values that are not maps; a list is a value, as JSON."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{path}{dot}{name}" if path else str(name), dot)
    else:
        yield path, json.dumps(value) if isinstance(value, list | tuple) else value
