"""Two-dimensional map of a sample of the store, and the fields that colour it.

The map is redrawn on request when the store has changed, at most every few seconds, in a thread.
Records that arrive meanwhile are projected to the existing axes.

Shapes: R rows, D dimensions.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from pydantic_core import to_json

from ..payloads import Payload, Payloads
from ..store import FUSED, Array, Row, VectorStore
from .projection import Projection, fit

ROWS = 2000
EVERY_S = 4.0
SHARE = 0.05  # most share of time spent drawing: a large store is drawn less often
VALUES = 24  # distinct values of a field; the rest is "other"
FIELDS = 24
NAMES = 64  # most names of labels, predictions and meta: one record may have thousands
MOST_CHARACTERS = 80  # of a name or value; longer ones do not group records


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawing: its number, the rows, and the answer as JSON bytes."""

    revision: int
    space: str
    rows: Sequence[Row]
    projection: Projection | None
    body: bytes


class SpaceMap:
    """Draws the serving store.

    Args:
        store: called for every drawing.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Callable[[], VectorStore],
        payloads: Payloads,
        *,
        rows: int = ROWS,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._payloads = store, payloads
        self._rows, self._every_s, self._clock = rows, every_s, clock
        self._drawn = Drawn(0, "", (), None, b"")
        self._seen: object = None
        self._next = 0.0
        self._drawing = asyncio.Lock()

    async def now(self) -> Drawn:
        """The current drawing; a new one if it is due and the store has changed."""
        async with self._drawing:
            store = self._store()
            seen = (id(store), len(store), tuple(sorted(store.positions.items())))
            if seen != self._seen and self._clock() >= self._next:
                began = self._clock()
                self._drawn = await asyncio.to_thread(self._draw, store)
                took = self._clock() - began
                self._seen = seen
                self._next = self._clock() + max(self._every_s, took / SHARE)
            return self._drawn

    def place(self, vectors: Iterable[Array]) -> list[list[float]] | None:
        """Coordinates of these vectors on the last drawing; None before the first."""
        projection, vector_list = self._drawn.projection, list(vectors)
        if projection is None or any(len(v) != len(projection.mean_D) for v in vector_list):
            return None
        if not vector_list:
            return []
        placed: list[list[float]] = np.round(projection(np.stack(vector_list)), 4).tolist()
        return placed

    def _draw(self, store: VectorStore) -> Drawn:
        rows = store.sample(self._rows)
        before = self._drawn.projection if self._drawn.space == store.space else None
        projection, placed = None, np.zeros((0, 2), np.float32)
        if rows:
            fused_RD = np.stack([row.vectors[FUSED] for row in rows])
            projection = fit(fused_RD, before)
            placed = projection(fused_RD)
        payloads = self._payloads.get_many([row.id for row in rows]) or {}
        revision = self._drawn.revision + 1
        answer = {
            "revision": revision,
            "records": len(store),
            "ids": [row.id for row in rows],
            "x": np.round(placed[:, 0], 4).tolist(),
            "y": np.round(placed[:, 1], 4).tolist(),
            "ts": [row.ts for row in rows],
            "version": [row.version for row in rows],
            "fields": _fields(rows, payloads),
        }
        body = to_json(answer, inf_nan_mode="null")
        return Drawn(revision, store.space, rows, projection, body)


def _fields(rows: Sequence[Row], payloads: Mapping[str, Payload]) -> list[dict[str, Any]]:
    """Fields that group the rows: labels, predictions, and meta, which filters can use."""
    nothing = Payload()
    shown = [payloads.get(row.id, nothing) for row in rows]
    kinds: list[tuple[str, list[Mapping[str, Any]]]] = [
        ("label", [payload.labels for payload in shown]),
        ("predicted", [payload.predicted for payload in shown]),
        ("meta", [row.meta for row in rows]),
    ]
    fields = []
    for kind, maps in kinds:
        names = Counter(
            name for one in maps for name in islice(one, NAMES) if len(name) <= MOST_CHARACTERS
        )
        common = sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMES]
        for name, _ in common:
            if (field := _field(kind, name, [one.get(name) for one in maps])) is not None:
                fields.append(field)
    return fields[:FIELDS]


def _field(kind: str, name: str, values: list[Any]) -> dict[str, Any] | None:
    """One field as choices and the choice of each row; -1: none, or another value.

    None if the field does not group the rows, such as a distinct name for each record.
    """
    firsts = [value[0] if isinstance(value, list) and value else value for value in values]
    there = [value for value in firsts if _groups_by(value)]
    numbers = [value for value in there if not isinstance(value, bool | str)]
    counts = Counter((isinstance(value, bool), value) for value in there)
    answer: dict[str, Any] = {"kind": kind, "name": name}
    if numbers and len(numbers) == len(there) and len(counts) > VALUES:
        answer |= {"least": min(numbers), "most": max(numbers)}
        return answer | {"choices": [], "of": [], "numbers": _numbers(firsts)}
    common = [key for key, count in counts.most_common(VALUES) if count > 1 or len(there) <= VALUES]
    if not common or (len(counts) > VALUES and sum(counts[key] for key in common) < len(there) / 2):
        return None
    place = {key: number for number, key in enumerate(common)}
    return answer | {
        "choices": [value for _, value in common],
        "counts": [counts[key] for key in common],
        "of": [
            place.get((isinstance(value, bool), value), -1) if _groups_by(value) else -1
            for value in firsts
        ],
    }


def _groups_by(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= MOST_CHARACTERS
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _numbers(values: list[Any]) -> list[float | None]:
    return [
        value if _groups_by(value) and not isinstance(value, bool | str) else None
        for value in values
    ]
