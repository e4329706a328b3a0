"""Batches that fail: which record is condemned, what of its neighbours is encoded again."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from braid.encoders.model.null import NullModel
from braid.encoders.types import Embedding, Prepared, Sample
from braid.stream.errors import BadRecord, WorkerError
from braid.stream.failpoints import Failpoints
from braid.stream.kafka.client import Message
from braid.stream.liveness.burst import HOLD_S, Burst
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.worker.batcher import EncodeQueue
from braid.stream.worker.bisection import GROW_AFTER_S, Bisection, Budget, Piece, out_of_memory
from braid.stream.worker.in_flight import Item
from braid.stream.worker.offsets import Ticket

FULL = Budget(records=64, tokens=1000, pixels=100, seconds=10.0)


class Picky(NullModel):
    """Raises on batches by a rule of the test's, and counts what it is asked."""

    def __init__(self, refuses: Any, error: Exception | None = None) -> None:
        super().__init__(16)
        self.refuses = refuses
        self.error = error or FloatingPointError("the device fell over")
        self.sizes: list[int] = []
        self.refused: list[int] = []

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        self.sizes.append(len(prepared))
        if self.refuses([item.id for item in prepared]):
            self.refused.append(len(prepared))
            raise self.error
        return super().encode(prepared)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def one_of(bad: set[str]) -> Any:
    return lambda ids: not bad.isdisjoint(ids)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> Iterator[EncodeQueue]:
    made = EncodeQueue(
        Settings(batch={"records": 64, "wait_s": 0.0}),
        lanes=1,
        metrics=WorkerMetrics().of("g0001"),
        failpoint=Failpoints(),
        clock=clock,
    )
    yield made
    made.close()


def items_of(model: NullModel, count: int, start: int = 0) -> list[Item]:
    items = []
    for number in range(start, start + count):
        message = Message(topic="records", partition=0, offset=number, key=b"", value=b"", ts=0)
        item = Item(message, Ticket(0, number), 0.0, model=model)
        item.prepared = model.prepare(Sample(id=f"r{number}", text=f"text {number}"))
        items.append(item)
    return items


def encode_all(
    queue: EncodeQueue, model: NullModel, items: Sequence[Item]
) -> tuple[list[str], dict[str, BadRecord]]:
    """Ids of those that got embeddings, in order, and the condemned with their reasons."""
    for item in items:
        queue.add(item)
    made: list[str] = []
    dead: dict[str, BadRecord] = {}
    while len(made) + len(dead) < len(items):
        queue.submit(model)
        queue.wait(10.0)
        for batch in queue.finished():
            made += [embedding.id for _, embedding in batch.made]
            if batch.condemned is not None:
                item, reason = batch.condemned
                dead[f"r{item.message.offset}"] = reason
    return made, dead


@pytest.mark.parametrize("seed", range(5))
def test_exactly_the_records_that_fail_are_condemned(queue: EncodeQueue, seed: int) -> None:
    chance = random.Random(seed)
    bad = {f"r{number}" for number in range(300) if chance.random() < 0.03}
    model = Picky(one_of(bad))
    made, dead = encode_all(queue, model, items_of(model, 300))
    assert set(dead) == bad
    assert sorted(made) == sorted({f"r{number}" for number in range(300)} - bad)
    for reason in dead.values():
        assert (reason.stage, reason.field) == ("encode", "record")
        assert reason.reason == "FloatingPointError: the device fell over"


def test_what_fails_only_together_is_no_record_s_fault(queue: EncodeQueue) -> None:
    model = Picky(lambda ids: {"r3", "r40"} <= set(ids))
    made, dead = encode_all(queue, model, items_of(model, 64))
    assert dead == {}
    assert len(made) == 64


def test_what_fails_once_alone_is_kept(queue: EncodeQueue) -> None:
    left = {"r5": 6}  # in 64, 32, 16, 8, 2, and once alone

    def flaky(ids: list[str]) -> bool:
        if "r5" in ids and left["r5"]:
            left["r5"] -= 1
            return True
        return False

    model = Picky(flaky)
    made, dead = encode_all(queue, model, items_of(model, 64))
    assert (len(made), dead) == (64, {})


def test_the_half_beside_one_that_failed_goes_with_the_next_batch(queue: EncodeQueue) -> None:
    model = Picky(one_of({"r0"}))
    made, dead = encode_all(queue, model, items_of(model, 64))
    assert (sorted(made), set(dead)) == (sorted(f"r{number}" for number in range(1, 64)), {"r0"})
    # Down to the record, alone twice, another batch passing between; the 63 others once each.
    assert sum(model.sizes) - sum(model.refused) == 63
    assert model.refused == [64, 32, 16, 8, 4, 2, 1, 1]
    assert len(model.sizes) - len(model.refused) <= 7  # each half at once, and the golden batch


def test_the_half_after_one_that_passed_is_not_tried_whole(queue: EncodeQueue) -> None:
    model = Picky(one_of({"r63"}))
    made, dead = encode_all(queue, model, items_of(model, 64))
    assert (len(made), set(dead)) == (63, {"r63"})
    # Every first half, the record alone twice, and the golden batch in between.
    assert model.sizes == [64, 32, 16, 8, 4, 2, 1, 1, 1, 1]


def test_a_vector_that_is_not_finite_is_its_record_s_fault(queue: EncodeQueue) -> None:
    class Overflowing(Picky):
        def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
            made = super().encode(prepared)
            for embedding in made:
                if embedding.id == "r7":
                    embedding.fused[3] = np.nan
            return made

    model = Overflowing(one_of(set()))
    made, dead = encode_all(queue, model, items_of(model, 64))
    assert set(dead) == {"r7"}
    assert dead["r7"].reason == "FloatingPointError: the vector is not finite"
    assert len(made) == 63
    assert model.sizes == [64, 1, 1, 1]  # whole, twice alone, and the golden batch


def test_a_model_that_fails_on_everything_condemns_nobody(queue: EncodeQueue) -> None:
    model = Picky(lambda ids: True)
    with pytest.raises(WorkerError, match=r"golden batch.*no record is"):
        encode_all(queue, model, items_of(model, 64))


def test_too_few_embeddings_are_a_failure(queue: EncodeQueue) -> None:
    class Short(Picky):
        def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
            return super().encode(prepared)[: 64 if len(prepared) < 3 else 2]

    made, dead = encode_all(queue, model := Short(one_of(set())), items_of(model, 64))
    assert (len(made), dead) == (64, {})


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_out_of_memory_halves_the_batches_until_they_fit(
    queue: EncodeQueue, clock: Clock, error: Exception
) -> None:
    model = Picky(lambda ids: len(ids) > 20, error)
    made, dead = encode_all(queue, model, items_of(model, 64))
    assert (len(made), dead) == (64, {})
    model.sizes.clear()
    made, dead = encode_all(queue, model, items_of(model, 64))
    assert model.sizes == [16] * 4  # no batch is tried that will not fit
    model.refuses = lambda ids: False  # there is room again
    clock.now = 2.5 * GROW_AFTER_S
    encode_all(queue, model, items_of(model, 64))
    clock.now += 1.5 * GROW_AFTER_S
    model.sizes.clear()
    encode_all(queue, model, items_of(model, 64))
    assert model.sizes == [64]


def test_a_record_that_alone_is_too_large_is_condemned(queue: EncodeQueue) -> None:
    model = Picky(one_of({"r9"}), MemoryError("32 GiB"))
    made, dead = encode_all(queue, model, items_of(model, 64))
    assert set(dead) == {"r9"}
    assert dead["r9"].reason == "MemoryError: 32 GiB"
    assert len(made) == 63


def test_the_memory_of_a_failed_batch_is_free_before_the_next_begins(queue: EncodeQueue) -> None:
    alive: set[str] = set()

    class Held:
        def __init__(self, name: str) -> None:
            self.name = name
            alive.add(name)

        def __del__(self) -> None:
            alive.discard(self.name)

    class Holding(Picky):
        def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
            assert not alive, alive
            held = Held(prepared[0].id)
            if len(prepared) > 16:
                raise MemoryError(held.name)
            return super().encode(prepared)

    made, dead = encode_all(queue, model := Holding(one_of(set())), items_of(model, 200))
    assert (len(made), dead) == (200, {})


def test_what_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert out_of_memory(raised.value)
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not out_of_memory(ValueError("out of memory"))


def test_batches_are_small_while_failing_records_are_frequent(clock: Clock) -> None:
    bisection = Bisection(FULL, clock=clock)
    model = NullModel(16)

    def condemn(number: int) -> None:
        (item,) = items_of(model, 1, start=number)
        item.failures = 1
        assert bisection.failed(Piece([item]), ValueError("bad"), 0.0) is item

    assert bisection.budget() == FULL
    condemn(0)
    assert bisection.budget().records == 16
    for number in range(20):  # one in a hundred
        bisection.passed(Piece([]), 99, 0.0)
        condemn(number)
    assert bisection.budget().records == 16
    assert bisection.budget().tokens == FULL.tokens
    for number in range(200):
        condemn(number)
    assert bisection.budget().records <= 8
    bisection.passed(Piece([]), 15_000, 0.0)
    assert bisection.budget() == FULL


@pytest.mark.parametrize(
    ("fixed_s", "done", "records"),
    [(0.0, 1.0, 4), (0.02, 1.0, 16), (0.04, 1.0, 16), (1.0, 1.0, 32), (0.02, 0.0, 32)],
)
def test_batches_are_larger_where_a_call_costs_more_and_failing_less(
    fixed_s: float, done: float, records: int, clock: Clock
) -> None:
    """One record in a hundred fails, with a share of the work done; one record costs 5 ms."""
    bisection = Bisection(FULL, clock=clock)
    model = NullModel(16)
    for _ in range(40):
        for size in (16, 8, 8, 32, 32, 4):
            piece = Piece(items_of(model, size))
            bisection.passed(piece, size, fixed_s + 0.005 * size)
        whole = Piece(items_of(model, 32), whole=True)
        assert bisection.failed(whole, ValueError(), fixed_s + done * 0.005 * 32) is None
        (item,) = items_of(model, 1)
        item.failures = 1
        bisection.failed(Piece([item]), ValueError(), fixed_s + done * 0.005)
    assert bisection.budget().records == records


# Too many at once.


def bad(number: int) -> BadRecord:
    return BadRecord(f"image{number}", "a reason", stage="prepare")


def test_a_burst_stops_the_worker_with_the_last_errors() -> None:
    burst = Burst(Settings(worker={"poison_share": 0.5, "poison_window": 100}))
    burst.good(100, 0.0)
    for number in range(50):
        burst.bad(bad(number), 0.0)
    assert not burst.holds(0.0, at_rest=False)
    with pytest.raises(WorkerError, match="BRAID_WORKER__POISON_SHARE") as raised:
        burst.bad(bad(50), 0.0)
    assert "51 of the last 100 records" in str(raised.value)
    for number in (48, 49, 50):
        assert f"BadRecord in image{number}, found by prepare" in str(raised.value)
    assert "a reason" not in str(raised.value)
    assert len(str(raised.value)) < 3000


def test_a_share_of_one_never_stops() -> None:
    burst = Burst(Settings(worker={"poison_share": 1.0, "poison_window": 10}))
    for number in range(100):
        burst.bad(bad(number), 0.0)
        assert not burst.holds(0.0, at_rest=False)


def test_a_few_bad_records_at_the_beginning_are_held_for_a_moment_only() -> None:
    burst = Burst(Settings(worker={"poison_window": 100}))
    for number in range(3):
        burst.bad(bad(number), 1.0)
    assert burst.holds(1.5, at_rest=True)
    assert burst.holds(1000.0, at_rest=False)  # more is on its way
    assert not burst.holds(1.1 + HOLD_S, at_rest=True)
    burst.good(4, 2.0)
    assert not burst.holds(2.0, at_rest=False)


class Held(NullModel):
    """Its first call ends when the test says so."""

    def __init__(self) -> None:
        super().__init__(16)
        self.calls = 0
        self.began, self.go = threading.Event(), threading.Event()

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        self.calls += 1
        if self.calls == 1:
            self.began.set()
            assert self.go.wait(30)
        return super().encode(prepared)


def test_a_second_batch_is_encoded_beside_a_long_one_and_a_third_waits(clock: Clock) -> None:
    model = Held()
    queue = EncodeQueue(
        Settings(batch={"records": 2, "wait_s": 60.0}),
        lanes=2,
        metrics=WorkerMetrics().of("g0001"),
        failpoint=Failpoints(),
        clock=clock,
    )
    try:
        for item in items_of(model, 5):
            queue.add(item)
        queue.submit(model)
        first, second = queue.futures
        wait([second], timeout=30)
        assert not first.done()
        (batch,) = queue.finished()
        assert [embedding.id for _, embedding in batch.made] == ["r2", "r3"]
        queue.submit(model)  # r4 alone: not full, and its time has not come
        assert len(queue.futures) == 1
        model.go.set()
        queue.wait(30.0)
        assert [item.message.offset for b in queue.finished() for item, _ in b.made] == [0, 1]
        clock.now = 60.0
        queue.submit(model)
        queue.wait(30.0)
        assert [item.message.offset for b in queue.finished() for item, _ in b.made] == [4]
    finally:
        model.go.set()
        queue.close()


def test_what_is_dropped_keeps_its_place_on_the_device_and_its_bound(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr("braid.stream.worker.batcher.dump_and_exit", ended.append)
    model = Held()
    queue = EncodeQueue(
        Settings(batch={"records": 1, "wait_s": 0.0}, worker={"encode_timeout_s": 10.0}),
        lanes=1,
        metrics=WorkerMetrics().of("g0001"),
        failpoint=Failpoints(),
        clock=clock,
    )
    try:
        before, after = items_of(model, 2), items_of(model, 1, start=2)
        for item in before:
            queue.add(item)
        queue.submit(model)
        assert model.began.wait(30)
        queue.clear()
        assert not queue.busy
        queue.add(after[0])
        queue.submit(model)  # returns: one runs and one waits, and there is room for no other
        assert not queue.busy
        clock.now = 11.0
        assert list(queue.finished()) == []
        assert ["more than 10 s" in reason for reason in ended] == [True]
        model.go.set()
        made: list[int] = []
        while not made:
            queue.submit(model)
            wait(queue.futures, timeout=30)
            made = [item.message.offset for b in queue.finished() for item, _ in b.made]
        assert (made, model.calls) == ([2], 2)  # what waited for the device was not encoded
    finally:
        model.go.set()
        queue.close()


class Caching(Picky):
    """Its embeddings of records before r64 came from a cache."""

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        made = super().encode(prepared)
        return [replace(one, cached=int(one.id[1:] or 0) < 64) for one in made]

    def check(self) -> None:
        raise FloatingPointError("the golden batch fails, too")


def test_what_comes_from_a_cache_does_not_prove_that_the_device_works(queue: EncodeQueue) -> None:
    """Records of the cache are encoded between the two failures of another one alone."""
    model = Caching(one_of({"r64"}))
    first, last = items_of(model, 64), items_of(model, 1, start=64)
    for item in last:
        queue.add(item)
    queue.submit(model)
    queue.wait(10.0)
    assert list(queue.finished()) != []
    for item in first:
        queue.add(item)

    def encoded() -> None:
        for _ in range(10):
            queue.submit(model)
            queue.wait(10.0)
            list(queue.finished())

    with pytest.raises(WorkerError, match="golden batch"):
        encoded()
