"""The latency target: sizes and waits of micro-batches on a machine that is simulated."""

from __future__ import annotations

import heapq
import logging
import math
import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.encoders.types import Cost
from braid.stream.failpoints import Failpoints
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.worker.batcher import IN_FLIGHT, EncodeQueue, MicroBatcher
from braid.stream.worker.bisection import Budget, CallCost
from braid.stream.worker.latency import FEWEST, HOLD_S, REPORT_S, STAGES, LatencyTarget
from tests.stream.worker.test_bisection import Clock, Held, Picky, encode_all, items_of, one_of

MOST = 256
FULL = Budget(records=MOST, tokens=1 << 30, pixels=1 << 30, seconds=math.inf)


@dataclass
class Machine:
    """A worker on a device that takes `fixed_s + n record_s` for n records, one batch at a time,
    and whose transactions take `publish_s`, one at a time. The clock is of events.

    Attributes:
        latencies: of all records, from poll to publication, with the time of publication.
        sizes: of the batches.
    """

    target_s: float | None
    fixed_s: float
    record_s: float
    publish_s: float
    now: float = 0.0
    latencies: list[tuple[float, float]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    problems: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calls = CallCost()
        self.batcher = MicroBatcher[float](FULL, max_wait=0.05)
        self.target = LatencyTarget(self.target_s or math.inf, clock=lambda: self.now)
        self.kafka: deque[float] = deque()
        self.device: list[tuple[float, list[float], float]] = []  # until, records, seconds
        self.encoded: list[float] = []
        self.open: tuple[float, list[float]] | None = None
        self.in_flight, self.looked_at = 0, 0.0

    def run(self, arrivals: list[float]) -> None:
        """Take records that are produced at these times, until all are published."""
        left = deque(arrivals)
        while left or self.kafka or self.in_flight:
            while left and left[0] <= self.now:
                self.kafka.append(left.popleft())
            self.step()
            moments = [until for until, _, _ in self.device] + ([left[0]] if left else [])
            moments += [] if self.open is None else [self.open[0]]
            if (due := self.batcher.due_in(self.now)) is not None and len(self.device) < IN_FLIGHT:
                moments.append(self.now + due)
            later = [moment for moment in moments if moment > self.now]
            self.now = min(later) if later else self.now + 1e-3

    def step(self) -> None:
        """One pass of the worker's loop."""
        records = self.target.records(self.calls.seconds, MOST)
        while self.kafka and self.in_flight < STAGES * records:
            self.kafka.popleft()
            self.batcher.add(self.now, Cost(), since=self.now)
            self.in_flight += 1
        for batch in [one for one in self.device if one[0] <= self.now]:
            self.device.remove(batch)
            self.encoded += batch[1]
            self.calls.passed(len(batch[1]), batch[2])
        while len(self.device) < IN_FLIGHT and self.take(records):
            pass
        if self.open is not None and self.open[0] <= self.now:
            polled, self.open = self.open[1], None
            self.latencies += [(self.now, self.now - since) for since in polled]
            self.in_flight -= len(polled)
            self.target.published(polled, self.publish_s)
            if self.now - self.looked_at >= 1.0:
                self.looked_at = self.now
                self.problems.append(self.target.missed(len(self.kafka), self.record_s))
        if self.open is None and self.encoded:
            self.open, self.encoded = (self.now + self.publish_s, self.encoded), []

    def take(self, records: int) -> bool:
        budget = Budget(records=records, tokens=1 << 30, pixels=1 << 30, seconds=math.inf)
        self.batcher.limit(budget, max_wait=self.target.wait_s(busy=bool(self.device)))
        batch = self.batcher.take(self.now)
        if batch is None:
            return False
        took_s = self.fixed_s + len(batch) * self.record_s
        start = max([self.now, *(until for until, _, _ in self.device)])
        self.device.append((start + took_s, batch, took_s))
        self.sizes.append(len(batch))
        return True

    def p99(self, after: float, before: float = math.inf) -> float:
        """Of the records published in between."""
        chosen = [took for at, took in self.latencies if after <= at < before]
        return heapq.nlargest(max(1, len(chosen) // 100), chosen)[-1]


def poisson(rate: float, seconds: float, seed: int, start: float = 0.0) -> list[float]:
    chance = random.Random(seed)
    times, now = [], start
    while (now := now + chance.expovariate(rate)) < start + seconds:
        times.append(now)
    return times


def bound(target_s: float, fixed_s: float, record_s: float, publish_s: float) -> float:
    """Records a second in the batches that the target allows."""
    batch_s = (target_s - 2 * publish_s) / STAGES
    records = min(MOST, int((batch_s - fixed_s) / record_s))
    return records / (fixed_s + records * record_s)


machines = st.tuples(
    st.floats(0.0005, 0.01),  # fixed_s
    st.floats(0.003, 0.01),  # record_s
    st.floats(0.002, 0.03),  # publish_s
    st.sampled_from([0.4, 1.0, 2.0]),  # target_s
)


@settings(max_examples=40, deadline=None)
@given(machines, st.floats(0.05, 0.8), st.integers(0, 100))
def test_the_p99_stays_within_the_target_under_a_load_that_the_machine_can_carry(
    machine: tuple[float, float, float, float], load: float, seed: int
) -> None:
    fixed_s, record_s, publish_s, target_s = machine
    rate = load * bound(target_s, fixed_s, record_s, publish_s)
    worker = Machine(target_s, fixed_s, record_s, publish_s)
    worker.run(poisson(rate, seconds=10 * target_s + 10, seed=seed))
    assert worker.p99(after=5 * target_s + 3) <= target_s
    assert all(problem is None for problem in worker.problems)


def test_a_step_of_the_load_is_carried_and_a_record_alone_leaves_at_once() -> None:
    fixed_s, record_s, publish_s, target_s = 0.01, 0.005, 0.01, 1.0
    full = bound(target_s, fixed_s, record_s, publish_s)
    arrivals = [
        *poisson(0.1 * full, 20, 0),
        *poisson(0.9 * full, 60, 1, start=20),
        *poisson(0.1 * full, 20, 2, start=80),
    ]
    worker = Machine(target_s, fixed_s, record_s, publish_s)
    worker.run(arrivals)
    assert worker.p99(5, 20) < 0.2
    assert worker.p99(25, 80) < target_s
    assert worker.p99(85) < 0.2
    assert set(worker.sizes[:5]) == {1}


def test_a_load_beyond_the_machine_waits_in_kafka_and_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is polled is still published in time, in full batches."""
    fixed_s, record_s, publish_s, target_s = 0.01, 0.005, 0.01, 1.0
    full = bound(target_s, fixed_s, record_s, publish_s)
    worker = Machine(target_s, fixed_s, record_s, publish_s)
    worker.run(poisson(2 * full, 60, 0))
    assert worker.p99(after=5) <= target_s
    reasons = [problem for problem in worker.problems if problem is not None]
    assert "records wait in Kafka" in reasons[-1]
    assert " 0 records wait" not in reasons[-1]
    assert min(worker.sizes[-20:-1]) > 20
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            worker.target.report(reasons[-1], generation="g0001")
        assert len(caplog.records) == 1
        worker.now += REPORT_S
        worker.target.report(reasons[-1], generation="g0001")
        worker.target.report(None, generation="g0001")
    assert len(caplog.records) == 2
    assert "batch.latency_ms = 1000 is missed" in caplog.text


def test_a_target_that_no_batch_keeps_is_missed_with_small_batches() -> None:
    worker = Machine(0.05, fixed_s=0.1, record_s=0.01, publish_s=0.01)
    worker.run(poisson(5, 30, 0))
    assert "p99 of the last 60 s" in str(worker.problems[-1])
    assert max(worker.sizes) <= FEWEST


def test_a_short_excess_is_not_reported() -> None:
    clock = [0.0]
    target = LatencyTarget(1.0, clock=lambda: clock[0])
    assert target.missed(0, 1.0) is None
    for _ in range(int(HOLD_S)):
        assert target.missed(100, 1.0) is None
        clock[0] += 1.0
    assert target.missed(100, 1.0) is not None
    assert target.missed(0, 1.0) is None
    clock[0] += HOLD_S
    assert target.missed(100, 1.0) is None


def test_batches_follow_the_measured_p99() -> None:
    """The rest of the time, such as preparation, is in no formula."""
    clock = [0.0]
    target = LatencyTarget(1.0, clock=lambda: clock[0])

    def published(latency_s: float) -> float:
        clock[0] += 1.0
        target.published([clock[0] - latency_s] * 60, 0.1)
        return target.batch_s

    first = target.batch_s
    assert published(1.5) < 0.85 * first
    assert published(0.8) == published(0.9)  # in time, and no room
    for _ in range(40):
        published(5.0)
    least = target.batch_s
    assert 0.02 < least < 0.1
    assert published(0.1) > least
    for _ in range(60):
        published(0.1)
    assert first < target.batch_s < 1.0


@pytest.mark.parametrize("backlog", [False, True])
def test_a_batch_waits_to_be_full_while_the_device_works_and_there_are_more(backlog: bool) -> None:
    clock = Clock()
    model = Held()
    queue = EncodeQueue(
        Settings(batch={"records": 4, "wait_s": 1.0}),
        lanes=2,
        metrics=WorkerMetrics().of("g0001"),
        failpoint=Failpoints(),
        clock=clock,
    )
    queue.backlog = backlog
    try:
        for item in items_of(model, 6):
            queue.add(item)
        clock.now = 5.0
        queue.submit(model)
        assert len(queue.futures) == (1 if backlog else 2)
        for item in items_of(model, 2, start=6):
            queue.add(item)
        queue.submit(model)
        assert len(queue.futures) == 2
        model.go.set()
        queue.wait(30.0)
        sizes = sorted(len(batch.made) for batch in queue.finished())
        assert sizes == ([4, 4] if backlog else [2, 4])
    finally:
        model.go.set()
        queue.close()


def test_a_latency_target_limits_the_records_of_a_batch() -> None:
    """And a batch leaves at once while the device is idle."""
    clock = Clock()
    model = Picky(one_of(set()))
    queue = EncodeQueue(
        Settings(batch={"records": 64, "wait_s": 60.0}),
        lanes=1,
        metrics=WorkerMetrics().of("g0001"),
        failpoint=Failpoints(),
        clock=clock,
        target=LatencyTarget(1.0, clock=clock),
    )
    try:
        made, _ = encode_all(queue, model, items_of(model, 3))
        assert (len(made), model.sizes) == (3, [3])
        assert queue.records == FEWEST  # nothing is known of the device
        made, _ = encode_all(queue, model, items_of(model, 10, start=3))
        assert model.sizes == [3, 4, 4, 2]
    finally:
        queue.close()
