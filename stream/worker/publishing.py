"""The worker's open transaction: at most one, on its own thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ..errors import Fenced, PublishRefused, Unreachable
from ..kafka.client import Output
from ..kafka.sink import TransactionalSink
from ..registry.handover import Ownership
from ..settings import Settings
from .offsets import Run
from .publisher import Call, Publisher
from .recovery import Recovery

NOT_PUBLISHED = (PublishRefused, Unreachable, Fenced)

Runs = list[Run[list[Output]]]


class Transactions:
    """The open transaction of one worker. Used by its loop alone.

    Args:
        make_sink: makes a sink, without waiting for the broker.
        rewind: seeks to the committed offsets; raises Unreachable.
        clock: monotonic seconds.

    Attributes:
        publisher: for transactions outside of the loop, such as those of a backfill.
        recovery: pending at the start and after each failed transaction.
    """

    def __init__(
        self,
        settings: Settings,
        make_sink: Callable[[], TransactionalSink],
        rewind: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.publisher = Publisher(
            make_sink, bound_s=settings.worker.publish_timeout_s, clock=clock
        )
        self.recovery = Recovery(
            self.publisher, rewind, address=settings.kafka.bootstrap, clock=clock
        )
        self._open: tuple[Runs, Call] | None = None

    @property
    def free(self) -> bool:
        """Whether a transaction may begin."""
        return self._open is None and not self.recovery.pending

    @property
    def future(self) -> Future[None] | None:
        """Done when the open transaction has ended; None where none is open."""
        return None if self._open is None else self._open[1].future

    @property
    def ended(self) -> bool:
        """Whether the open transaction has ended, or has passed its bound."""
        if self._open is None:
            return False
        call = self._open[1]
        return call.done or self.publisher.overdue(call)

    def begin(self, runs: Runs, function: Callable[[TransactionalSink], None]) -> None:
        """Start the transaction that publishes `runs`; empty: offsets only."""
        self._open = runs, self.publisher.submit(function)

    def wait(self, within_s: float | None = None) -> None:
        """Wait for the open transaction, within its bound."""
        if self._open is not None:
            self.publisher.wait(self._open[1], within_s)

    def finish(self) -> Runs:
        """The runs that the open transaction has committed; abandons it if it has not ended.

        Raises:
            PublishRefused, Unreachable, Fenced: not committed, or the outcome is not known yet.
        """
        assert self._open is not None
        (runs, call), self._open = self._open, None
        self.publisher.result(call)
        self.recovery.committed()
        return runs

    def close(self, within_s: float) -> None:
        """Close the producer, after waiting up to `within_s` for the open transaction."""
        call = None if self._open is None else self._open[1]
        self._open = None
        self.publisher.close(call, within_s)


def owned_outputs(
    runs: Sequence[Run[list[Output]]], ownership: Ownership | None, vectors: str
) -> list[Output] | None:
    """The outputs of these runs that this generation publishes; None: a handover is undecided.

    Called right before the transaction: for records read by now, ownership must not change before
    they are published (`braid.stream.registry.handover`).

    Args:
        vectors: the topic whose outputs are always published.
    """
    tickets = [ticket for run in runs for ticket in run.tickets]
    results = [ticket.result or [] for ticket in tickets]
    if ownership is None:
        return [output for result in results for output in result]
    owned = ownership.owns([(ticket.partition, ticket.offset) for ticket in tickets])
    if owned is None:
        return None
    return [
        output
        for result, mine in zip(results, owned, strict=True)
        for output in result
        if mine or output.topic == vectors
    ]
