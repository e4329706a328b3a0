"""The watchdog and the health of a worker's process.

A worker is stuck when its loop does not pass, or when its committed offsets stand still though an
independent client reads a record there. Its process then ends with its stacks on standard error,
and whoever supervises it starts it again: nothing that was not committed is lost. While no broker
answers there is nothing to be gained by a new process, and the worker waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from .broker import Admin, client_config, lone_consumer
from .settings import Settings
from .waiting import ATTEMPT_S
from .watchdog import dump_and_exit
from .worker import Worker

log = logging.getLogger(__name__)

EVERY_S = 1.0
PROBE_S = 10.0
ASK_EVERY_S = 5.0
NOT_A_MEMBER = 2  # times the bound: a rebalance may wait for another member


class Watchdog:
    """Looks at the process's workers from a daemon thread of its own.

    Time during which the whole process stood still (SIGSTOP, a suspended machine) does not count.

    Args:
        workers: the settings of each worker, with its generation, and the worker.
        end: ends the process, with a reason.
        probe: whether a record can be read where a worker's group has committed; None: no answer.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        workers: Callable[[], Iterable[tuple[Settings, Worker]]],
        *,
        end: Callable[[str], object] = dump_and_exit,
        probe: Callable[[Settings, list[int]], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bound_s = settings.progress_timeout_s
        self._workers, self._end, self._clock = workers, end, clock
        self._probe = probe or readable
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
        """Look once; called every EVERY_S."""
        now = self._clock()
        awake_s = min(now - self._last, 2 * EVERY_S)
        self._last = now
        watched = {id(worker): (settings, worker) for settings, worker in self._workers()}
        self._seen = {key: self._seen.get(key) or _Seen() for key in watched}
        for key, (settings, worker) in watched.items():
            if not worker.progress.ended:
                self._look_at(self._seen[key], settings, worker, awake_s)

    def _look_at(self, seen: _Seen, settings: Settings, worker: Worker, awake_s: float) -> None:
        progress, name = worker.progress, f"the worker of {settings.group}"
        seen.add(awake_s, passed=progress.passed, moved=progress.moved_at)
        if seen.loop_s > self._bound_s:
            self._end(f"{name}: its loop has not passed for {seen.loop_s:.0f} s")
        bound_s = self._bound_s * (1 if worker.is_member else NOT_A_MEMBER)
        if seen.still_s <= bound_s:
            return
        moved = progress.moved_at
        lagging = self._answer(settings, worker.owned)
        if lagging and progress.moved_at == moved and not progress.ended:
            self._end(
                f"{name}: no committed offset has moved for {seen.still_s:.0f} s, and there are "
                "records to read (progress_timeout_s)"
            )
        seen.still_s = bound_s / 2  # ask again in a while

    def _answer(self, settings: Settings, owned: list[int]) -> bool:
        """What the probe says within PROBE_S; a client that hangs must not hang the watchdog."""
        answer: Future[bool] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._probe(settings, owned))
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
    """Asks the broker for the metadata of `records`, again and again, on a daemon thread.

    Attributes:
        reason: why it did not answer, or None.
    """

    def __init__(self, settings: Settings) -> None:
        self._admin = AdminClient(client_config(settings))
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
    """For how long, awake, a worker has looked the same."""

    def __init__(self) -> None:
        self.loop_s = self.still_s = 0.0
        self._passed = self._moved = 0.0

    def add(self, awake_s: float, *, passed: float, moved: float) -> None:
        self.loop_s = self.loop_s + awake_s if passed == self._passed else 0.0
        self.still_s = self.still_s + awake_s if moved == self._moved else 0.0
        self._passed, self._moved = passed, moved


def readable(settings: Settings, owned: list[int]) -> bool:
    """Whether an independent client reads a record at a committed offset of the group.

    Args:
        owned: the partitions looked at; without any, all.

    Raises:
        StreamError, KafkaException: no answer.
    """
    topic = settings.topic("records")
    admin = Admin(settings.model_copy(update={"broker_timeout_s": ATTEMPT_S}))
    partitions = admin.partition_counts().get(topic, 0)
    committed = admin.committed(settings.group, topic, partitions)
    left = set(owned or range(partitions))
    consumer = lone_consumer(settings)
    try:
        consumer.assign(
            [TopicPartition(topic, n, committed.get(n, OFFSET_BEGINNING)) for n in left]
        )
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


def health(
    settings: Settings, worker: Worker | None, serving: str, away: str | None
) -> tuple[bool, dict[str, Any]]:
    """Whether the serving generation's worker is well, and what `/healthz` says of it.

    Args:
        away: why the broker does not answer, or None.

    Returns:
        (well, facts): `status` is ok or why not; times are in seconds.
    """
    if worker is None:
        return False, {"status": "starting", "generation": serving}
    progress, bound_s = worker.progress, settings.progress_timeout_s
    status = "ok"
    if progress.ended:
        status = "stopping"
    elif (reason := worker.waits_for or away) is not None:
        status = f"waiting for Kafka: {reason}"
    elif not worker.is_member and progress.age_s > bound_s:
        status = f"the group has assigned nothing for {progress.age_s:.0f} s"
    elif progress.age_s > bound_s:
        status = f"no committed offset has moved for {progress.age_s:.0f} s"
    facts: Mapping[str, Any] = {
        "status": status,
        "generation": serving,
        "model": worker.model.name,
        "partitions": worker.owned,
        "lag": progress.lag,
        "progress_age_s": round(progress.age_s, 1),
        "broker": settings.kafka_bootstrap,
    }
    return status == "ok", dict(facts)
