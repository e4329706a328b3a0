"""A sample message of a source: its newest one, and the record that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BadRecord, ConfigError, bad_record
from ..kafka.admin import Admin
from ..kafka.client import Message, Output, replay
from ..settings import Settings
from ..settings.source_groups import Source
from .converter import Converter
from .paths import STAGE

TAIL = 16  # offsets of each partition that are read; some are transaction markers


@dataclass(frozen=True, slots=True)
class Sample:
    """A message and what it becomes: outputs, or the error that makes it a dead letter."""

    message: Message
    outputs: Sequence[Output] = ()
    error: BadRecord | None = None

    @property
    def where(self) -> str:
        return f"partition {self.message.partition}, offset {self.message.offset}"


def newest(settings: Settings, topic: str) -> Message | None:
    """The newest message with a value; None: there is none among the last of each partition.

    Raises:
        ConfigError: there is no such topic.
        Unreachable: the broker does not answer.
    """
    ends = Admin(settings).ends(topic)
    if not ends:
        raise ConfigError(f"there is no topic {topic}")
    stops = {number: end for number, (_, end) in ends.items()}
    starts = {number: max(first, end - TAIL) for number, (first, end) in ends.items()}
    messages = replay(settings, topic, start_at=starts, stop_at=stops)
    return max(
        (message for message in messages if message.value is not None),
        key=lambda message: (message.ts, message.offset),
        default=None,
    )


def check_sample(settings: Settings, source: Source) -> Sample | None:
    """The newest message of a source, mapped; None: it has none.

    Raises:
        ConfigError: the source's settings are wrong, or there is no such topic.
        Unreachable, SchemaRegistryAway: a server does not answer.
    """
    message = newest(settings, source.topic)
    return None if message is None else sampled(settings, source, message)


def sampled(settings: Settings, source: Source, message: Message) -> Sample:
    """A message, mapped. Raises ConfigError, SchemaRegistryAway."""
    try:
        return Sample(message, Converter(settings, source).outputs(message))
    except BadRecord as error:
        return Sample(message, error=bad_record(error, stage=STAGE))
