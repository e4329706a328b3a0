"""Starts a retraining run: one process, or several under `torchrun`, of which the first leads.

The first process takes the lock, writes the window and the registry, and sends the run to the
others; each process reads the shards of its own partitions. They share the home folder.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch

from braid.encoders.manifest import Manifest
from braid.encoders.training import parallel

from ..registry.announcements import Tell, announce
from ..settings import Settings
from .job import Job, Outcome, Read, lead, train
from .options import Options
from .runs import Run
from .window import Progress, Window, open_window, read_records

PATIENCE = timedelta(days=1)
"""How long the other processes wait while the first reads `records` or examines the version."""


def retrain(
    settings: Settings,
    options: Options,
    *,
    progress: Progress | None = None,
    read: Read = read_records,
    tell: Tell = announce,
) -> Outcome:
    """Train one version and announce it.

    Raises:
        LockError: another trainer runs; the message names its process, start and progress.
        RegistryError: heads_only without a champion, a damaged champion, or the promotion is
            refused: another came first.
        WindowError: the window to use again is gone or damaged.
        TrainingError: no usable record to train on, or a loss that is not finite.
    """
    job = Job(settings=settings, options=options, progress=progress, read=read, tell=tell)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        return together(job)
    return lead(job, train)


def together(job: Job) -> Outcome:
    """Run this process's part. All but the first end by SystemExit 0, whatever the run's result."""
    device = parallel.own_device(job.settings.model.device)
    with parallel.processes(device, PATIENCE) as (rank, size):
        if rank > 0:
            _follow(job, rank, size, device)
        announced = False

        def train_announced(job: Job, run: Run, window: Window) -> Manifest:
            nonlocal announced
            begins = run.name not in job.registry.names()
            announced = True
            plan = {"run": asdict(run), "window": str(window.folder)} if begins else {}
            parallel.all_gather_bytes(json.dumps(plan).encode(), device)
            return train(job, run, window, rank, size)

        try:
            return lead(job, train_announced)
        finally:
            if not announced:  # it failed before the training: the others end, too
                parallel.all_gather_bytes(b"{}", device)


def _follow(job: Job, rank: int, size: int, device: torch.device) -> NoReturn:
    plan = json.loads(parallel.all_gather_bytes(b"{}", device)[0])
    if plan:
        run = Run(**plan["run"])
        train(job, run, open_window(Path(plan["window"])), rank, size)
    raise SystemExit(0)
