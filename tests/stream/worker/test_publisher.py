"""What a transaction holds, and when one begins."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from braid.encoders.types import Embedding
from braid.stream.errors import (
    BadRecord,
    BrokerError,
    Fenced,
    PublishRefused,
    Unreachable,
)
from braid.stream.kafka.client import Output
from braid.stream.liveness.burst import Burst
from braid.stream.liveness.progress import Progress
from braid.stream.settings import Settings
from braid.stream.worker.in_flight import Outcome
from braid.stream.worker.latency import STAGES, LatencyTarget
from braid.stream.worker.offsets import OffsetLedger
from braid.stream.worker.outputs import OutputTopics
from braid.stream.worker.publisher import FULL, MAX_HOLD_S, SILENT_S, Publisher

LEASE = object()
BAD = BadRecord("image", "no picture", stage="prepare")


class Sink:
    """A bounded sink whose call ends when the test says so, or when it is waited for."""

    def __init__(self) -> None:
        self.call: Callable[[Any], None] | None = None
        self.ended = False
        self.error: BrokerError | None = None
        self.published: list[dict[str, Any]] = []
        self.opened: list[dict[str, Any]] = []
        self.waits: list[float | None] = []
        self.closed: list[float] = []

    def submit(self, call: Callable[[Any], None]) -> None:
        assert self.call is None, "one call at a time"
        self.call, self.ended = call, False
        call(self)

    def publish(self, outputs: list[Output], **rest: Any) -> None:
        self.published.append({"outputs": outputs, **rest})

    def open(self, **how: Any) -> None:
        self.opened.append(how)

    def wait(self, within_s: float | None = None) -> None:
        self.waits.append(within_s)
        self.ended = True

    def result(self) -> None:
        assert self.call is not None
        assert self.ended
        self.call, error, self.error = None, self.error, None
        if error is not None:
            raise error

    def close(self, within_s: float) -> None:
        self.closed.append(within_s)


class World:
    """The parts of a worker around its publisher, as far as they need no broker."""

    listener: Publisher

    def __init__(self) -> None:
        self.now = 0.0
        settings = Settings().replace(worker={"poison_window": 10})
        self.settings, self.clock = settings, lambda: self.now
        self.topics = OutputTopics(settings, "g0001")
        self.progress, self.burst = Progress(self.clock), Burst(settings)
        self.reached: list[str] = []
        self.failpoint = self.reached.append
        self.ledger = OffsetLedger[Outcome]()
        self.queue = SimpleNamespace(
            busy=False, backlog=False, wait=lambda timeout: self.log.append("queue")
        )
        self.preparation = SimpleNamespace(within_bound=False)
        self.at_work = False
        self.tracing = None
        self.sink = Sink()
        self.records = SimpleNamespace(
            lease=LEASE, owned=[], take_marks=lambda: self.marks, unheard=[]
        )
        self.records.note_committed = lambda offsets: self.committed.append(offsets)
        self.recovery = SimpleNamespace(pending=False, committed=lambda: self.log.append("success"))
        self.refusals: list[Exception] = []
        self.recovery.begin = self.refusals.append
        self.latency: LatencyTarget | None = None
        self.marks: dict[int, int] = {}
        self.committed: list[dict[int, int]] = []
        self.counts: list[Any] = []
        self.metrics = SimpleNamespace(
            assigned=self.counts.append,
            refused=lambda: self.counts.append("refused"),
            published=lambda **figures: self.counts.append(figures),
        )
        self.log: list[str] = []
        self.shown: list[int] = []

    def drop(self) -> None:
        self.log.append("drop")
        self.ledger.drop()

    def finish_silently(self, offset: int) -> None:
        """A record without outputs that is not shown."""
        self.ledger.receive(0, offset, 1).finish(Outcome([]))

    def finish(self, offset: int, partition: int = 0, topic: str | None = None) -> Output:
        """A record that has its output."""
        name = self.topics.predictions if topic is None else topic
        output = Output(topic=name, partition=partition, key=b"%d" % offset, value=b"")
        self.ledger.receive(partition, offset, 1).finish(
            Outcome([output], show=lambda: self.shown.append(offset))
        )
        return output


@pytest.fixture
def world() -> World:
    return World()


def made(world: Any, ownership: Any = None, *, backfills: bool = False) -> Publisher:
    return Publisher(
        world,
        ownership=ownership,
        decide=lambda: world.log.append("decide"),
        restart=(lambda: world.log.append("restart")) if backfills else None,
    )


def test_latencies_are_from_the_poll_to_the_commit(world: World) -> None:
    world.latency = LatencyTarget(10.0, clock=world.clock)
    publisher = made(world)
    world.now = 3.0
    world.ledger.receive(0, 7, since=1.0).finish(Outcome([]))
    publisher.publish()
    world.now = 5.0
    world.sink.ended = True
    publisher.publish()
    assert world.latency.p99_s() == pytest.approx(4.0)
    assert world.latency.batch_s == pytest.approx((10.0 - 2 * 2.0) / STAGES)


def test_a_transaction_has_the_outputs_the_progress_and_the_offsets(world: World) -> None:
    publisher = made(world)
    outputs = [world.finish(7), world.finish(9), world.finish(4, partition=2)]
    world.now = 5.0
    publisher.publish()
    (call,) = world.sink.published
    progress = world.topics.progress({0: 10, 2: 5})
    assert call["outputs"] == outputs + progress
    assert (call["offsets"], call["starts"]) == ({0: 10, 2: 5}, {0: 7, 2: 4})
    assert call["lease"] is LEASE
    assert world.reached == ["before-publish", "after-publish"]
    assert world.shown == [7, 9, 4]
    assert world.counts == [{"records": 3, "seconds": 0.0}]
    world.finish(10)
    publisher.publish()  # the first one is open
    assert (len(world.sink.published), len(world.ledger)) == (1, 4)
    assert (world.progress.moved_at, world.committed) == (0.0, [])
    world.sink.ended = True
    publisher.publish()
    assert world.committed == [{0: 10, 2: 5}]
    assert (world.progress.moved_at, world.log) == (5.0, ["success"])
    assert (len(world.sink.published), len(world.ledger)) == (2, 1)
    assert world.sink.published[1]["starts"] == {0: 10}


def second(world: World, *, took_s: float, ready: int = 1) -> Publisher:
    """A publisher whose first transaction has ended, with so many finished records of a backlog."""
    world.settings = world.settings.replace(worker={"inflight_records": 3 * FULL + 1})
    world.queue.backlog = True
    publisher = made(world)
    world.now = 1.0
    world.finish(0)
    publisher.publish()
    assert len(world.sink.published) == 1, "the first begins at once"
    world.now += took_s
    world.sink.ended = True
    for offset in range(1, 1 + ready):
        world.finish(offset)
    publisher.publish()
    assert world.committed == [{0: 1}]
    return publisher


def test_under_a_backlog_a_transaction_waits_as_long_as_the_one_before_took(world: World) -> None:
    publisher = second(world, took_s=0.05)
    world.now = 1.09
    publisher.publish()
    assert len(world.sink.published) == 1
    world.now = 1.11
    publisher.publish()
    assert world.sink.published[1]["offsets"] == {0: 2}


def test_a_transaction_waits_for_more_within_a_bound(world: World) -> None:
    publisher = second(world, took_s=5.0)
    world.now = 6.0 + MAX_HOLD_S - 0.01
    publisher.publish()
    assert len(world.sink.published) == 1
    world.now = 6.0 + MAX_HOLD_S
    publisher.publish()
    assert len(world.sink.published) == 2


@pytest.mark.parametrize(("ready", "transactions"), [(2, 1), (3, 2)])
def test_a_large_transaction_does_not_wait_for_more(
    world: World, ready: int, transactions: int
) -> None:
    second(world, took_s=0.05, ready=ready)
    assert len(world.sink.published) == transactions


def test_nothing_waits_for_more_without_a_backlog_or_under_a_latency_target(world: World) -> None:
    publisher = second(world, took_s=0.05)
    world.queue.backlog = False
    publisher.publish()
    assert len(world.sink.published) == 2
    other = World()
    other.latency = LatencyTarget(10.0, clock=other.clock)
    second(other, took_s=0.05)
    assert len(other.sink.published) == 2


def test_what_waits_for_more_is_published_at_the_end_and_when_partitions_go(world: World) -> None:
    second(world, took_s=0.05).drain()
    assert len(world.sink.published) == 2
    other = World()
    second(other, took_s=0.05).on_revoked([0])
    assert len(other.sink.published) == 2


def test_offsets_that_cannot_be_read_are_settled_ever_more_rarely(world: World) -> None:
    """The broker lost the end markers of a transaction whose end it had confirmed."""

    def unstable() -> None:
        raise Unreachable("UNSTABLE_OFFSET_COMMIT")

    publisher = made(world)
    world.records.unheard, world.records.committed = [1], unstable
    opened_at: list[int] = []
    for second in range(100):
        world.now, world.sink.ended = float(second), True
        publisher.publish()
        if len(world.sink.opened) > len(opened_at):
            opened_at.append(second)
    assert opened_at == [SILENT_S, 3 * SILENT_S, 7 * SILENT_S]
    assert world.sink.opened[0] == {"doubted": True}
    assert "drop" not in world.log  # records of other partitions stay in flight


def test_a_silent_partition_with_settled_offsets_is_let_alone(world: World) -> None:
    publisher = made(world)
    world.records.unheard, world.records.committed = [1], lambda: [0]
    for second in range(100):
        world.now = float(second)
        publisher.publish()
    assert world.sink.opened == []


def test_what_is_not_shown_is_published_all_the_same(world: World) -> None:
    world.finish_silently(3)
    made(world).publish()
    assert world.sink.published[0]["offsets"] == {0: 4}
    assert world.shown == []


def test_nothing_is_published_without_a_lease_or_before_a_recovery(world: World) -> None:
    publisher = made(world)
    world.finish(0)
    world.marks = {1: 5}
    world.records.lease = None
    publisher.publish()
    world.records.lease, world.recovery.pending = LEASE, True
    publisher.publish()
    assert (world.sink.published, world.shown) == ([], [])
    world.recovery.pending = False
    publisher.publish()
    assert [call["offsets"] for call in world.sink.published] == [{0: 1}]
    assert world.shown == [0]


def test_marks_alone_are_published_with_their_offsets(world: World) -> None:
    publisher = made(world)
    publisher.publish()
    world.ledger.receive(0, 3)
    world.marks = {1: 5}
    publisher.publish()
    (call,) = world.sink.published
    assert call == {
        "outputs": world.topics.progress({1: 5}),
        "offsets": {1: 5},
        "lease": LEASE,
    }
    world.sink.ended, world.marks = True, {}
    publisher.publish()
    assert (world.committed, len(world.ledger)) == ([{}], 1)


def test_a_burst_of_bad_records_holds_what_is_finished(world: World) -> None:
    publisher = made(world)
    world.finish(0)
    world.at_work = True
    world.burst.bad(BAD, 0.0)
    world.now = 60.0
    publisher.publish()
    assert world.sink.published == []
    world.at_work = False  # nothing comes that could tell
    publisher.publish()
    assert len(world.sink.published) == 1


@pytest.mark.parametrize("error", [PublishRefused("x"), Unreachable("x"), Fenced("x")])
def test_a_refused_transaction_drops_everything_and_begins_a_recovery(
    world: World, error: BrokerError
) -> None:
    publisher = made(world)
    world.finish(0)
    publisher.publish()
    world.counts.clear()
    world.sink.ended, world.sink.error = True, error
    publisher.publish()
    assert (world.refusals, world.counts, world.log) == ([error], ["refused"], ["drop"])
    assert (world.committed, len(world.ledger)) == ([], 0)
    world.finish(0)
    publisher.publish()
    assert len(world.sink.published) == 2


def test_another_error_of_the_broker_ends_the_worker(world: World) -> None:
    publisher = made(world)
    world.finish(0)
    publisher.publish()
    world.sink.ended, world.sink.error = True, BrokerError("not authorized")
    with pytest.raises(BrokerError, match="not authorized"):
        publisher.publish()


def test_only_what_the_generation_owns_is_published_and_every_vector(world: World) -> None:
    asked: list[Any] = []

    def owns(places: list[tuple[int, int]]) -> list[bool] | None:
        asked.append(places)
        return None if len(asked) == 1 else [offset == 1 for _, offset in places]

    publisher = made(world, ownership=SimpleNamespace(owns=owns))
    world.now = 1.0
    mine = [
        world.finish(offset, topic=topic)
        for offset, topic in enumerate([None, None, world.topics.vectors])
    ]
    publisher.publish()
    assert (world.sink.published, world.progress.moved_at) == ([], 1.0)  # undecided
    assert world.shown == []
    publisher.publish()
    assert asked == [[(0, 0), (0, 1), (0, 2)]] * 2
    (call,) = world.sink.published
    assert call["outputs"] == mine[1:] + world.topics.progress({0: 3})


def test_a_worker_with_nothing_to_publish_moves_only_while_its_threads_are_in_time(
    world: World,
) -> None:
    publisher = made(world)
    for now, busy, within_bound, moved_at in (
        (1.0, False, False, 0.0),
        (2.0, True, False, 2.0),
        (3.0, False, True, 3.0),
    ):
        world.now, world.queue.busy, world.preparation.within_bound = now, busy, within_bound
        publisher.publish()
        assert world.progress.moved_at == moved_at
    world.finish(0)
    publisher.publish()
    world.now = 4.0
    publisher.publish()  # the transaction is open: its own bound is of no concern here
    assert world.progress.moved_at == 3.0


def tallied(world: World) -> list[bytes]:
    outputs = world.sink.published[-1]["outputs"]
    return [one.key for one in outputs if one.topic == world.topics.statistics]


def test_output_statistics_go_with_a_transaction_and_are_dropped_with_records(
    world: World,
) -> None:
    publisher = made(world)
    unit = np.array([1.0, 0.0], np.float32)
    embedding = Embedding(id="a", fused=unit, by={"text": unit}, tasks={})
    publisher.tally("braid-0001", [embedding])
    world.finish(0)
    publisher.publish()
    assert tallied(world) == [b"g0001/braid-0001"]
    publisher.tally("braid-0001", [embedding])
    publisher.on_lost([0])
    world.now = 100.0
    world.finish(0)
    publisher.publish()
    assert tallied(world) == []


def test_a_drain_publishes_what_the_device_has_within_its_bound(world: World) -> None:
    publisher = made(world)
    world.finish(0)
    publisher.publish()
    world.finish(1)
    world.queue.wait = lambda timeout: world.log.append(f"queue {timeout:g}")
    world.now = 1.0
    publisher.drain()
    assert [call["offsets"] for call in world.sink.published] == [{0: 1}, {0: 2}]
    assert world.log == ["queue 5", "decide", "success", "success"]
    assert world.sink.waits == [5.0, 5.0]


def test_a_device_that_takes_all_of_a_drain_leaves_a_second_for_the_last(world: World) -> None:
    def slow(timeout: float) -> None:
        world.now += timeout + 1.0

    publisher = made(world)
    world.finish(0)
    publisher.publish()
    world.finish(1)
    world.queue.wait = slow
    publisher.drain()
    assert world.sink.waits == [0.0, 1.0]
    assert world.committed == [{0: 1}, {0: 2}]


def test_closing_waits_for_an_open_transaction_alone(world: World) -> None:
    publisher = made(world)
    publisher.close(5.0)
    world.finish(0)
    publisher.publish()
    publisher.close(5.0)
    assert world.sink.closed == [0.0, 5.0]
    assert world.log == ["drop", "drop"]
    publisher.on_lost([])  # the revocation of a consumer that closes: nothing is open
    assert world.sink.waits == []
