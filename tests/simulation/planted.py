"""Bugs to plant: each must make some history fail."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import obstore
import pytest
from confluent_kafka import KafkaException, TopicPartition

from braid.index.segments import live_store
from braid.stream.kafka import hanging
from braid.stream.kafka.sink import TransactionalSink
from braid.stream.kafka.transactions import RecordSource
from braid.stream.registry.handover import CONFIRMED, Handovers, Ownership
from braid.stream.registry.log import EventLog
from braid.stream.worker.offsets import OffsetLedger, Run
from braid.stream.worker.open_transaction import OpenTransaction
from braid.stream.worker.recovery import Recovery

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]
BUGS: dict[str, tuple[str, Plant]] = {}
"""Name -> the theme of histories that find it, and what plants it."""


def bug(theme: str) -> Callable[[Plant], Plant]:
    def decorated(plant: Plant) -> Plant:
        BUGS[plant.__name__.replace("_", "-")] = theme, plant
        return plant

    return decorated


@bug("network")
def ledger_commits_one_too_far(patch: Patch) -> None:
    patch.setattr(Run, "next_offset", property(lambda run: run.tickets[-1].offset + 2))


@bug("network")
def ledger_passes_over_unfinished(patch: Patch) -> None:
    """The finished records of a partition, also behind one that is not."""

    def ready(self: OffsetLedger[Any]) -> list[Run[Any]]:
        finished = {n: [one for one in tickets if one.done] for n, tickets in self._open.items()}
        return [Run(n, tuple(tickets)) for n, tickets in finished.items() if tickets]

    def committed(self: OffsetLedger[Any], runs: Sequence[Run[Any]]) -> None:
        for run in runs:
            for ticket in run.tickets:
                self._open[run.partition].remove(ticket)

    patch.setattr(OffsetLedger, "ready", ready)
    patch.setattr(OffsetLedger, "committed", committed)


@bug("network")
def ledger_keeps_what_was_refused(patch: Patch) -> None:
    patch.setattr(OpenTransaction, "_finish", _finish_without_drop)


@bug("group")
def publisher_keeps_its_producer_after_a_doubtful_end(patch: Patch) -> None:
    def retire(self: TransactionalSink) -> None:
        if self._producer is not None:
            with contextlib.suppress(KafkaException):  # where no transaction is open
                self._producer.abort_transaction(5.0)

    patch.setattr(TransactionalSink, "_retire", retire)


@bug("broker")
def publisher_does_not_end_hanging_transactions(patch: Patch) -> None:
    patch.setattr(hanging, "ending", lambda *args, **named: None)


@bug("network")
def publisher_reads_on_without_going_back(patch: Patch) -> None:
    patch.setattr(RecordSource, "rewind", lambda self: None)


@bug("group")
def publisher_takes_its_lease_at_the_commit(patch: Patch) -> None:
    """Without the generation of its assignment the broker does not fence a worker that slept."""
    publish = TransactionalSink.publish

    def late(self: TransactionalSink, *args: Any, lease: Any, **named: Any) -> None:
        publish(self, *args, lease=(lease.metadata[0], None, ""), **named)

    patch.setattr(TransactionalSink, "publish", late)


@bug("broker")
def recovery_reads_unsettled_offsets(patch: Patch) -> None:
    """It goes back before the last transaction has ended."""

    def step(self: Recovery) -> bool:
        if self.pending:
            self._rewind()
            self.pending = False
        return True

    def committed(self: RecordSource) -> list[TopicPartition]:
        consumer: Any = self._consumer
        group = consumer._broker.group(consumer._group)
        return [TopicPartition(self.topic, n, group.committed.get(n, -1001)) for n in self.owned]

    patch.setattr(Recovery, "step", step)
    patch.setattr(RecordSource, "committed", committed)


@bug("slow handover")
def handover_begins_before_it_is_decided(patch: Patch) -> None:
    def owned(self: Ownership, records: Sequence[tuple[int, int]]) -> list[bool] | None:
        confirmed = self._handovers.confirmed()
        return [_owner(confirmed, *record) == self._generation for record in records]

    patch.setattr(Ownership, "_owned", owned)


@bug("slow handover")
def handover_does_not_read_the_ends_again(patch: Patch) -> None:
    decide = Handovers.decide
    patch.setattr(
        Handovers, "decide", lambda self, number, decision: decide(self, number, CONFIRMED)
    )


@bug("registry")
def registry_puts_without_condition(patch: Patch) -> None:
    put = obstore.put
    patch.setattr(obstore, "put", lambda *args, **named: put(*args))


@bug("registry")
def registry_decides_once(patch: Patch) -> None:
    """An event that came too late is written as the next one."""
    append = EventLog.append

    def stale(self: EventLog, decide: Callable[[Any], Any]) -> Any:
        made: list[Any] = []

        def once(state: Any) -> Any:
            made[:] = made or [decide(state)]
            if made[0] is None or made[0].kind != "claim":
                return made[0]
            fields = {**made[0].fields, "number": 1 + len(state.claims)}
            return dataclasses.replace(made[0], fields=fields)

        before = self.state().claims
        after = append(self, once)
        if made and made[0] is not None and made[0].kind == "claim":
            return dataclasses.replace(after, claims={**before, made[0].fields["number"]: "me"})
        return after

    patch.setattr(EventLog, "append", stale)


@bug("network")
def index_takes_older_writes(patch: Patch) -> None:
    patch.setattr(live_store, "supersedes", lambda write, last: True)


def _owner(confirmed: Sequence[Any], partition: int, offset: int) -> str:
    owner = "g0001"
    for handover in confirmed:
        if offset >= handover.offsets.get(partition, 0):
            owner = handover.after
    return owner


def _finish_without_drop(self: OpenTransaction[Any], runs: Sequence[Run[Any]]) -> None:
    self._runs = None
    try:
        self._sink.result()
    except Exception as error:  # noqa: BLE001
        self._recovery.begin(error)  # type: ignore[arg-type]
    else:
        self._recovery.committed()
    self._ledger.committed(runs)
    self._records.note_committed({run.partition: run.next_offset for run in runs})
