"""What a transaction holds, when one begins, and what a rebalance does to it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from braid.encoders.types import Embedding
from braid.stream.errors import BadRecord, BrokerError, Fenced, PublishRefused, Unreachable
from braid.stream.kafka.client import Output
from braid.stream.liveness.progress import Progress
from braid.stream.settings import Settings
from braid.stream.worker.burst import Burst
from braid.stream.worker.offsets import OffsetLedger
from braid.stream.worker.outputs import OutputTopics
from braid.stream.worker.publisher import Publisher

LEASE = object()
BAD = BadRecord("image", "no picture", stage="prepare")


class Sink:
    """A bounded sink whose call ends when the test says so, or when it is waited for."""

    def __init__(self) -> None:
        self.call: Callable[[Any], None] | None = None
        self.ended = False
        self.error: BrokerError | None = None
        self.published: list[dict[str, Any]] = []
        self.waits: list[float | None] = []
        self.closed: list[float] = []

    def submit(self, call: Callable[[Any], None]) -> None:
        assert self.call is None, "one call at a time"
        self.call, self.ended = call, False
        call(self)

    def publish(self, outputs: list[Output], **rest: Any) -> None:
        self.published.append({"outputs": outputs, **rest})

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
        self.ledger = OffsetLedger[list[Output]]()
        self.queue = SimpleNamespace(busy=False, wait=lambda timeout: self.log.append("queue"))
        self.preparation = SimpleNamespace(within_bound=False)
        self.at_work = False
        self.sink = Sink()
        self.records = SimpleNamespace(lease=LEASE, take_marks=lambda: self.marks)
        self.records.note_committed = lambda offsets: self.committed.append(offsets)
        self.recovery = SimpleNamespace(pending=False, committed=lambda: self.log.append("success"))
        self.refusals: list[Exception] = []
        self.recovery.begin = self.refusals.append
        self.marks: dict[int, int] = {}
        self.committed: list[dict[int, int]] = []
        self.counts: list[Any] = []
        self.metrics = SimpleNamespace(
            assigned=self.counts.append,
            refused=lambda: self.counts.append("refused"),
            published=lambda **figures: self.counts.append(figures),
        )
        self.log: list[str] = []

    def drop(self) -> None:
        self.log.append("drop")
        self.ledger.drop()

    def finish(self, offset: int, partition: int = 0, topic: str | None = None) -> Output:
        """A record that has its output."""
        name = self.topics.predictions if topic is None else topic
        output = Output(topic=name, partition=partition, key=b"%d" % offset, value=b"")
        self.ledger.receive(partition, offset, 1).finish([output])
        return output


@pytest.fixture
def world() -> World:
    return World()


def made(world: Any, ownership: Any = None) -> Publisher:
    return Publisher(
        world,
        ownership=ownership,
        decide=lambda: world.log.append("decide"),
        restart=lambda: world.log.append("restart"),
    )


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


def test_nothing_is_published_without_a_lease_or_before_a_recovery(world: World) -> None:
    publisher = made(world)
    world.finish(0)
    world.marks = {1: 5}
    world.records.lease = None
    publisher.publish()
    world.records.lease, world.recovery.pending = LEASE, True
    publisher.publish()
    assert world.sink.published == []
    world.recovery.pending = False
    publisher.publish()
    assert [call["offsets"] for call in world.sink.published] == [{0: 1}]


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


def test_a_revoked_partition_is_published_while_its_lease_holds(world: World) -> None:
    publisher = made(world)
    world.finish(0)
    publisher.publish()
    world.finish(1)
    world.counts.clear()
    publisher.on_revoked([0])
    assert [call["offsets"] for call in world.sink.published] == [{0: 1}, {0: 2}]
    assert world.committed == [{0: 1}, {0: 2}]
    assert world.log == ["success", "decide", "success", "drop"]
    assert (world.sink.waits, world.counts[-1]) == ([None, None], 0)


@pytest.mark.parametrize("callback", ["on_revoked", "on_lost"])
def test_a_lost_partition_is_not_published(
    world: World, callback: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = made(world)
    assert world.listener is publisher
    world.finish(0)
    publisher.publish()
    world.finish(1)
    world.records.lease = None
    with caplog.at_level("INFO"):
        getattr(publisher, callback)([0])
        getattr(publisher, callback)([])
    assert [line.getMessage() for line in caplog.records] == ["partitions gone: [0]"]
    assert [call["offsets"] for call in world.sink.published] == [{0: 1}]
    assert world.log == ["success", "drop", "drop"]
    assert (len(world.ledger), world.counts[-1]) == (0, 0)


def test_an_assignment_begins_anew(world: World) -> None:
    publisher = made(world)
    world.finish(0)
    world.now = 3.0
    publisher.on_assigned([0, 4])
    assert (world.log, world.counts) == (["drop", "restart"], [2])
    assert (world.progress.moved_at, len(world.ledger)) == (3.0, 0)


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
