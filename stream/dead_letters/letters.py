"""Reads, filters and counts dead letters.

A letter's id is its position in the topic, PARTITION:OFFSET. Letters that were sent to their
origin again are recorded on `dead-letters-replayed` (`braid.stream.dead_letters.replay`).
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import BadRecord, ConfigError
from ..kafka.admin import Admin
from ..kafka.client import Message, replay
from ..kafka.packing import unpack_bounded
from ..kafka.schemas import MIB
from ..settings import Settings

TOPIC, REPLAYED = "dead-letters", "dead-letters-replayed"
HOUR_S = 3600.0
RECENT_LETTERS, RECENT_BYTES, RECENT_S = 2000, 64 * MIB, 5.0
SHOWN_CHARS, SHOWN_ITEMS, SHOWN_DEPTH, SHOWN_BYTES = 200, 20, 4, 256


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """One message of `dead-letters`.

    Attributes:
        message: with the original key and value; a letter in a summary has no value.
        size: bytes of the original value.
        kind: the name of the error.
        model: the version that prepared or encoded it, or "".
        origin: its topic, partition and offset; None if the headers have none.
        origin_ts: its timestamp there, in milliseconds since 1970.
        cut: whether the original key or value is truncated.
    """

    message: Message
    size: int
    reason: str
    field: str
    stage: str
    kind: str
    model: str
    origin: tuple[str, int, int] | None
    origin_ts: int
    cut: bool = False

    @property
    def id(self) -> str:
        return f"{self.message.partition}:{self.message.offset}"

    def without_value(self) -> DeadLetter:
        """The letter without its value."""
        return replace(self, message=self.message._replace(value=None))

    def plain(self) -> dict[str, Any]:
        """As a JSON object, without its value."""
        topic, partition, offset = self.origin or (None, None, None)
        return {
            "id": self.id,
            "at_ms": self.message.ts,
            "key": None if self.message.key is None else _text(self.message.key, SHOWN_CHARS),
            "bytes": self.size,
            "cut": self.cut,
            "stage": self.stage,
            "kind": self.kind,
            "field": self.field,
            "reason": self.reason,
            "model": self.model or None,
            "topic": topic,
            "partition": partition,
            "offset": offset,
        }


def letter_of(message: Message) -> DeadLetter:
    """The letter in a message of `dead-letters`; any headers are accepted."""
    headers = {name: _text(value or b"", 1000) for name, value in message.headers}
    origin = None
    if headers.get("topic"):
        place = _number(headers.get("partition")), _number(headers.get("offset"))
        if None not in place:
            origin = (headers["topic"], *place)
    return DeadLetter(
        message=message,
        size=len(message.value or b""),
        reason=headers.get("reason", ""),
        field=headers.get("field", ""),
        stage=headers.get("stage", ""),
        kind=headers.get("error", ""),
        model=headers.get("model", ""),
        origin=origin,  # type: ignore[arg-type]
        origin_ts=_number(headers.get("timestamp")) or 0,
        cut=any(name.startswith("cut-") for name in headers),
    )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Selects the letters that fit all of these.

    Attributes:
        reason: part of the reason, the field or the kind; case does not matter.
        model: a version's name.
        since_ms, until_ms: when they became dead letters, in milliseconds since 1970.
        source: the origin topic without the prefix: records or parts.
        partition: of `dead-letters`, the same as in the origin topic.
        ids: only these (partition, offset); empty: any.
    """

    reason: str | None = None
    stage: str | None = None
    model: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    source: str | None = None
    partition: int | None = None
    ids: frozenset[tuple[int, int]] = frozenset()

    def matches(self, letter: DeadLetter, settings: Settings) -> bool:
        texts = (letter.reason, letter.field, letter.kind)
        message = letter.message
        return (
            (not self.ids or (message.partition, message.offset) in self.ids)
            and (self.reason is None or any(self.reason.lower() in one.lower() for one in texts))
            and self.stage in (None, letter.stage)
            and self.model in (None, letter.model)
            and (self.since_ms is None or message.ts >= self.since_ms)
            and (self.until_ms is None or message.ts < self.until_ms)
            and (
                self.source is None
                or (letter.origin is not None and letter.origin[0] == settings.topic(self.source))
            )
        )


def letters(settings: Settings, selection: Selection) -> Iterator[DeadLetter]:
    """The selected letters, in the order of each partition.

    Raises Unreachable.
    """
    admin, topic = Admin(settings), settings.topic(TOPIC)
    spans = _spans(settings, admin, selection)
    starts = {number: start for number, (start, _) in spans.items()}
    stops = {number: stop for number, (_, stop) in spans.items()}
    for message in replay(settings, topic, start_at=starts, stop_at=stops):
        if selection.matches(letter := letter_of(message), settings):
            yield letter


def letter_at(settings: Settings, id: str) -> DeadLetter:
    """One letter by its id. Raises ConfigError: there is none."""
    place = place_of(id)
    for letter in letters(settings, Selection(ids=frozenset([place]))):
        return letter
    raise ConfigError(f"{id}: {settings.topic(TOPIC)} holds no such letter (any more)")


def place_of(id: str) -> tuple[int, int]:
    """Partition and offset of a letter's id. Raises ConfigError."""
    partition, colon, offset = id.partition(":")
    numbers = _number(partition), _number(offset)
    if not colon or numbers[0] is None or numbers[1] is None:
        raise ConfigError(f"expected PARTITION:OFFSET of a dead letter, got {id[:80]!r}")
    return numbers[0], numbers[1]


@dataclass(kw_only=True)
class Summary:
    """Counts of letters by stage and kind, and the last letters, newest first."""

    total: int = 0
    by: Counter[tuple[str, str]] = field(default_factory=Counter)
    last: list[DeadLetter] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "by": [
                {"stage": stage, "kind": kind, "count": count}
                for (stage, kind), count in self.by.most_common()
            ],
            "last": [letter.plain() for letter in self.last],
        }


def summary(letters: Iterable[DeadLetter], *, last: int) -> Summary:
    """Count letters and keep the newest, without their values."""
    result = Summary()
    newest: list[tuple[int, int, int, DeadLetter]] = []
    for letter in letters:
        result.total += 1
        result.by[letter.stage, letter.kind] += 1
        place = letter.message.ts, letter.message.partition, letter.message.offset
        entry = (*place, letter.without_value())
        heapq.heappush(newest, entry)
        if len(newest) > last:
            heapq.heappop(newest)
    result.last = [entry[-1] for entry in sorted(newest, reverse=True)]
    return result


def recent(
    settings: Settings,
    *,
    wall: float | None = None,
    last: int = 5,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """The letters of the last hour, counted at a bounded cost.

    At most RECENT_LETTERS, RECENT_BYTES and RECENT_S are read, the newest of each partition;
    `complete` is whether that was all of the hour.

    Raises Unreachable.
    """
    since_ms = int(1000 * ((time.time() if wall is None else wall) - HOUR_S))
    admin, topic = Admin(settings, timeout_s=timeout_s), settings.topic(TOPIC)
    spans = _spans(settings, admin, Selection(since_ms=since_ms))
    share = RECENT_LETTERS // max(1, len(spans))
    starts = {number: max(start, stop - share) for number, (start, stop) in spans.items()}
    stops = {number: stop for number, (_, stop) in spans.items()}
    complete = all(starts[number] == start for number, (start, _) in spans.items())
    deadline = time.monotonic() + RECENT_S

    def bounded() -> Iterator[DeadLetter]:
        nonlocal complete
        left = RECENT_BYTES
        messages = replay(settings, topic, start_at=starts, stop_at=stops, timeout_s=timeout_s)
        for message in messages:
            yield letter_of(message)
            left -= message.nbytes
            if left < 0 or time.monotonic() > deadline:
                complete = False
                return

    return summary(bounded(), last=last).plain() | {"since_ms": since_ms, "complete": complete}


def replayed(settings: Settings) -> set[str]:
    """The ids of the letters of the current topic that were sent to their origin again."""
    admin, name = Admin(settings), settings.topic(REPLAYED)
    identity, _ = admin.identity(settings.topic(TOPIC))
    ends = {number: end for number, (_, end) in admin.ends(name).items()}
    marks = replay(settings, name, stop_at=ends)
    keys = (_text(message.key or b"", 200).rpartition("/") for message in marks)
    return {id for topic, _, id in keys if topic == identity}


def view(value: bytes | None) -> Any:
    """A value for display: decoded if it is a map, else its first bytes; bounded in size."""
    if value is None:
        return None
    try:
        return _shown(unpack_bounded(value), SHOWN_DEPTH)
    except BadRecord as error:
        return {"not decodable": error.reason, "first bytes": value[:SHOWN_BYTES].hex(" ")}


def _shown(value: Any, depth: int) -> Any:
    if isinstance(value, bytes):
        return f"{len(value)} bytes: {value[:16].hex(' ')}"
    if isinstance(value, str):
        more = f"... ({len(value)} characters)" if len(value) > SHOWN_CHARS else ""
        return value[:SHOWN_CHARS].encode(errors="replace").decode() + more
    if value is None or isinstance(value, int | float):
        return value
    if not isinstance(value, dict | list):
        return _text(str(value), SHOWN_CHARS)
    if depth == 0:
        return f"{len(value)} entries"
    rest = len(value) - SHOWN_ITEMS
    if isinstance(value, dict):
        some = {
            str(_shown(name, 0)): _shown(entry, depth - 1)
            for name, entry in list(value.items())[:SHOWN_ITEMS]
        }
        return some | ({"...": f"{rest} more"} if rest > 0 else {})
    shown = [_shown(entry, depth - 1) for entry in value[:SHOWN_ITEMS]]
    return [*shown, f"... {rest} more"] if rest > 0 else shown


def _spans(settings: Settings, admin: Admin, selection: Selection) -> dict[int, tuple[int, int]]:
    """The offsets of each partition, first and end, between which selected letters may be."""
    topic = settings.topic(TOPIC)
    ends = admin.ends(topic)
    since: Mapping[int, int] = {}
    if selection.since_ms is not None:
        since = admin.offsets_at(topic, len(ends), selection.since_ms)
    spans = {}
    for number, (first, end) in ends.items():
        offsets = [offset for partition, offset in selection.ids if partition == number]
        if selection.partition not in (None, number) or (selection.ids and not offsets):
            continue
        start, stop = min(offsets, default=first), max(offsets, default=end - 1) + 1
        if selection.since_ms is not None:
            start = max(start, since.get(number, end))
        spans[number] = (max(start, first), min(stop, end))
    return {number: span for number, span in spans.items() if span[0] < span[1]}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _text(raw: bytes | str, limit: int) -> str:
    text = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
    return text[:limit]
