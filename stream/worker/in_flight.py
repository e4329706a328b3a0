"""A record in flight: its message, ticket and state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from braid.encoders.types import Embedding, Model, Prepared

from ..kafka.client import Message, Output
from ..kafka.schemas import Record
from ..tracing import RecordSpan, Tracing
from .canary_shadow import ShadowResult
from .offsets import Ticket


class Showcase(Protocol):
    """Keeps what is needed to display a hit. Never raises, never blocks."""

    def put(self, record: Record, embedding: Embedding) -> None: ...
    def drop(self, record_id: str) -> None: ...


class NoShowcase:
    """A showcase that keeps nothing."""

    def put(self, record: Record, embedding: Embedding) -> None: ...
    def drop(self, record_id: str) -> None: ...


@dataclass(slots=True)  # frozen, each would take twice as long to make
class Outcome:
    """What a record came to.

    Attributes:
        show: keeps or drops what is needed to display it. Called when the outputs are published,
            which is in the order of the offsets.
        span: of the record, if it is traced; ends when the outputs are published.
    """

    outputs: Sequence[Output]
    show: Callable[[], None] | None = None
    span: RecordSpan | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One record in flight.

    Attributes:
        model: prepares it; set when preparation begins.
        prepared: what preparation came to; None: it has not ended.
        shadow_result: of a canary's challenger; set by the preparation.
        failures: how often encoding it alone failed.
        span: of the record, if it is traced.
    """

    message: Message
    ticket: Ticket[Outcome]
    since: float
    record: Record | None = None
    model: Model | None = None
    prepared: Prepared | Exception | None = None
    shadow_result: ShadowResult | None = None
    failures: int = 0
    span: RecordSpan | None = None

    @property
    def model_name(self) -> str | None:
        return None if self.model is None else self.model.name

    @property
    def trace(self) -> Sequence[tuple[str, bytes]]:
        """The headers of its outputs that continue its trace."""
        return () if self.span is None else self.span.headers

    def finish(
        self,
        outputs: Sequence[Output],
        show: Callable[[], None] | None = None,
        failure: str | None = None,
    ) -> None:
        """Hand its outputs over; they are published in the order of the offsets.

        Args:
            failure: marks the span as failed. Without content of the record.
        """
        if self.span is not None and failure is not None:
            self.span.fail(failure)
        self.ticket.finish(Outcome(outputs, show, self.span))


def prepared_of(item: Item) -> Prepared:
    assert isinstance(item.prepared, Prepared)
    return item.prepared


def model_of(item: Item) -> Model:
    assert item.model is not None
    return item.model


def record_of(item: Item) -> Record:
    assert item.record is not None
    return item.record


def begin_spans(tracing: Tracing | None, items: Sequence[Item], generation: str) -> None:
    """Set the spans of those records that are sampled."""
    if tracing is None:
        return
    for item in items:
        topic, partition, offset, key = item.message[:4]
        item.span = tracing.received(
            f"process {topic}",
            item.message.headers,
            began=item.since,
            topic=topic,
            partition=partition,
            offset=offset,
            id=(key or b"").decode(errors="replace"),
            generation=generation,
        )


def trace_step(
    items: Iterable[Item], name: str, began: float, ended: float, **attributes: str | int
) -> None:
    """Add a step to the spans of those that have one. Times are monotonic seconds."""
    for item in items:
        if item.span is not None:
            item.span.step(name, began, ended, **attributes)


def where(item: Item) -> str:
    message = item.message
    return f"{message.topic}[{message.partition}]@{message.offset}"
