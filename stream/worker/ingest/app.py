"""The process of `braid ingest`: a loop for each source, on a thread of its own.

A source that fails is started again after a pause, and the others continue. One that makes no
progress though there is lag ends the process, to be started again.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError, StreamError
from ...kafka.access import prepare
from ...kafka.slots import claim_slot
from ...kafka.waiting import until_reachable
from ...liveness.ending import STOP_WITHIN_S, end_within
from ...liveness.interpreter import tune_interpreter
from ...liveness.loop_thread import LoopThread
from ...liveness.progress_watch import Watchdog, Watched
from ...monitoring.ingest_metrics import IngestMetrics
from ...monitoring.metrics import serve
from ...settings import Settings
from ...sources.converter import Converter
from ...sources.samples import check_sample
from ..health import NOT_A_MEMBER, status_of, uncommitted
from .loop import IngestLoop

log = logging.getLogger(__name__)

KIND = "ingest-"  # of slots


class Ingest:
    """The sources of one process.

    Args:
        converters: one for each source.
        slot: this process's part of the transactional ids.
    """

    def __init__(
        self,
        settings: Settings,
        converters: Sequence[Converter],
        *,
        slot: str,
        metrics: IngestMetrics,
    ) -> None:
        self._settings = settings
        self.threads = [self._thread(converter, slot, metrics) for converter in converters]
        self._watchdog = Watchdog(settings, self._watched)

    def start(self) -> None:
        self._watchdog.start()
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """Publish what is converted, and leave the groups."""
        self._watchdog.stop()
        for thread in self.threads:
            thread.stop()
        for thread in self.threads:
            thread.close(STOP_WITHIN_S)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether all sources are healthy, and the body of `/healthz`."""
        facts = {thread.name: self._facts(thread) for thread in self.threads}
        wrong = [
            f"{name}: {each['status']}" for name, each in facts.items() if each["status"] != "ok"
        ]
        body = {
            "status": "; ".join(wrong) or "ok",
            "sources": facts,
            "broker": self._settings.kafka.bootstrap,
        }
        return not wrong, body

    def _facts(self, thread: LoopThread[IngestLoop]) -> dict[str, Any]:
        loop = thread.loop
        if thread.problems:
            return {"status": thread.problems[thread.name]}
        if loop is None:
            return {"status": "starting"}
        if (reason := loop.waits_for_registry) is not None:
            status = f"waiting for the schema registry: {reason}"
        else:
            status = status_of(self._settings, loop, self._watchdog.broker.reason)
        return {
            "status": status,
            "partitions": loop.owned,
            "lag": loop.progress.lag,
            "progress_age_s": round(loop.progress.age_s, 1),
        }

    def _thread(
        self, converter: Converter, slot: str, metrics: IngestMetrics
    ) -> LoopThread[IngestLoop]:
        mine = metrics.of(converter.source.title)
        return LoopThread(
            converter.source.title,
            lambda working: IngestLoop(
                self._settings, converter, slot=slot, metrics=mine, working=working
            ),
            failed=mine.failed,
        )

    def _watched(self) -> list[Watched]:
        loops = [each.loop for each in self.threads if each.loop and not each.problems]
        return [self._watch(loop) for loop in loops]

    def _watch(self, loop: IngestLoop) -> Watched:
        settings, group = self._settings, self._settings.ingest_group(loop.source)
        return Watched(
            name=f"the source {loop.source}",
            progress=loop.progress,
            readable=lambda: uncommitted(settings, group, loop.owned, topic=loop.topic),
            bound_s=settings.worker.progress_timeout_s * (1 if loop.is_member else NOT_A_MEMBER),
        )


def converters_of(settings: Settings, names: Sequence[str] = ()) -> list[Converter]:
    """The converters of the configured sources.

    Args:
        names: of the sources; without any, all.

    Raises:
        ConfigError: there is no source, or its settings are wrong.
    """
    known = [source.title for source in settings.sources]
    if not known:
        raise ConfigError("sources: there is none; add a table [[sources]] to braid.toml")
    if unknown := set(names) - set(known):
        raise ConfigError(
            f"sources: no source {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    chosen = [source for source in settings.sources if not names or source.title in names]
    return [Converter(settings, source) for source in chosen]


def run(settings: Settings, names: Sequence[str] = ()) -> None:
    """Run the sources in this process until SIGTERM or SIGINT; waits for the broker.

    Raises:
        ConfigError: a source's settings are wrong, or the topics do not match the settings.
    """
    converters = converters_of(settings, names)
    metrics, stopping = IngestMetrics(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    until_reachable(
        settings,
        lambda bound_s: prepare(settings, settings.generation, "ingest", timeout_s=bound_s),
    )
    slot = claim_slot(settings, KIND)
    ingest = Ingest(settings, converters, slot=slot.name, metrics=metrics)
    if settings.metrics.port is not None:
        serve(metrics.registry, settings.metrics.host, settings.metrics.port, ingest.health)
    tune_interpreter()
    ingest.start()
    threading.Thread(
        target=_check_samples, args=(settings, converters), name="samples", daemon=True
    ).start()
    stopping.wait()
    end_within(STOP_WITHIN_S + 1.0, status=0, why="a signal")
    ingest.close()
    slot.release()


def _check_samples(settings: Settings, converters: Sequence[Converter]) -> None:
    """Warn of sources whose newest messages do not map."""
    for converter in converters:
        source = converter.source
        try:
            sample = check_sample(settings, source)
        except StreamError as error:
            log.warning("%s: no sample of %s: %s", source.title, source.topic, error)
            continue
        if sample is not None and sample.error is not None:
            log.warning(
                "%s: the newest message does not map, %s: %s; braid ingest --check shows why",
                source.title,
                sample.where,
                sample.error.brief,
            )
