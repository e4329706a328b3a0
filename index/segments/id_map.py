"""Maps an id to its row and its last write.

A dictionary of slots and four arrays. An id keeps its slot after its deletion, so that an older
write that arrives late cannot restore it. A place is one int64, `part << 32 | row`, so that a
concurrent read is consistent. One thread writes; readers check a place against the view that they
hold.

Shapes: S slots, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

TOMBSTONE = -1  # place of a deleted id
ROW_BITS = 32


class LastWrite(NamedTuple):
    """The last write of an id; `place` is TOMBSTONE for a deletion."""

    partition: int
    version: int
    ts: int
    place: int


def place_of(part: int, row: int) -> int:
    return part << ROW_BITS | row


def split(place: int) -> tuple[int, int]:
    """The part's number and the row."""
    return place >> ROW_BITS, place & (1 << ROW_BITS) - 1


class IdMap:
    """Slots by id, and the last write of each slot."""

    def __init__(self, capacity: int = 1024) -> None:
        self._slots: dict[str, int] = {}
        self._ids: list[str] = []
        self._version_S = np.zeros(capacity, np.int64)
        self._ts_S = np.zeros(capacity, np.int64)
        self._partition_S = np.zeros(capacity, np.int32)
        self._place_S = np.full(capacity, TOMBSTONE, np.int64)

    def __len__(self) -> int:
        """Number of known ids, deleted ones included."""
        return len(self._ids)

    def slot(self, id: str) -> int | None:
        return self._slots.get(id)

    def last(self, slot: int) -> LastWrite:
        return LastWrite(
            int(self._partition_S[slot]),
            int(self._version_S[slot]),
            int(self._ts_S[slot]),
            int(self._place_S[slot]),
        )

    def place(self, id: str) -> int | None:
        """The place of an id; None if the id is unknown."""
        slot = self._slots.get(id)
        return None if slot is None else int(self._place_S[slot])

    def put(self, id: str, last: LastWrite) -> int:
        """Set the last write of an id; returns its slot."""
        slot = self._slots.get(id)
        if slot is None:
            slot = len(self._ids)
            if slot == len(self._place_S):
                self._grow(2 * slot)
            self._set(slot, last)  # before readers can find the slot
            self._ids.append(id)
            self._slots[id] = slot
        else:
            self._set(slot, last)
        return slot

    def put_rows(
        self,
        ids: Sequence[str],
        partition_N: Int64,
        version_N: Int64,
        ts_N: Int64,
        place: tuple[int, Int64],
    ) -> Int64:
        """Add the rows of one part, with new ids; returns their slots, int64[N].

        Args:
            place: the part's number, and int64[N], the rows.
        """
        first = len(self._ids)
        self._grow(first + len(ids))
        slot_N = np.arange(first, first + len(ids), dtype=np.int64)
        self._partition_S[slot_N] = partition_N
        self._version_S[slot_N] = version_N
        self._ts_S[slot_N] = ts_N
        self._ids.extend(ids)
        self._slots.update(zip(ids, slot_N.tolist(), strict=True))
        self.move(slot_N, *place)
        return slot_N

    def move(self, slot_N: Int64, part: int, row_N: Int64) -> None:
        """Set the places of these slots to rows of `part`."""
        self._place_S[slot_N] = (np.int64(part) << ROW_BITS) | row_N

    def deleted(self) -> Iterator[tuple[str, LastWrite]]:
        """The deleted ids with their last writes."""
        gone = np.flatnonzero(self._place_S[: len(self._ids)] == TOMBSTONE)
        lasts = [part[gone].tolist() for part in (self._partition_S, self._version_S, self._ts_S)]
        for slot, partition, version, ts in zip(gone.tolist(), *lasts, strict=True):
            yield self._ids[slot], LastWrite(partition, version, ts, TOMBSTONE)

    def _set(self, slot: int, last: LastWrite) -> None:
        self._partition_S[slot] = last.partition
        self._version_S[slot] = last.version
        self._ts_S[slot] = last.ts
        self._place_S[slot] = last.place

    def _grow(self, capacity: int) -> None:
        more = capacity - len(self._place_S)
        if more <= 0:
            return
        self._version_S = np.concatenate([self._version_S, np.zeros(more, np.int64)])
        self._ts_S = np.concatenate([self._ts_S, np.zeros(more, np.int64)])
        self._partition_S = np.concatenate([self._partition_S, np.zeros(more, np.int32)])
        self._place_S = np.concatenate([self._place_S, np.full(more, TOMBSTONE, np.int64)])
