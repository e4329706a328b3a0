"""Schedules of the trainer: a fixed period, a crontab, or a trigger.

Each trainer is a process of its own, so that it shares neither memory nor a crash with the process
that starts it. Of two that start at once, the trainer's lock lets one run.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import TYPE_CHECKING

from ..errors import ConfigError, LockError, StreamError
from ..kafka.admin import Admin
from ..local.child import Child
from ..registry.versions import registry_of
from ..settings import Settings
from .lock import described, first_in, holder

if TYPE_CHECKING:
    import faust

log = logging.getLogger(__name__)

GRACE_S = 12.0  # a killed trainer is resumed from its last checkpoint
POLL_S = 0.2
LOOK_S = 10.0  # between two reads of the end offsets of `records`
SAY_EVERY_S = 600.0
RETRY_S, RETRY_MOST_S = 60.0, 3600.0  # while there is no model: doubled after each failed run
CRON_S = 50.0
"""A crontab fires at most once a minute; the workers' clocks may differ by so much."""


def command(options: Sequence[str]) -> list[str]:
    """The command line of a trainer."""
    return [sys.executable, "-m", "braid", "retrain", *options]


class FirstVersion:
    """The condition of the first training: enough records, counted by the offsets of `records`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = registry_of(settings)

    def serves(self) -> bool:
        """Whether there is a champion; without one nothing is embedded."""
        return self._registry.champion() is not None

    def missing(self) -> str | None:
        """Why the first training waits; None: it does not.

        Raises:
            StreamError: the broker or the registry does not answer.
        """
        if self.serves():
            return None
        settings, admin = self._settings, Admin(self._settings)
        topic = settings.topic("records")
        count = sum(end - start for start, end in admin.ends(topic).values())
        least = settings.refresh.retrain_first
        if count >= least:
            return None
        return (
            f"the first model waits for records: {topic} has {count}, and the first "
            f"training begins with {least} (BRAID_REFRESH__RETRAIN_FIRST)"
        )


def every(
    period_s: float,
    make: Callable[[], Child],
    *,
    say: Callable[[str], None],
    first: FirstVersion | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    runs: int | None = None,
) -> None:
    """Start a trainer each `period_s`, from the start of one to the start of the next.

    They do not overlap: if one takes longer, the next starts when it ends. A failure is reported,
    and the schedule continues. While there is no model the next trainer starts after a pause that
    grows from RETRY_S to RETRY_MOST_S.

    Args:
        make: makes a trainer's process, not yet started.
        first: the condition of the first training; None: there is none.
        runs: the number of runs before it returns; None: no end.

    Raises:
        KeyboardInterrupt: on SIGTERM and Ctrl-C; the trainer that runs is stopped before.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    due, count, pause_s = clock(), 0, RETRY_S
    while runs is None or count < runs:
        sleep(max(0.0, due - clock()))
        if first is not None:
            _await_first(first, say, clock, sleep)
        began = clock()
        child = make()
        log_start = child.log.stat().st_size if child.log.is_file() else 0
        child.start()
        try:
            for _ in child.copy_output(log_start):
                sleep(POLL_S)
        finally:
            child.stop(GRACE_S)
        if child.status != 0:
            say(f"this run made no version (status {child.status})")
        count += 1
        due = began + period_s
        if child.status != 0 and first is not None and not first.serves():
            due = min(due, clock() + pause_s)
            say(f"there is no model yet: tried again in {max(0.0, due - clock()):.0f} s")
            pause_s = min(2 * pause_s, RETRY_MOST_S)


def _await_first(
    first: FirstVersion,
    say: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Wait for the condition of the first training; its reason is reported every SAY_EVERY_S."""
    reported_at: float | None = None
    while True:
        try:
            missing = first.missing()
        except StreamError as error:
            missing = f"the first training waits: {error}"
        if missing is None:
            return
        if reported_at is None or clock() - reported_at >= SAY_EVERY_S:
            reported_at = clock()
            say(missing)
        sleep(LOOK_S)


class Trigger:
    """Starts trainers from inside another process, such as the Faust app. One per process.

    Call it from a thread that lives as long as the process: a trainer ends with the thread that
    started it (braid.stream.local.child).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: Child | None = None
        self._lock = threading.Lock()

    def __call__(self, reason: str, *, name: str = "retrain", least_s: float | None = None) -> str:
        """Start a trainer unless one was started within `least_s`; returns the outcome as text.

        Args:
            reason: kept in the run's file.
            name: of the interval; each name has its own.
            least_s: seconds between two starts, among all processes that share the Redis (without
                one, the home folder); None takes `drift.retrain_min_interval_s`.
        """
        with self._lock:
            return self._start(reason, name, least_s)

    def _start(self, reason: str, name: str, least_s: float | None) -> str:
        settings = self._settings
        if self._child is not None and self._child.running:
            return f"not started ({reason}): this process's trainer runs yet"
        if (other := holder(settings)) is not None:
            return f"not started ({reason}): another trainer runs: {described(other)}"
        seconds = settings.drift.retrain_min_interval_s if least_s is None else least_s
        try:
            if seconds > 0 and not first_in(settings, name, seconds):
                return f"not started ({reason}): one was started within the last {seconds:g} s"
        except LockError as error:
            return f"not started ({reason}): {error}"
        self._child = trainer(
            settings, [*settings.refresh.retrain_options, "--reason", reason]
        ).start()
        return f"started ({reason}), process {self._child.pid}, {self._child.log}"

    def stop(self) -> None:
        """End the trainer that was started here; the next one resumes its run."""
        if self._child is not None:
            self._child.stop(GRACE_S)


def trainer(settings: Settings, options: Sequence[str]) -> Child:
    """A trainer with these settings, not yet started; its log is home/logs/retrain.log."""
    # This process listens on the port of the settings.
    environment = settings.environment() | {"BRAID_METRICS__PORT": "0"}
    log_file = settings.home / "logs" / "retrain.log"
    return Child("retrain", command(options), log=log_file, env=environment)


def add_schedule(app: faust.App, settings: Settings, trigger: Trigger | None = None) -> None:
    """Give the Faust app the crontab of `refresh.retrain_cron`, if there is one.

    Every worker's crontab fires, and the first one of the minute starts the trainer. Faust's leader
    election is not used: it needs a topic of its own, and has no leader during a rebalance.

    Raises:
        ConfigError: not a crontab.
    """
    if settings.refresh.retrain_cron is None:
        return
    from mode import Service
    from mode.utils.cron import secs_for_next

    try:
        secs_for_next(settings.refresh.retrain_cron, UTC)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"refresh.retrain_cron: {settings.refresh.retrain_cron!r}: {error}"
        ) from None
    started = trigger or Trigger(settings)

    class Trainers(Service):
        async def on_stop(self) -> None:
            await asyncio.to_thread(started.stop)

    app.service(Trainers)

    @app.crontab(settings.refresh.retrain_cron, timezone=UTC)
    async def retrain() -> None:
        log.info("retraining %s", started("crontab", name="cron", least_s=CRON_S))
