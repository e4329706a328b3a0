"""Records leave preparation in order, and the oldest has a bound."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import Record
from braid.stream.settings import Settings
from braid.stream.worker.in_flight import Item, future_of
from braid.stream.worker.offsets import OffsetLedger
from braid.stream.worker.preparation import BOUND_S, Preparation


class Waits:
    """A model that prepares `slow` only when it may."""

    def __init__(self) -> None:
        self.may = threading.Event()

    def prepare(self, sample: Any) -> Any:
        if sample.id == "slow":
            assert self.may.wait(30)
        return sample.id


def test_order_is_kept_and_what_hangs_is_within_its_bound_for_so_long(tmp_path: Path) -> None:
    now = [1000.0]
    ledger = OffsetLedger[Any]()
    items = [
        Item(
            Message(topic="records", partition=0, offset=offset, key=None, value=b"v"),
            ledger.receive(0, offset, 1),
            0.0,
            record=Record(id=id_, ts=0, text="x"),
        )
        for offset, id_ in enumerate(("slow", "quick"))
    ]
    model: Any = Waits()
    preparation = Preparation(
        Settings(home=tmp_path, worker={"prepare_threads": 2}), clock=lambda: now[0]
    )
    try:
        assert not preparation.within_bound
        preparation.add(items, model)
        future_of(items[1]).result(30)
        assert list(preparation.finished()) == []
        now[0] += BOUND_S - 1
        assert preparation.within_bound
        now[0] += 2
        assert not preparation.within_bound
        model.may.set()
        future_of(items[0]).result(30)
        assert list(preparation.finished()) == items
        assert preparation.next is None
    finally:
        model.may.set()
        preparation.close()
