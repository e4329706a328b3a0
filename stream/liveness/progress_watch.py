"""The watchdog of workers and index nodes: ends a process that makes no progress.

A worker is stuck when its loop does not pass, or when its committed offsets do not move though an
independent client reads a record at them; an index node likewise, by its applied offsets. The
process then ends with its stacks on standard error, and its supervisor restarts it; uncommitted
records are read again. While no broker answers it is not ended, since a restart would not help.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from ..kafka.client import create, lone_consumer
from ..kafka.waiting import ATTEMPT_S
from ..settings import Settings
from .progress import Progress
from .watchdog import dump_and_exit

log = logging.getLogger(__name__)

EVERY_S = 1.0
PROBE_S = 10.0
ASK_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A worker or reader that the watchdog checks.

    Attributes:
        name: its name in the reason for the end.
        readable: whether an independent client reads a record at its offsets; may raise
            StreamError or KafkaException: no answer.
        bound_s: seconds without progress after which the process is ended.
    """

    name: str
    progress: Progress
    readable: Callable[[], bool]
    bound_s: float


class Watchdog:
    """Checks the process's workers or readers from a daemon thread.

    Time during which the process was stopped (SIGSTOP, a suspended machine) does not count.

    Args:
        end: ends the process, with a reason.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        watched: Callable[[], Iterable[Watched]],
        *,
        end: Callable[[str], object] = dump_and_exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watched, self._end, self._clock = watched, end, clock
        self._seen: dict[int, _Seen] = {}
        self._last = clock()
        self._stopped = threading.Event()
        self.broker = BrokerWatch(settings)

    def start(self) -> Watchdog:
        self.broker.start()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def stop(self) -> None:
        self.broker.stop()
        self._stopped.set()

    def look(self) -> None:
        """Check once; called every EVERY_S."""
        now = self._clock()
        awake_s = min(now - self._last, 2 * EVERY_S)
        self._last = now
        watched = {id(each.progress): each for each in self._watched()}
        self._seen = {key: self._seen.get(key) or _Seen() for key in watched}
        for key, each in watched.items():
            if not each.progress.ended:
                self._look_at(self._seen[key], each, awake_s)

    def _look_at(self, seen: _Seen, watched: Watched, awake_s: float) -> None:
        progress = watched.progress
        seen.add(awake_s, passed=progress.passed, moved=progress.moved_at)
        if seen.loop_s > watched.bound_s:
            self._end(f"{watched.name}: its loop has not passed for {seen.loop_s:.0f} s")
        if seen.still_s <= watched.bound_s:
            return
        moved = progress.moved_at
        lagging = self._answer(watched.readable)
        if lagging and progress.moved_at == moved and not progress.ended:
            self._end(
                f"{watched.name}: no offset has moved for {seen.still_s:.0f} s, and there are "
                "records to read (worker.progress_timeout_s)"
            )
        seen.still_s = watched.bound_s / 2  # probe again later

    def _answer(self, readable: Callable[[], bool]) -> bool:
        """The probe's result within PROBE_S: a client that hangs must not block the watchdog."""
        answer: Future[bool] = Future()

        def ask() -> None:
            try:
                answer.set_result(readable())
            except Exception as error:  # noqa: BLE001 (no answer)
                log.warning("no progress, and Kafka does not answer: %s", error)
                answer.set_result(False)

        threading.Thread(target=ask, name="probe", daemon=True).start()
        wait([answer], timeout=PROBE_S)
        return answer.done() and answer.result()

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            try:
                self.look()
            except Exception:
                log.exception("the watchdog could not look")


class BrokerWatch:
    """Polls the broker for the metadata of `records` on a daemon thread.

    Attributes:
        reason: why it did not answer, or None.
    """

    def __init__(self, settings: Settings) -> None:
        self._admin = create(AdminClient, settings)
        self._topic = settings.topic("records")
        self._stopped = threading.Event()
        self.reason: str | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="broker watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(ASK_EVERY_S):
            try:
                self._admin.list_topics(self._topic, timeout=ATTEMPT_S)
                self.reason = None
            except KafkaException as error:
                self.reason = str(error.args[0].str())


class _Seen:
    """How long a worker's state has not changed, without stopped time."""

    def __init__(self) -> None:
        self.loop_s = self.still_s = 0.0
        self._passed = self._moved = 0.0

    def add(self, awake_s: float, *, passed: float, moved: float) -> None:
        self.loop_s = self.loop_s + awake_s if passed == self._passed else 0.0
        self.still_s = self.still_s + awake_s if moved == self._moved else 0.0
        self._passed, self._moved = passed, moved


def readable(settings: Settings, topic: str, starts: Mapping[int, int]) -> bool:
    """Whether a new client, read committed, reads a record at or after one of these offsets.

    Raises:
        KafkaException: no answer.
    """
    left = set(starts)
    consumer = lone_consumer(settings)
    try:
        consumer.assign([TopicPartition(topic, n, offset) for n, offset in starts.items()])
        until = time.monotonic() + ATTEMPT_S
        while left and time.monotonic() < until:
            raw = consumer.poll(0.5)
            if raw is None:
                continue
            error = raw.error()
            if error is None:
                return True
            if error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            left.discard(raw.partition() or 0)
        return False
    finally:
        consumer.close()
