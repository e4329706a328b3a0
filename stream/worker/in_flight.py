"""A record in flight: its message, ticket and state."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from braid.encoders.types import Embedding, Model, Prepared

from ..kafka.client import Message, Output
from ..kafka.schemas import Record
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


@dataclass(slots=True, eq=False)
class Item:
    """One record in flight.

    Attributes:
        model: prepares it; set when preparation begins.
        shadow_result: of a canary's challenger; set by the preparation.
        failures: how often encoding it alone failed.
    """

    message: Message
    ticket: Ticket[list[Output]]
    since: float
    record: Record | None = None
    model: Model | None = None
    preparing: Future[Prepared] | None = None
    shadow_result: ShadowResult | None = None
    failures: int = 0


def future_of(item: Item) -> Future[Prepared]:
    assert item.preparing is not None
    return item.preparing


def model_of(item: Item) -> Model:
    assert item.model is not None
    return item.model


def record_of(item: Item) -> Record:
    assert item.record is not None
    return item.record


def where(item: Item) -> str:
    message = item.message
    return f"{message.topic}[{message.partition}]@{message.offset}"
