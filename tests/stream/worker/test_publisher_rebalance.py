"""What a rebalance does to the transaction of a worker."""

from __future__ import annotations

import numpy as np
import pytest

from braid.encoders.types import Embedding
from braid.stream.errors import StaleLease
from braid.stream.worker.in_flight import Outcome
from braid.stream.worker.open_transaction import MAX_STALE
from tests.stream.worker.test_publisher import World, made, tallied


@pytest.fixture
def world() -> World:
    return World()


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
    world.now, world.records.owned = 3.0, [0, 4]
    publisher.on_assigned([0, 4])
    assert (world.log, world.counts) == (["drop"], [2])
    assert (world.progress.moved_at, len(world.ledger)) == (3.0, 0)


def test_partitions_that_come_and_go_leave_the_others_in_flight(world: World) -> None:
    publisher = made(world)
    world.records.owned = [0, 1, 2]
    waits = world.ledger.receive(0, 7, 100)
    for partition in (1, 2):
        world.finish(5, partition=partition)
        world.ledger.receive(partition, 6, 100)
    world.records.owned = [0, 1]
    publisher.on_revoked([2])
    assert [call["offsets"] for call in world.sink.published] == [{1: 6, 2: 6}], "while it may"
    world.records.owned = [0, 1, 3]
    publisher.on_assigned([3])
    world.records.owned = [0, 1]
    publisher.on_lost([3])
    assert "drop" not in world.log
    assert (len(world.ledger), world.ledger.nbytes) == (2, 200), "of 0 and 1"
    waits.finish(Outcome([]))
    publisher.publish()
    assert world.sink.published[-1]["offsets"] == {0: 8}


def test_a_backfill_begins_anew_whenever_partitions_come_or_go(world: World) -> None:
    publisher = made(world, backfills=True)
    for change, owned in ((publisher.on_assigned, [0, 1]), (publisher.on_revoked, [0])):
        world.log.clear()
        world.ledger.receive(0, 7, 100)
        world.records.owned = owned
        change([1])
        assert world.log[-2:] == ["drop", "restart"]
        assert len(world.ledger) == 0


def test_what_a_stale_lease_refused_is_published_again_as_it_is(world: World) -> None:
    publisher = made(world)
    unit = np.array([1.0, 0.0], np.float32)
    publisher.tally("m", [Embedding(id="a", fused=unit, by={"text": unit}, tasks={})])
    world.finish(0)
    publisher.publish()
    for _ in range(MAX_STALE):
        world.sink.ended, world.sink.error = True, StaleLease("ILLEGAL_GENERATION")
        publisher.publish()
        assert (world.refusals, world.log) == ([], [])
    first, *again = world.sink.published
    assert again == [first] * MAX_STALE, "with its output statistics"
    world.sink.ended = True
    world.finish(1)
    publisher.publish()
    assert world.committed == [{0: 1}]
    assert tallied(world) == [], "they are committed"


def test_a_lease_that_stays_stale_is_a_refusal(world: World) -> None:
    publisher = made(world)
    world.finish(0)
    publisher.publish()
    for _ in range(MAX_STALE + 1):
        world.sink.ended, world.sink.error = True, StaleLease("ILLEGAL_GENERATION")
        publisher.publish()
    assert [type(error) for error in world.refusals] == [StaleLease]
    assert world.log == ["drop"]
