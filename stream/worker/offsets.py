"""The offset ledger: which offsets may be committed, with which outputs.

Each polled record gets a ticket. Tickets finish in any order. Per partition, the unbroken run of
finished tickets from the oldest one on may be published. Offsets in a topic have gaps (compaction,
transaction markers), so a run is unbroken in the order of arrival, not by number.

A dropped ticket (its partition was revoked, or the transaction was refused) is no longer in the
ledger: finishing it has no effect, even if its offset has been read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """One record in flight: `finish` it exactly once, with its outputs.

    Attributes:
        since: when it was polled, in monotonic seconds.
        dropped: from the ledger: what it comes to is of no effect.
    """

    partition: int
    offset: int
    nbytes: int = 0
    result: T | None = None
    done: bool = False
    since: float = 0.0
    dropped: bool = False

    def finish(self, result: T) -> None:
        assert not self.done, f"offset {self.offset} of partition {self.partition} finished twice"
        self.result = result
        self.done = True


@dataclass(frozen=True, slots=True)
class Run(Generic[T]):
    """The finished run of one partition: results in offset order, and the offset to commit."""

    partition: int
    tickets: tuple[Ticket[T], ...]

    @property
    def results(self) -> list[T]:
        return [ticket.result for ticket in self.tickets if ticket.result is not None]

    @property
    def next_offset(self) -> int:
        return self.tickets[-1].offset + 1


class OffsetLedger(Generic[T]):
    """Tickets of all partitions that this worker reads. Used by one thread."""

    def __init__(self) -> None:
        self._open: dict[int, deque[Ticket[T]]] = {}
        self._next: dict[int, int] = {}
        self.nbytes = 0  # what the records of all open tickets hold in memory

    def __len__(self) -> int:
        return sum(len(tickets) for tickets in self._open.values())

    def receive(
        self, partition: int, offset: int, nbytes: int = 0, *, since: float = 0.0
    ) -> Ticket[T]:
        """A ticket for a record just polled. Offsets of a partition must strictly increase."""
        expected = self._next.get(partition, 0)
        assert offset >= expected, (
            f"partition {partition} went back from {expected} to {offset} without a drop"
        )
        ticket = Ticket[T](partition, offset, nbytes, since=since)
        self._open.setdefault(partition, deque()).append(ticket)
        self._next[partition] = offset + 1
        self.nbytes += nbytes
        return ticket

    def hold(self, ticket: Ticket[T], nbytes: int) -> None:
        """Count more bytes that a ticket's record holds in memory, unless it was dropped."""
        if not ticket.dropped:
            ticket.nbytes += nbytes
            self.nbytes += nbytes

    def ready(self) -> list[Run[T]]:
        """The unbroken finished run of each partition; empty ones are left out."""
        runs = []
        for partition, tickets in self._open.items():
            finished: list[Ticket[T]] = []
            for ticket in tickets:
                if not ticket.done:
                    break
                finished.append(ticket)
            if finished:
                runs.append(Run(partition, tuple(finished)))
        return runs

    def committed(self, runs: Iterable[Run[T]]) -> None:
        """Forget the runs that a committed transaction published."""
        for run in runs:
            tickets = self._open[run.partition]
            for ticket in run.tickets:
                head = tickets.popleft()
                assert head is ticket, "a run was committed that is not the partition's head"
                self.nbytes -= ticket.nbytes

    def drop(self, partitions: Iterable[int] | None = None) -> int:
        """Forget all open tickets of these partitions (all without it); returns how many."""
        gone = 0
        for partition in list(self._next) if partitions is None else partitions:
            tickets = self._open.pop(partition, deque())
            gone += len(tickets)
            for ticket in tickets:
                ticket.dropped = True
            self.nbytes -= sum(ticket.nbytes for ticket in tickets)
            self._next.pop(partition, None)
        return gone
