"""What a poll returns: with room, while resting, and around a backfill."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from braid.stream.errors import PublishRefused
from braid.stream.failpoints import Failpoints
from braid.stream.kafka.client import Message
from braid.stream.liveness.progress import Progress
from braid.stream.settings import MIB, Settings
from braid.stream.worker.latency import LatencyTarget
from braid.stream.worker.offsets import OffsetLedger
from braid.stream.worker.source import BackfillingSource, Intake, Throttle, ThrottledSource


class Records:
    """A plain source and its consumer: each poll has as many messages as it may."""

    ready = True

    def __init__(self) -> None:
        self.limits: list[int] = []
        self.idle_polls = 0
        self.seconds: list[float] = []
        self.during: Any = None
        self.found, self.waiting = 1000, 1

    def poll(self, limit: int, *, wait_s: float) -> list[Message]:
        self.limits.append(limit)
        if self.during is not None:
            self.during()
        return [
            Message(topic="r", partition=0, offset=n, key=b"", value=b"")
            for n in range(min(limit, self.found))
        ]

    def idle_poll(self) -> None:
        self.idle_polls += 1

    def encoded(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def forget(self) -> None: ...

    def lag(self) -> dict[int, int]:
        return {0: self.waiting}


class Backfilling:
    """A backfill of some chunks."""

    def __init__(self, chunks: int) -> None:
        self.chunks = self.left = chunks
        self.error: Exception | None = None

    @property
    def busy(self) -> bool:
        return self.left > 0

    def forget(self) -> None:
        self.left = self.chunks

    def step(self, *_: object) -> bool:
        if self.error is not None:
            raise self.error
        self.left -= 1
        return True


class Recovering:
    def __init__(self) -> None:
        self.pending = False
        self.commits = 0

    def step(self) -> bool:
        return not self.pending

    def begin(self, error: Exception) -> None:
        self.pending = True

    def committed(self) -> None:
        self.commits += 1


@pytest.fixture
def shared() -> Any:
    made: Any = SimpleNamespace(now=0.0)
    made.clock = lambda: made.now
    made.settings = Settings().replace(worker={"inflight_records": 100, "inflight_bytes": 16 * MIB})
    made.progress, made.failpoint = Progress(made.clock), Failpoints()
    made.ledger = OffsetLedger[Any]()
    made.preparation = SimpleNamespace(next=None)
    made.queue = SimpleNamespace(futures=[], due_in=lambda now: None, records=20, record_s=0.1)
    made.latency, made.generation = None, "g0001"
    made.at_work, made.topics = False, None
    made.records, made.recovery = Records(), Recovering()
    made.sink = SimpleNamespace(future=None)
    made.metrics = SimpleNamespace(lag=lambda lags: None)
    return made


def received(intake: Intake, shared: Any) -> int:
    return len(intake.receive(shared.now))


def test_a_poll_takes_what_there_is_room_for(shared: Any) -> None:
    intake = Intake(shared, shared.records)
    assert received(intake, shared) == 64
    for offset in range(90):
        shared.ledger.receive(0, offset, MIB // 10)
    assert received(intake, shared) == 10
    shared.ledger.receive(0, 90, 8 * MIB)
    assert received(intake, shared) == 0  # 17 MiB are in flight
    assert shared.records.limits == [64, 10]
    shared.now += 1.5
    assert received(intake, shared) == 0
    assert shared.records.idle_polls == 1  # for the callbacks of a rebalance


def test_a_poll_that_is_full_says_that_there_is_more(shared: Any) -> None:
    intake = Intake(shared, shared.records)
    received(intake, shared)
    assert shared.queue.backlog
    shared.records.found = 3
    received(intake, shared)
    assert not shared.queue.backlog
    for offset in range(100):
        shared.ledger.receive(0, offset)
    received(intake, shared)
    assert not shared.queue.backlog  # nothing can come before a commit
    shared.preparation.next = Future()
    received(intake, shared)
    assert shared.queue.backlog


def test_a_latency_target_bounds_what_is_in_flight_and_is_checked(shared: Any) -> None:
    shared.latency = LatencyTarget(1.0, clock=shared.clock)
    told: list[Any] = []
    shared.metrics.latency = lambda *facts: told.append(facts)
    intake = Intake(shared, shared.records)
    shared.records.waiting = 50
    for offset in range(70):
        shared.ledger.receive(0, offset)
    assert received(intake, shared) == 10  # of four batches of 20
    for _ in range(20):
        shared.now += 1.1
        received(intake, shared)
    assert told[0] == (1.0, None, None)
    assert "50 records wait in Kafka, 5.0 s of work" in told[-1][2]


def test_nothing_is_polled_while_a_recovery_is_pending(shared: Any) -> None:
    intake = Intake(shared, shared.records)
    shared.recovery.pending = True
    assert received(intake, shared) == 0
    assert shared.records.limits == []


def test_what_comes_in_the_poll_that_begins_a_recovery_is_read_again(shared: Any) -> None:
    """A rebalance in the poll ends a refused transaction, and messages come in the same call."""
    shared.records.during = lambda: shared.recovery.begin(RuntimeError())
    assert received(Intake(shared, shared.records), shared) == 0
    assert shared.records.limits == [64]


def test_a_throttled_source_rests_and_that_is_no_standstill(shared: Any) -> None:
    source = ThrottledSource(shared.records, Throttle(0.25, lambda: True), shared.clock)
    intake = Intake(shared, source)
    source.encoded(1.0)
    shared.now += 1.9
    assert received(intake, shared) == 0
    assert shared.progress.age_s == 0
    shared.now += 0.2
    assert received(intake, shared) == 64


def test_partitions_are_backfilled_before_they_are_polled(shared: Any) -> None:
    backfill: Any = Backfilling(3)
    intake = Intake(shared, BackfillingSource(shared.records, backfill, shared))
    assert [received(intake, shared) for _ in range(4)] == [0, 0, 0, 64]
    assert shared.recovery.commits == 3
    assert len(shared.records.seconds) == 3  # the throttle counts them


def test_what_comes_with_a_new_assignment_is_read_again_after_the_backfill(shared: Any) -> None:
    backfill: Any = Backfilling(1)
    source = BackfillingSource(shared.records, backfill, shared)
    intake = Intake(shared, source)
    assert [received(intake, shared) for _ in range(2)] == [0, 64]
    shared.records.during = source.forget  # the partitions were assigned within the poll
    assert received(intake, shared) == 0
    shared.records.during = None
    assert [received(intake, shared) for _ in range(2)] == [0, 64]


def test_a_refused_chunk_begins_a_recovery_and_the_backfill_anew(shared: Any) -> None:
    backfill: Any = Backfilling(2)
    intake = Intake(shared, BackfillingSource(shared.records, backfill, shared))
    received(intake, shared)
    backfill.error = PublishRefused("a rebalance")
    assert received(intake, shared) == 0
    assert shared.recovery.pending
    assert backfill.left == 2
