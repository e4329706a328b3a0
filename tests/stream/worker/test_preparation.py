"""Records leave preparation in order, and the oldest has a bound."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import Record
from braid.stream.settings import Settings
from braid.stream.worker.in_flight import Item
from braid.stream.worker.offsets import OffsetLedger
from braid.stream.worker.preparation import BOUND_S, CHUNK, Preparation
from tests.stream.harness import wait_for


class Waits:
    """A model that prepares `slow` only when it may."""

    def __init__(self) -> None:
        self.may = threading.Event()

    def prepare(self, sample: Any) -> Any:
        if sample.id == "slow":
            assert self.may.wait(30)
        return sample.id


class Refuses:
    """A model that refuses every third record."""

    def prepare(self, sample: Any) -> Any:
        if int(sample.id) % 3 == 0:
            raise ValueError(sample.id)
        return sample.id


def items_of(ids: Sequence[str]) -> list[Item]:
    ledger = OffsetLedger[Any]()
    return [
        Item(
            Message(topic="records", partition=0, offset=offset, key=None, value=b"v"),
            ledger.receive(0, offset, 1),
            0.0,
            record=Record(id=id_, ts=0, text="x"),
        )
        for offset, id_ in enumerate(ids)
    ]


def test_one_that_cannot_be_prepared_leaves_its_chunk_alone(tmp_path: Path) -> None:
    items = items_of([str(number) for number in range(5 * CHUNK)])
    items[4].record = None  # a deletion is not prepared
    model: Any = Refuses()
    preparation = Preparation(Settings(home=tmp_path, worker={"prepare_threads": 2}))
    try:
        preparation.add(items, model)
        done: list[Item] = []

        def all_done() -> bool:
            done.extend(preparation.finished())
            return len(done) == len(items) - 1

        wait_for("all are prepared", all_done, timeout=30)
        assert done == [item for item in items if item.record is not None]
        for item in done:
            assert isinstance(item.prepared, ValueError) == (item.message.offset % 3 == 0)
        assert preparation.next is None
    finally:
        preparation.close()


def test_dropped_records_are_not_encoded(tmp_path: Path) -> None:
    items = items_of([str(number) for number in range(3 * CHUNK)])
    model: Any = Refuses()
    preparation = Preparation(Settings(home=tmp_path, worker={"prepare_threads": 2}))
    try:
        preparation.add(items, model)
        for item in items[::2]:
            item.ticket.dropped = True
        done: list[Item] = []

        def all_done() -> bool:
            done.extend(preparation.finished())
            return not len(preparation)

        wait_for("all are prepared", all_done, timeout=30)
        assert done == items[1::2]
    finally:
        preparation.close()


def test_order_is_kept_and_what_hangs_is_within_its_bound_for_so_long(tmp_path: Path) -> None:
    now = [1000.0]
    items = items_of(("slow", "quick"))
    model: Any = Waits()
    preparation = Preparation(
        Settings(home=tmp_path, worker={"prepare_threads": 2}), clock=lambda: now[0]
    )
    try:
        assert not preparation.within_bound
        preparation.add(items, model)
        wait_for("the quick one is prepared", lambda: items[1].prepared is not None, timeout=30)
        assert list(preparation.finished()) == []
        now[0] += BOUND_S - 1
        assert preparation.within_bound
        now[0] += 2
        assert not preparation.within_bound
        model.may.set()
        wait_for("the slow one is prepared", lambda: items[0].prepared is not None, timeout=30)
        assert list(preparation.finished()) == items
        assert preparation.next is None
    finally:
        model.may.set()
        preparation.close()


def test_what_ends_a_preparation_is_raised_and_not_waited_for(tmp_path: Path) -> None:
    class Ends:
        def prepare(self, sample: Any) -> Any:
            raise SystemExit(3)

    model: Any = Ends()
    preparation = Preparation(Settings(home=tmp_path, worker={"prepare_threads": 1}))
    try:
        preparation.add(items_of(("a", "b")), model)
        assert preparation.next is not None
        wait([preparation.next], timeout=30)
        with pytest.raises(SystemExit):
            list(preparation.finished())
    finally:
        preparation.close()
