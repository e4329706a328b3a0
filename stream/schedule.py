"""When a retraining starts: again and again, by a crontab, or because something asks for it.

Whoever starts one starts a separate process: training must not share memory, cores' caches or a
crash with what starts it. Two that start at once do no harm, the trainer's lock lets one run.
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
from types import FrameType
from typing import TYPE_CHECKING

from .children import Child
from .errors import ConfigError, LockError
from .lock import described, first_in, holder
from .settings import Settings

if TYPE_CHECKING:
    import faust

log = logging.getLogger(__name__)

GRACE_S = 30.0
POLL_S = 0.2
CRON_S = 50.0
"""A crontab fires once a minute at most; the workers' clocks may be so far apart."""


def command(options: Sequence[str]) -> list[str]:
    """The command line of a trainer."""
    return [sys.executable, "-m", "stream", "retrain", *options]


def every(
    period_s: float,
    make: Callable[[], Child],
    *,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    runs: int | None = None,
) -> None:
    """Start a trainer each `period_s`, from the start of one to the start of the next.

    They do not overlap: if one takes longer, the next starts when it ends. One that fails is said
    and the schedule goes on: the champion serves, and the next may find what this one lacked.

    Args:
        make: makes one, not yet started.
        runs: so many, then return; None: for ever.

    Raises:
        KeyboardInterrupt: on SIGTERM and Ctrl-C; the trainer that runs is stopped before.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    due, count = clock(), 0
    while runs is None or count < runs:
        time.sleep(max(0.0, due - clock()))
        began = clock()
        child = make()
        said = child.log.stat().st_size if child.log.is_file() else 0
        child.start()
        try:
            _pass_on(child, said)
        finally:
            child.stop(GRACE_S)
        if child.status != 0:
            say(f"this run made no version (status {child.status})")
        count += 1
        due = began + period_s


def _pass_on(child: Child, start: int) -> None:
    """What the trainer says is said here too, until it ends."""
    with child.log.open("rb") as said:
        said.seek(start)
        while child.running:
            _write(said.read())
            time.sleep(POLL_S)
        _write(said.read())


def _write(said: bytes) -> None:
    sys.stderr.write(said.decode("utf-8", "replace"))
    sys.stderr.flush()


class Trigger:
    """Starts trainers from inside another process, such as the Faust app. One per process.

    Call it from a thread that lives as long as the process: a trainer ends with the thread that
    started it (stream.children).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: Child | None = None
        self._asking = threading.Lock()

    def __call__(self, reason: str, *, name: str = "retrain", least_s: float | None = None) -> str:
        """Start a trainer unless one was started within `least_s`; says what came of it.

        Args:
            reason: why; kept in the run's story.
            name: of the interval; those of another name are not counted.
            least_s: seconds between two, among all processes that share the Redis (without one,
                the home folder); None takes `retrain_least_s`.
        """
        with self._asking:
            return self._ask(reason, name, least_s)

    def _ask(self, reason: str, name: str, least_s: float | None) -> str:
        settings = self._settings
        if self._child is not None and self._child.running:
            return f"not started ({reason}): this process's trainer runs yet"
        if (other := holder(settings)) is not None:
            return f"not started ({reason}): another trainer runs: {described(other)}"
        seconds = settings.retrain_least_s if least_s is None else least_s
        try:
            if seconds > 0 and not first_in(settings, name, seconds):
                return f"not started ({reason}): one was started within the last {seconds:g} s"
        except LockError as error:
            return f"not started ({reason}): {error}"
        self._child = trainer(settings, [*settings.retrain_options, "--reason", reason]).start()
        return f"started ({reason}), process {self._child.pid}, {self._child.log}"

    def stop(self) -> None:
        """End the trainer that was started here, if it runs; the next one goes on from there."""
        if self._child is not None:
            self._child.stop(GRACE_S)


def trainer(settings: Settings, options: Sequence[str]) -> Child:
    """A trainer with these settings, not yet started; its log is home/logs/retrain.log."""
    environment = settings.environment() | {"BRAID_METRICS_PORT": "0"}  # ours is taken: by us
    log_file = settings.home / "logs" / "retrain.log"
    return Child("retrain", command(options), log=log_file, env=environment)


def add_schedule(app: faust.App, settings: Settings, trigger: Trigger | None = None) -> None:
    """Give the Faust app the crontab of `retrain_cron`, if there is one.

    Every worker's crontab fires, and the first to ask for the minute starts the trainer: Faust's
    own leader is whoever holds a partition of a topic of its own, which is off here, and which
    nobody holds while the group rebalances.

    Raises:
        ConfigError: it is not a crontab.
    """
    if settings.retrain_cron is None:
        return
    from mode import Service
    from mode.utils.cron import secs_for_next

    try:
        secs_for_next(settings.retrain_cron, UTC)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"retrain_cron: {settings.retrain_cron!r}: {error}") from None
    started = trigger or Trigger(settings)

    class Trainers(Service):
        async def on_stop(self) -> None:
            await asyncio.to_thread(started.stop)

    app.service(Trainers)

    @app.crontab(settings.retrain_cron, timezone=UTC)
    async def retrain() -> None:
        log.info("retraining %s", started("crontab", name="cron", least_s=CRON_S))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
