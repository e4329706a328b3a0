"""The trainer's metrics: for Prometheus, and for `braid status` through the trainer's lock."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge, start_http_server, write_to_textfile

from ..errors import ConfigError
from ..settings import Settings
from .lock import TrainerLock
from .window import Progress

log = logging.getLogger(__name__)


class TrainerMetrics:
    """Gauges of one training: the current stage, its progress, and the losses."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stage = Gauge(
            "braid_trainer_stage", "1 for the stage that runs", ["stage"], registry=self.registry
        )
        self._done = Gauge(
            "braid_trainer_done", "Work done of the stage, in its unit", registry=self.registry
        )
        self._total = Gauge(
            "braid_trainer_total",
            "Work of the whole stage, in its unit; 0: unknown",
            registry=self.registry,
        )
        self._figure = Gauge(
            "braid_trainer_figure",
            "Figures of the training, such as the loss",
            ["name"],
            registry=self.registry,
        )
        self._run = Gauge(
            "braid_trainer_info",
            "1 for the current run",
            ["run", "version"],
            registry=self.registry,
        )
        self._ended = Gauge(
            "braid_trainer_ended_seconds",
            "When the run ended, since 1970, and as what",
            ["result"],
            registry=self.registry,
        )

    def run(self, run: str, version: str) -> None:
        self._run.clear()
        self._run.labels(run, version).set(1)

    def at(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        self._stage.clear()
        self._stage.labels(stage).set(1)
        self._done.set(done)
        self._total.set(total)
        for name, value in figures.items():
            self._figure.labels(name).set(value)

    def ended(self, result: str) -> None:
        """Set the result: `champion`, `building`, `candidate`, `refused`, `not enough
        evidence` or `failed`."""
        self._stage.clear()
        self._ended.clear()
        self._ended.labels(result).set_to_current_time()


@contextmanager
def served(metrics: TrainerMetrics, settings: Settings) -> Iterator[None]:
    """`/metrics` on `metrics.port` while the block runs, and a file when it ends, where one is set.

    The file is in Prometheus' text format, for the textfile collector of its node exporter: a
    trainer seldom lives long enough to be scraped. A block that raises ends as `failed`.

    Raises ConfigError: the port is taken, or the file cannot be written.
    """
    file = settings.metrics.file
    if file is not None and not os.access(file.parent, os.W_OK):  # not after hours of training
        raise ConfigError(f"metrics.file: {file}: nothing can be written to {file.parent}")
    try:
        with _answering(metrics, settings):
            yield
    except BaseException:
        metrics.ended("failed")
        raise
    finally:
        _write(metrics, settings)


def _write(metrics: TrainerMetrics, settings: Settings) -> None:
    if settings.metrics.file is None:
        return
    try:
        write_to_textfile(str(settings.metrics.file), metrics.registry)
    except OSError as error:
        raise ConfigError(f"metrics.file: {settings.metrics.file}: {error.strerror}") from None


@contextmanager
def _answering(metrics: TrainerMetrics, settings: Settings) -> Iterator[None]:
    if settings.metrics.port is None:
        yield
        return
    try:
        server, thread = start_http_server(
            settings.metrics.port, addr=settings.metrics.host, registry=metrics.registry
        )
    except OSError as error:
        raise ConfigError(f"metrics.port: {settings.metrics.port}: {error.strerror}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def progress_to(
    lock: TrainerLock, metrics: TrainerMetrics, progress: Progress | None
) -> Callable[[str, int, int, Mapping[str, float]], None]:
    """A progress function that updates the lock and the metrics and calls `progress`."""

    def follow(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        lock.set_progress(
            stage=stage,
            done=done,
            total=total,
            **{name: round(float(figures[name]), 6) for name in ("loss",) if name in figures},
        )
        metrics.at(stage, done, total, figures)
        if progress is not None:
            progress(stage, done, total, figures)

    return follow
