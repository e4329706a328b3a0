"""The join's table: the state of every id, and the messages that each change sends.

The methods return the messages that a change sends: a record to `records`, a dead letter, and
always the id's new state (or a null) to the changelog `parts-seen`, so that the table can be read
back after a restart. The caller publishes them and the consumed offsets in one transaction.

    a part             merged; the record is sent if nothing it expects is missing
    join.quiet_s       without a part, or join.late_s after the first one: an incomplete record is
                       released: sent with what it has, or to the dead letters (join.incomplete)
    join.late_s        after the last part the id is forgotten; until then a late part is merged
    join.bytes         beyond them the ids without a part for the longest time are released early
    a null on parts    forgets the id, or the fields sent before a deletion on `records`
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ...errors import BadRecord, bad_record
from ...kafka.client import BY_KEY, Message, Output
from ...settings import Settings
from ..outputs import DELETED_HEADER, JOIN_HEADER, OutputTopics
from .state import (
    STAGE,
    State,
    decode_part,
    pack_state,
    part_value,
    record_value,
    unpack_state,
    with_part,
    without_deleted,
)

log = logging.getLogger(__name__)

OVERHEAD_BYTES = 512  # of an id in the table beside its key and its packed state
Slot = tuple[int, bytes]  # partition and key


@dataclass(frozen=True, slots=True)
class StoredState:
    """A packed state, and of it what the timers ask for."""

    packed: bytes
    first_ms: int
    last_ms: int


class JoinTable:
    """States by partition and id. No I/O; used by one thread.

    Attributes:
        nbytes: what all states take, with the overhead of each.
        counts: events since they were last taken, for the metrics.
    """

    def __init__(self, settings: Settings) -> None:
        self._quiet_ms = int(settings.join.quiet_s * 1000)
        self._late_ms = int(settings.join.late_s * 1000)
        self._limit = settings.join.bytes
        self._send_incomplete = settings.join.incomplete == "send"
        self._topics = OutputTopics(settings, settings.generation)
        self._records = settings.topic("records")
        self._parts = settings.topic("parts")
        self._changelog = settings.topic("parts-seen")
        # Each in the order of the last change: the first is the one to release when it is full.
        self._waiting: dict[Slot, StoredState] = {}
        self._released: dict[Slot, StoredState] = {}
        self.nbytes = 0
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._released)

    @property
    def waiting(self) -> int:
        """Ids whose record has not been released."""
        return len(self._waiting)

    def clear(self) -> None:
        """Forget everything: the partitions are another member's, or are read back."""
        self._waiting.clear()
        self._released.clear()
        self.counts.clear()
        self.nbytes = 0

    def restore(self, partition: int, key: bytes, value: bytes | None) -> None:
        """One message of the changelog, in its order."""
        state = None
        if value is not None:
            try:
                state = unpack_state(value)
            except ValueError as error:
                log.error("%s, partition %d: left out: %s", self._changelog, partition, error)
        self._put((partition, key), state, value)

    def take(self, message: Message, now_ms: int) -> list[Output]:
        """One message of `parts`. What is wrong with it makes it a dead letter."""
        key = message.key or b""
        try:
            if message.value is None:
                return self._forget(message, now_ms)
            part = decode_part(message)
            slot = (message.partition, key)
            known = self._state(slot)
            if known is not None and 0 < part.sent_ms <= known.deleted_ms:
                self.counts["deleted"] += 1
                return []
            state = with_part(known, part, offset=message.offset, now_ms=now_ms)
            value = record_value(key.decode(), state)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever one part raises is that part's)
            bad = bad_record(error, stage=STAGE)
            self.counts["dead"] += 1
            return self._topics.dead(message, bad)
        self.counts["part"] += 1
        if state.waiting:
            return self._keep(slot, state)
        self.counts["complete"] += 1
        return [self._record(key, value), *self._keep(slot, replace(state, out_ms=now_ms))]

    def due(self, now_ms: int, read_to_ms: Mapping[int, int]) -> Iterator[list[Output]]:
        """What the timers release and forget; the outputs of one id belong together.

        Args:
            read_to_ms: partition -> every part that arrived until then has been taken. An id is
                released by this time, not by the clock: its parts may still wait to be read.
        """
        for slot, kept in list(self._waiting.items()):
            at = read_to_ms.get(slot[0], 0)
            if kept.last_ms + self._quiet_ms <= at:
                yield self._release(slot, now_ms, "quiet", "join.quiet_s", self._quiet_ms)
            elif kept.first_ms + self._late_ms <= at:
                yield self._release(slot, now_ms, "late", "join.late_s", self._late_ms)
        for slot, kept in list(self._released.items()):
            if kept.last_ms + self._late_ms <= read_to_ms.get(slot[0], 0):
                yield self._drop(slot)

    def trim(self, now_ms: int) -> Iterator[list[Output]]:
        """Down to join.bytes: released ids are forgotten first, then others are released."""
        while self.nbytes > self._limit and len(self):
            slot = next(iter(self._released or self._waiting))
            outputs: list[Output] = []
            if slot in self._waiting:
                outputs += self._release(slot, now_ms, "full", "join.bytes", None)
            yield outputs + self._drop(slot)

    def _forget(self, message: Message, now_ms: int) -> list[Output]:
        slot = (message.partition, message.key or b"")
        known = self._state(slot)
        deleted_ms = dict(message.headers).get(DELETED_HEADER)
        self.counts["deletion"] += 1
        if deleted_ms is None:  # sent to `parts` itself: what came before it is forgotten
            return [] if known is None else self._drop(slot)
        if known is None:
            return []
        state = without_deleted(known, deleted_ms=int(deleted_ms), now_ms=now_ms)
        outputs: list[Output] = []
        if known.out_ms and len(state.fields) < len(known.fields):
            # What was sent to `records` after the deletion holds fields from before it.
            if state.fields:
                outputs.append(self._record(slot[1], record_value(slot[1].decode(), state)))
                state = replace(state, out_ms=now_ms)
            elif known.out_ms >= state.deleted_ms:
                outputs.append(self._record(slot[1], None))
        return outputs + self._keep(slot, state)

    def _release(
        self, slot: Slot, now_ms: int, why: str, setting: str, limit_ms: int | None
    ) -> list[Output]:
        """An incomplete record goes out with what it has, or to the dead letters."""
        state = self._state(slot)
        assert state is not None
        self.counts[why] += 1
        key = slot[1]
        try:
            value = part_value(key.decode(), state)
            if self._send_incomplete:
                out = [self._record(key, record_value(key.decode(), state))]
                return out + self._keep(slot, replace(state, waiting=False, out_ms=now_ms))
        except (BadRecord, UnicodeDecodeError) as error:  # kept under other limits than today's
            bad = bad_record(error, stage=STAGE)
            return self._dead(slot, state, pack_state(state), bad) + self._drop(slot)
        limit = f"{limit_ms / 1000:g} s" if limit_ms is not None else f"{self._limit} bytes"
        reason = f"{', '.join(state.missing)} did not come within {setting} = {limit}"
        bad = BadRecord("expects", reason, stage=STAGE)
        return self._dead(slot, state, value, bad) + self._keep(slot, replace(state, waiting=False))

    def _dead(self, slot: Slot, state: State, value: bytes, error: BadRecord) -> list[Output]:
        """A dead letter of what the parts came to, from where the last one was."""
        self.counts["dead"] += 1
        partition, key = slot
        last = Message(
            topic=self._parts,
            partition=partition,
            offset=state.offset,
            key=key,
            value=value,
            ts=state.last_ms,
        )
        return self._topics.dead(last, error)

    def _record(self, key: bytes, value: bytes | None) -> Output:
        headers = [(JOIN_HEADER, b"1")] if value is None else []
        return Output(topic=self._records, partition=BY_KEY, key=key, value=value, headers=headers)

    def _keep(self, slot: Slot, state: State) -> list[Output]:
        packed = pack_state(state)
        self._put(slot, state, packed)
        return [self._logged(slot, packed)]

    def _drop(self, slot: Slot) -> list[Output]:
        self._put(slot, None, None)
        return [self._logged(slot, None)]

    def _logged(self, slot: Slot, value: bytes | None) -> Output:
        partition, key = slot
        return Output(topic=self._changelog, partition=partition, key=key, value=value)

    def _state(self, slot: Slot) -> State | None:
        kept = self._waiting.get(slot) or self._released.get(slot)
        return None if kept is None else unpack_state(kept.packed)

    def _put(self, slot: Slot, state: State | None, packed: bytes | None) -> None:
        for table in (self._waiting, self._released):
            if (old := table.pop(slot, None)) is not None:
                self.nbytes -= _size(slot, old.packed)
        if state is not None and packed is not None:
            kept = StoredState(packed, state.first_ms, state.last_ms)
            (self._waiting if state.waiting else self._released)[slot] = kept
            self.nbytes += _size(slot, packed)


def _size(slot: Slot, packed: bytes) -> int:
    return len(slot[1]) + len(packed) + OVERHEAD_BYTES
