"""One retraining run: a window of `records` becomes a version, which is judged and announced.

    1. lock       one trainer at a time (`lock`)
    2. begin      a run: the unfinished one, if it is the same, else a new one (`runs`)
    3. window     `records` as immutable shards, once (`window`)
    4. train      from the champion's weights where they fit; the state is kept after each epoch
    5. examine    the champion and the challenger on the judge split, which nothing else touches
    6. announce   the version on `models`, with its status
    7. promote    where asked, and only as the successor of the champion that step 2 saw

A run that is killed at any moment, or that a failed service or machine ends, leaves the champion
unchanged, and the next trainer resumes it. A run that its own data or training ends
(`FINAL_ERRORS`) is closed with the reason, and the next trainer begins a new one with a new window.
Under `torchrun` the first process does all steps, and the others take part in step 4.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from braid.encoders.config import TrainConfig
from braid.encoders.errors import BadInput, EncodersError, TrainingError
from braid.encoders.manifest import Manifest, digest, read_manifest
from braid.encoders.types import Sample

from ..errors import RegistryError, StreamError, WindowError
from ..registry.announcements import Tell, announce, announce_anew, announce_champion
from ..registry.generations import GenerationRecords
from ..registry.judgements import level_of_judgement
from ..registry.promotion import promote as promote_version
from ..registry.versions import Champion, Registry, failures, registry_of, status_of
from ..settings import Settings, configured
from .lock import TrainerLock
from .metrics import TrainerMetrics, progress_to, served
from .options import Options, check_together, config_of, parent_of, start_of
from .runs import STATE, Run, Runs, differs, runs_of
from .tracking import require_trackers, tracked
from .window import Progress, Window, read_records

if TYPE_CHECKING:
    from braid.encoders.types import Examine

log = logging.getLogger(__name__)

Read = Callable[[Settings, Path, Progress | None], Window]

FINAL_ERRORS = (WindowError, TrainingError, BadInput)
"""Errors that the same run would end with again. Others may pass or be repaired: a broker or a hub
that does not answer, a full disk, a lost process of `torchrun`, a damaged champion."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run.

    Attributes:
        serves: whether the version is champion now.
        building: the generation that is built for it; it serves once that is complete.
        failed: why its examination failed; empty: it passed, or there was none.
        resumed: whether the run had been begun before.
    """

    manifest: Manifest
    run: str
    serves: bool = False
    building: str = ""
    failed: str = ""
    resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run with its dependencies; `read` and `tell` read from and write to Kafka."""

    settings: Settings
    options: Options
    progress: Progress | None = None
    read: Read = read_records
    tell: Tell = announce

    @cached_property
    def registry(self) -> Registry:
        return registry_of(self.settings)

    @cached_property
    def runs(self) -> Runs:
        return runs_of(self.settings)


def lead(job: Job, train_it: Callable[[Job, Run, Window], Manifest]) -> Outcome:
    """Run all steps, as the only process or the first one."""
    settings, registry = job.settings, job.registry
    require_trackers(settings)
    metrics = TrainerMetrics()
    with ExitStack() as stack:
        lock = stack.enter_context(TrainerLock(settings))  # 1
        stack.enter_context(served(metrics, settings))
        job = replace(job, progress=progress_to(lock, metrics, job.progress))
        job.runs.sweep(registry, keep=settings.refresh.windows_kept)
        try:
            announce_anew(settings, registry, job.tell)
        except StreamError as error:
            log.warning("the champion is not announced again: %s", error)
        champion = registry.champion()
        run, resumed = _begin(job, champion)  # 2
        stack.enter_context(job.runs.owned(run))
        lock.set_progress(run=run.id, version=run.name)
        metrics.run(run.id, run.name)
        config = config_of_run(job, run)
        tracking = stack.enter_context(tracked(settings, registry, run, config))
        job = replace(job, progress=tracking.progress(job.progress))
        with _closed_on_final_errors(job, run):
            window = job.runs.window(run)  # 3
            if window is None:
                window = job.read(settings, job.runs.folder(run.id), job.progress)
            else:
                window.check()
            job.runs.upload(run, keep=settings.refresh.windows_kept)
            manifest = train_it(job, run, window)  # 4 and 5
            registry.publish(run.name)
        failed = failures(manifest)
        announce_version(job, manifest, status_of(manifest, serves=False))  # 6
        try:
            serves, building = _promote(job, run, failed)  # 7
        except (
            RegistryError
        ) as error:  # the version is kept; another training would not change this
            job.runs.write(replace(run, state="done", note=f"not promoted: {error}"))
            raise
        job.runs.write(replace(run, state="done", note=failed))
        status = status_of(manifest, serves=serves, building=building)
        metrics.ended(status)
        tracking.ended(manifest, status)
    return Outcome(
        manifest=manifest,
        run=run.id,
        serves=serves,
        building=building,
        failed=failed,
        resumed=resumed,
    )


@contextmanager
def _closed_on_final_errors(job: Job, run: Run) -> Iterator[None]:
    try:
        yield
    except FINAL_ERRORS as error:
        job.runs.close(run, "failed", str(error))
        log.warning("run %s failed; the next one begins anew", run.id)
        raise


def train(job: Job, run: Run, window: Window, rank: int = 0, size: int = 1) -> Manifest:
    """The run's version: trained and examined now, or before this process began."""
    from braid.encoders.training import train as train_on

    registry = job.registry
    if registry.written(run.name):
        return read_manifest(registry.path(run.name))
    return train_on(
        window.samples(rank, size),
        config_of_run(job, run),
        out=registry.path(run.name),
        name=run.name,
        version=run.version,
        parent=registry.folder(run.parent) if run.parent else None,
        heads_only=bool(run.asked["heads_only"]),
        window=window.provenance() | {"run": run.id, "shards_of": run.window_of},
        seed=int(run.asked["seed"]),
        progress=job.progress,
        device=job.settings.model.device,
        resume=job.runs.folder(run.id) / STATE,
        champion=registry.folder(run.champion) if run.champion else None,
        examine=_examine(job, run, window) if rank == 0 else None,
        shared=size > 1,
        queries=job.settings.refresh.frozen_queries,
    )


def config_of_run(job: Job, run: Run) -> TrainConfig:
    """The training configuration of a run."""
    start = job.registry.manifest(run.parent) if run.parent and job.options.needs_version else None
    return config_of(job.options, start, compatible=run.champion is not None)


def _examine(job: Job, run: Run, window: Window) -> Examine | None:
    """The comparison of the version with the champion that the run saw; None: there was none.

    Raises:
        ConfigError: an unknown gate, or an invalid limit.
    """
    from braid.encoders.evaluation.examine import Compatibility, Gates, examiner

    settings = job.settings
    gates = configured(Gates, settings.refresh.gates, "gates")
    limits = configured(Compatibility, settings.refresh.compatibility, "compatibility")
    if run.champion is None:
        return None
    examine = examiner(
        job.registry.folder(run.champion),
        gates=gates,
        compatibility=limits,
        device=settings.model.device,
        seed=int(run.asked["seed"]),
        level=lambda: level_of_judgement(
            job.registry.log, run.name, budget=gates.budget, planned=gates.planned
        ),
    )
    # On the whole window, also where each process reads only its partitions.
    return lambda folder, _: examine(folder, cast(Sequence[Sample], window.samples()))


def announce_version(job: Job, manifest: Manifest, status: str) -> None:
    """Announce a version on `models`, with the generation that it can serve at once, if any."""
    champion, generation = job.registry.champion(), None
    if champion is None:
        generation = job.settings.generation
    elif champion.space == manifest.space:
        generation = champion.generation
    facts = {
        "name": manifest.name,
        "version": manifest.version,
        "space": manifest.space,
        "generation": generation,
        "uri": job.registry.uri_of(manifest.name),
        "sha256": manifest.files.get("model.safetensors"),
        "status": status,
        "metrics": manifest.metrics,
    }
    job.tell(job.settings, f"version/{manifest.name}", facts)


def prove(registry: Registry, name: str, device: str | None = None) -> None:
    """Load a version and encode its golden batch, as a worker does before it serves it.

    Raises RegistryError: damaged, or the outputs differ from those kept with it.
    """
    from braid.encoders.embedder import load

    try:
        load(registry.folder(name), device=device).check()
    except EncodersError as error:
        raise RegistryError(f"{name} cannot serve: {error}") from error


def _begin(job: Job, champion: Champion | None) -> tuple[Run, bool]:
    """The unfinished run if its options are the same, else a new one; and whether it is resumed."""
    options, registry, runs = job.options, job.registry, job.runs
    repeat = runs.resolve(options.window) if options.window else None
    check_together(options)
    start = start_of(registry, options, champion, repeat.parent if repeat else None)
    config = config_of(options, start)
    if repeat is not None:
        runs.whole_window(repeat.window_of)  # raises if the window is gone
    if start is not None:
        parent: str | None = start.name
    else:
        parent = repeat.parent if repeat else parent_of(registry, champion, options)
    asked = {
        "preset": options.preset,
        "config_file": options.config_file,
        "start": options.start,
        "config": digest(config.to_dict(), 16),
        "heads_only": options.heads_only,
        "projections": options.projections,
        "lora": options.lora,
        "seed": options.seed,
        "compatible": options.compatible,
        "from_scratch": options.from_scratch,
        "window": repeat.window_of if repeat else None,
    }
    unfinished = runs.unfinished()
    if unfinished is not None:
        why = "--fresh" if options.fresh else differs(unfinished, asked, champion)
        if why is None:
            log.info("going on with run %s, begun %s", unfinished.id, unfinished.began_at)
            return unfinished, True
        runs.close(unfinished, "given up", why)
        log.warning("run %s is given up: %s; beginning anew", unfinished.id, why)
    return runs.begin(
        registry, champion, asked, parent=parent, repeat=repeat, reason=options.reason
    ), False


def _promote(job: Job, run: Run, failed: str) -> tuple[bool, str]:
    """Make the run's version champion if the options ask for it.

    Returns:
        Whether it serves, and the generation that is built for it first, if its space is another.

    Raises:
        RegistryError: another promotion came first. The version is kept.
    """
    settings, options, registry = job.settings, job.options, job.registry
    champion = registry.champion()
    if champion is not None and champion.name == run.name:  # killed after its promotion
        announce_champion(settings, champion, registry, job.tell)
        return True, ""
    for entry in GenerationRecords(registry.log).all():
        if entry.model == run.name and entry.state == "building":
            return False, entry.generation
    promotes = run.seq == 0 and champion is None if options.promote is None else options.promote
    if not promotes:
        return False, ""
    if failed and not options.force:
        log.warning("%s is kept and not promoted: %s", run.name, failed)
        return False, ""
    prove(registry, run.name, settings.model.device)
    why = "promoted" if run.reason == "asked for" else f"promoted: {run.reason}"
    done = promote_version(
        settings, registry, run.name, after=run.seq, force=options.force, why=why, tell=job.tell
    )
    return (True, "") if isinstance(done, Champion) else (False, done.generation)
