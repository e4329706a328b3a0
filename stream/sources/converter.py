"""One source: its messages become messages for `records` or `parts`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ..errors import BadRecord, ConfigError
from ..kafka.client import BY_KEY, Message, Output
from ..kafka.schemas import MAX_RECORD_BYTES
from ..kafka.topics import is_own
from ..settings import Settings
from ..settings.source_groups import Source
from ..tracing import HEADER
from .debezium import change_of, unwrapped
from .formats import Decode, key_decoder, value_decoder
from .mapping import RecordMap
from .paths import STAGE, Paths, Scope


class Converter:
    """Decodes and maps the messages of one source. Used by one thread.

    Attributes:
        source: its settings.

    Raises:
        ConfigError: a path or a schema of the settings is wrong, or the topic is one of braid's.
    """

    def __init__(self, settings: Settings, source: Source) -> None:
        where = f"sources.{source.title}"
        if is_own(settings, source.topic):
            raise ConfigError(f"{where}: {source.topic} is one of braid's own topics")
        self.source = source
        self._records, self._parts = settings.topic("records"), settings.topic("parts")
        self._decode = value_decoder(settings, source)
        self._decode_key = key_decoder(settings, source)
        self._paths = Paths(where)
        self._map = RecordMap(source.map, self._paths)
        self._where = None if source.where is None else self._paths.path("where", source.where)
        self._debezium = source.envelope == "debezium"

    def outputs(self, message: Message) -> list[Output]:
        """The messages that one message becomes: a record or a part, a deletion, or nothing.

        Raises:
            BadRecord: it does not decode or map; names the path.
            SchemaRegistryAway: to be tried again later.
        """
        key = _Key(message.key, self._decode_key)
        scope = Scope(
            key=lambda: key.value,
            headers=_headers(message),
            timestamp=message.ts,
            position=f"{message.topic}-{message.partition}-{message.offset}",
        )
        self._paths.enter(scope)
        trace = [(name, value) for name, value in message.headers if name == HEADER]
        outputs = self._converted(message, key, scope)
        return [each._replace(headers=trace) for each in outputs] if trace else outputs

    def _converted(self, message: Message, key: _Key, scope: Scope) -> list[Output]:
        if message.value is None:
            # Debezium sends one after each deletion, for the topic's compaction.
            nothing = "in the key of a message without a value, which deletes a record"
            return [] if self._debezium else [self._deletion(None, key, nothing)]
        if len(message.value) > MAX_RECORD_BYTES:
            raise BadRecord(
                "value", f"is {len(message.value)} bytes, the limit is {MAX_RECORD_BYTES}"
            )
        document = self._decode(message.value)
        if not self._debezium:
            return [self._record(document, message)] if self._takes(document) else []
        change = change_of(document)
        scope.envelope = change.envelope
        if change.after is None:
            nothing = "in the row that was deleted, and in its key"
            return [self._deletion(change.before, key, nothing)]
        if not self._takes(change.after):  # a row that was taken before the update leaves
            new = not change.updates
            return [] if new else [self._deletion(change.after, key, "in the row")]
        record = self._record(change.after, message)
        old = None if change.before is None else self._map.id_of(change.before)
        renamed = old is not None and old.encode() != record.key
        return [self._null(old), record] if old is not None and renamed else [record]

    def _takes(self, document: Any) -> bool:
        return self._where is None or bool(self._where.find(document))

    def _record(self, document: Any, message: Message) -> Output:
        id_ = self._map.id_of(document)
        if id_ is None:
            raise self._map.missing_id("in the message")
        return Output(
            topic=self._parts if self._map.is_part else self._records,
            partition=BY_KEY,
            key=id_.encode(),
            value=self._map.value(id_, document, default_ts=message.ts),
        )

    def _deletion(self, document: Any, key: _Key, nothing: str) -> Output:
        """Deletes the id that is in a document, or else in the key, whose columns may be the id.

        Args:
            nothing: where no id was, for the error.
        """
        id_ = None if document is None else self._map.id_of(document)
        if id_ is None:
            columns = key.value
            id_ = self._map.id_of(columns if isinstance(columns, Mapping) else None)
        if id_ is None:
            raise self._map.missing_id(nothing)
        return self._null(id_)

    def _null(self, id_: str) -> Output:
        return Output(topic=self._records, partition=BY_KEY, key=id_.encode(), value=None)


class _Key:
    """The key of a message, decoded when a path asks for it."""

    def __init__(self, raw: bytes | None, decode: Decode) -> None:
        self._raw, self._decode = raw, decode

    @cached_property
    def value(self) -> Any:
        """None without a key. Raises BadRecord, SchemaRegistryAway."""
        if self._raw is None:
            return None
        try:
            return unwrapped(self._decode(self._raw))
        except BadRecord as error:
            raise BadRecord("key", error.reason, stage=STAGE) from None


def _headers(message: Message) -> dict[str, str]:
    return {name: (value or b"").decode(errors="replace") for name, value in message.headers}
