"""Reads the origin topics behind a dead letter, to detect newer records of its id."""

from __future__ import annotations

from braid.modalities import MODALITIES

from ..errors import BadRecord, WorkerError
from ..kafka.admin import Admin
from ..kafka.client import Message, replay
from ..kafka.packing import unpack_bounded
from ..settings import Settings
from .letters import DeadLetter

MARK = "replay-of"  # header of a message that was sent again: TOPIC_ID/ID of the letter
PARTS_FIELDS = (*MODALITIES, "labels", "meta")

Place = tuple[str, int, int]  # topic, partition, offset


class Origins:
    """The later messages of the letters' keys in their origin topics."""

    def __init__(self, settings: Settings, admin: Admin) -> None:
        self._settings, self._admin = settings, admin
        self._parts, self._records = settings.topic("parts"), settings.topic("records")
        self._next: dict[tuple[str, int], int] = {}
        self._last: dict[tuple[str, int, bytes, str], int] = {}
        self._keys: set[bytes] = set()
        self._deleted: dict[bytes, int] = {}  # key -> its last deletion, in ms since 1970
        self._parts_since: int | None = None
        self._recreated: set[tuple[str, int]] = (
            set()
        )  # partitions that end before their letters' offsets
        self.sent: dict[bytes, Place] = {}  # a letter's mark -> its new position

    def watch(self, letter: DeadLetter) -> None:
        if letter.origin is None or letter.message.key is None:
            return
        topic, partition, offset = letter.origin
        self._keys.add(letter.message.key)
        place = (topic, partition)
        self._next[place] = min(offset + 1, self._next.get(place, offset + 1))
        if topic == self._parts:
            since = self._parts_since
            self._parts_since = letter.origin_ts if since is None else min(since, letter.origin_ts)

    def read_to_end(self) -> None:
        """Read the origin topics up to their current ends. Raises Unreachable."""
        counts = self._admin.partition_counts()
        if self._parts_since is not None:  # a deletion in `records` deletes the parts, too
            since, self._parts_since = self._parts_since, None
            offsets = self._admin.offsets_at(self._records, counts[self._records], since)
            for number, offset in offsets.items():
                place = (self._records, number)
                self._next[place] = min(offset, self._next.get(place, offset))
        for topic in {topic for topic, _ in self._next}:
            if topic not in counts:
                raise WorkerError(f"topic {topic}, where letters come from, is gone")
            ends = self._admin.ends(topic, counts[topic])
            starts = {
                number: start
                for (name, number), start in self._next.items()
                if name == topic and number in ends
            }
            for number, start in starts.items():
                if start > ends[number][1]:
                    self._recreated.add((topic, number))
                    starts[number] = 0
            stops = {number: ends[number][1] for number in starts}
            for message in replay(self._settings, topic, start_at=starts, stop_at=stops):
                self._see(message)
            self._next |= {(topic, number): stop for number, stop in stops.items()}

    def later(self, letter: DeadLetter) -> bool:
        """Whether a later message of the key replaces this one: in `parts`, some of its fields."""
        key = letter.message.key
        if key is None or letter.origin is None:
            return False
        topic, partition, offset = letter.origin
        if topic == self._parts and self._deleted.get(key, -1) >= letter.origin_ts:
            return True
        if (topic, partition) in self._recreated:
            offset = -1
        return any(
            self._last.get((topic, partition, key, name), -1) > offset
            for name in self._fields(topic, letter.message.value)
        )

    def _see(self, message: Message) -> None:
        marks = [value for name, value in message.headers if name == MARK]
        if marks and marks[0] is not None:
            place = (message.topic, message.partition, message.offset)
            self.sent[marks[0]] = place
        if message.key is not None and message.key in self._keys:
            if message.topic == self._records and message.value is None:
                self._deleted[message.key] = max(message.ts, self._deleted.get(message.key, 0))
            for name in self._fields(message.topic, message.value):
                self._last[message.topic, message.partition, message.key, name] = message.offset

    def _fields(self, topic: str, value: bytes | None) -> tuple[str, ...]:
        """The fields that a message replaces: a part those it has, other messages all."""
        if topic != self._parts:
            return ("",)
        try:
            present = unpack_bounded(value or b"")
        except BadRecord:
            return PARTS_FIELDS
        return tuple(name for name in PARTS_FIELDS if present.get(name) is not None)
