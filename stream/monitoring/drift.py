"""Drift: windowed statistics of all workers' outputs, compared with a reference.

Workers publish tallies of their outputs every few seconds (`braid.stream.worker.outputs`), keyed
by "GENERATION/MODEL", so that one partition has all of a version's. A Faust agent sums them in a
windowed table. A version's window is complete when a message's timestamp is in a later one. It is
then compared with the reference in the version's manifest, or with its first window of enough
records if the manifest has none. The result is on `/metrics`, in `braid status`, and may start a
retraining.

Faust delivers at least once and the tables are in Kafka: a restarted worker continues the open
window, and a repeated tally counts once. Faust reads uncommitted, so the tally of an aborted
transaction counts beside that of its repetition: windows are estimates.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, cast

import faust
from mode import Service

from braid.encoders.drift import Drift, Limits, compare
from braid.encoders.output_statistics import Tally

from ..errors import BadRecord, RegistryError
from ..kafka.schemas import decode_tally
from ..registry.versions import registry_of
from ..settings import Settings, configured
from ..trainer.schedule import Trigger
from .drift_results import LastWindows
from .metrics import WorkerMetrics

log = logging.getLogger(__name__)

WINDOWS_KEPT = 4
REFERENCE_LEAST = 30
"""Fewer records are no reference; the same number as the judge's (evaluation.gates)."""
TOP_LABELS = 20

Range = tuple[float, float]


def limits_of(settings: Settings) -> Limits:
    """The limits of drift, with what the settings change. Raises ConfigError: as `configured`."""
    return configured(Limits, settings.drift.limits, "drift")


@dataclass(frozen=True, kw_only=True)
class Window:
    """A complete window: its start in seconds since 1970, and the tally of its records."""

    start: float
    tally: Tally


class Watch:
    """The windows of all versions and the open window of each. Pure: no I/O.

    Args:
        windows: (version, range) -> {"tally", "next"}; "next" is the offset after the last
            tally in it.
        versions: version -> {"open": start of its window, "reference": a tally or None}.
        range_of: the range of the window of a time.
    """

    def __init__(
        self,
        windows: MutableMapping[tuple[str, Range], dict[str, Any]],
        versions: MutableMapping[str, dict[str, Any]],
        range_of: Callable[[float], Range],
    ) -> None:
        self._windows, self._versions, self._range_of = windows, versions, range_of

    def completed(self, version: str, at: float) -> Window | None:
        """The window that a message of time `at` completes; None: it completes none, or the
        window has expired."""
        opened = self._opened(version)
        if opened is None or self._range_of(at)[0] <= opened:
            return None
        kept = self._windows.get((version, self._range_of(opened)))
        if kept is None:
            return None
        return Window(start=opened, tally=Tally.from_plain(kept["tally"]))

    def count(self, version: str, tally: Tally, *, at: float, offset: int) -> bool:
        """Add a message to the window of its time; False: it is late or a repetition."""
        range_ = self._range_of(at)
        opened = self._opened(version)
        if opened is not None and range_[0] < opened:
            return False
        kept = self._windows.get((version, range_))
        if kept is not None and offset < kept["next"]:
            return False
        whole = Tally() if kept is None else Tally.from_plain(kept["tally"])
        try:
            whole.merge(tally)
        except ValueError as error:  # another model of the same name
            log.warning("the window of %s begins anew: %s", version, error)
            whole = tally
        self._windows[version, range_] = {"tally": whole.to_plain(), "next": offset + 1}
        if opened != range_[0]:
            known = self._versions.get(version) or {}
            self._versions[version] = {"reference": None, **known, "open": range_[0]}
        return True

    def reference(self, version: str) -> Tally | None:
        """The window that `keep` stored as reference."""
        kept = (self._versions.get(version) or {}).get("reference")
        return None if kept is None else Tally.from_plain(kept)

    def keep(self, version: str, tally: Tally) -> None:
        """Store this window as the reference of later ones."""
        known = self._versions.get(version) or {}
        self._versions[version] = {"open": None, **known, "reference": tally.to_plain()}

    def _opened(self, version: str) -> float | None:
        return (self._versions.get(version) or {}).get("open")


class Judge:
    """Compares a complete window with its reference. Reads files: call it from a thread."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._settings, self._limits = settings, limits
        self._registry = registry_of(settings)

    def __call__(self, version: str, window: Window, kept: Tally | None) -> dict[str, Any]:
        """The report on a window: plain values, for Redis and the metrics.

        Args:
            kept: the version's reference if its manifest has none. Without either, a window of
                enough records becomes the reference: `became_reference` is true.
        """
        generation, _, model = version.partition("/")
        tally = window.tally
        reference, origin = self._of_manifest(model), "manifest"
        if reference is None:
            reference, origin = kept, "first window"
        drift, note = Drift(statistics=(), enough=tally.count >= self._limits.min_records), ""
        if reference is not None:
            try:
                drift = compare(reference, tally, self._limits)
            except ValueError as error:
                note = f"not comparable: {error}"
        if not drift.enough:
            note = f"too few records, {self._limits.min_records} are needed"
        elif reference is None:
            note = "this window is the reference of the next"
        return {
            "generation": generation,
            "model": model,
            "start": window.start,
            "end": window.start + self._settings.drift.window_s,
            "records": tally.count,
            "serving": self._serves(generation, model),
            "drifted": bool(drift.exceeded),
            "statistics": [asdict(one) for one in drift.statistics],
            "says": str(drift),
            "note": note,
            "became_reference": reference is None and drift.enough,
            "reference": None
            if reference is None
            else {"from": origin, "records": reference.count},
            "norm": tally.norm,
            "concentration": tally.concentration,
            "missing": {name: tally.missing(name) for name in sorted(tally.present)},
            "confidence": {
                task: {"mean": task_tally.confidence.mean, "sd": task_tally.confidence.sd}
                for task, task_tally in tally.tasks.items()
                if task_tally.confidence.count
            },
            "labels": {
                task: dict(list(tally.shares(task).items())[:TOP_LABELS])
                for task, task_tally in tally.tasks.items()
                if task_tally.labels
            },
        }

    def _of_manifest(self, model: str) -> Tally | None:
        try:
            reference = Tally.from_plain(self._registry.manifest(model).reference)
        except (RegistryError, ValueError):  # not in the registry
            return None
        return reference if reference.count >= REFERENCE_LEAST else None

    def _serves(self, generation: str, model: str) -> bool:
        if self._settings.model.spec is not None:  # one model, and no registry
            return generation == self._settings.generation
        try:
            champion = self._registry.champion()
        except RegistryError:
            return False
        return champion is not None and (champion.generation, champion.name) == (generation, model)


def add_drift(app: faust.App, settings: Settings, metrics: WorkerMetrics, trigger: Trigger) -> None:
    """Give the app its agent on `statistics`.

    Raises:
        ConfigError: see `limits_of`.
    """
    judge = Judge(settings, limits_of(settings))
    last_windows = LastWindows(settings)
    # One thread until the process ends: a trainer ends with the thread that started it.
    thread = ThreadPoolExecutor(1, thread_name_prefix="drift")
    raw: dict[str, Any] = {"key_serializer": "raw", "value_serializer": "raw"}
    statistics = app.topic(
        settings.topic("statistics"), key_type=bytes, value_type=bytes, internal=False, **raw
    )
    # As JSON, the default of tables: a windowed key is a list, which "raw" does not encode.
    windows = app.Table(
        f"{settings.prefix}drift-windows",
        partitions=settings.kafka.partitions,
    )
    windows.tumbling(settings.drift.window_s, expires=WINDOWS_KEPT * settings.drift.window_s)
    versions = app.Table(
        f"{settings.prefix}drift-versions",
        partitions=settings.kafka.partitions,
    )
    window_of = cast(faust.TumblingWindow, windows.window).current
    watch = Watch(windows, versions, window_of)

    class Ending(Service):
        async def on_stop(self) -> None:
            await asyncio.get_running_loop().run_in_executor(thread, trigger.stop)
            thread.shutdown()
            last_windows.close()

    app.service(Ending)

    @app.on_partitions_revoked.connect
    async def forget(*_: Any, **__: Any) -> None:
        """Clear the metrics: another worker may get the partitions and show their windows."""
        metrics.drift.clear()

    @app.agent(statistics, name=f"{settings.prefix}drift")
    async def drift(stream: faust.StreamT) -> None:
        async for event in stream.events():
            try:
                version = (event.key or b"").decode()
                tally = decode_tally(event.value or b"")
            except (BadRecord, UnicodeDecodeError) as error:
                log.warning("a message on statistics is left out: %s", error)
                continue
            at: float = event.message.timestamp
            window = watch.completed(version, at)
            if window is not None:
                kept = watch.reference(version)
                loop = asyncio.get_running_loop()
                report = await loop.run_in_executor(thread, judge, version, window, kept)
                if report["became_reference"]:
                    watch.keep(version, window.tally)
                metrics.drift.show(report)
                await loop.run_in_executor(
                    thread, publish_report, settings, version, report, last_windows, trigger
                )
            watch.count(version, tally, at=at, offset=event.message.offset)


def publish_report(
    settings: Settings,
    version: str,
    report: Mapping[str, Any],
    last_windows: LastWindows,
    trigger: Trigger,
) -> None:
    """Write a window's report to Redis and the log; on drift, start a trainer if the settings say
    so."""
    last_windows.put(version, report)
    if not report["drifted"]:
        log.debug("no drift of %s: %d records, %s", version, report["records"], report["note"])
        return
    log.warning("drift of %s, %d records: %s", version, report["records"], report["says"])
    if settings.drift.retrain and report["serving"]:
        log.info("retraining %s", trigger(f"drift: {report['says']}"))
