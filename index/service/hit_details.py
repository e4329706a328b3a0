"""Display data of one record: from Redis, or rebuilt from `records`."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from braid.modalities import MODALITIES

from ..media_cache import Kind, Media, MediaCache
from ..payloads import Payload, Payloads
from ..store import Row

KEPT = 256  # rebuilt records in memory, about 10 kB each
ABSENT_S = 30.0  # until a record that could not be rebuilt, or not whole, is tried again
KIND_OF: Mapping[str, Kind] = {
    name: cast(Kind, modality.shown) for name, modality in MODALITIES.items() if modality.shown
}
"""What is made of a modality for a card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """Display data of one record, rebuilt from its message in `records`."""

    payload: Payload
    media: Mapping[Kind, Media] = field(default_factory=dict)


Rebuild = Callable[[str, int, int], Awaitable[Rebuilt | None]]
"""(id, partition, version) -> data from that message; None if it is gone. Raises BadQuery (503): it
cannot be read now."""

Large = Literal["picture", "sound", "text"]
Enlarge = Callable[[Large, str, int, int], Awaitable[Media | None]]
"""(what, id, partition, version) -> a record's large picture, its sound up to a bound, or its whole
text (as UTF-8) from that message; None if it is gone or has none. Raises BadQuery (503): it cannot
be read now."""


class HitDetails:
    """Reads payloads and media of rows; concurrent reads of a missing record rebuild it once.

    Args:
        rebuild: None if records cannot be rebuilt.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        payloads: Payloads,
        media_cache: MediaCache,
        rebuild: Rebuild | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._payloads, self._media_cache, self._rebuild = payloads, media_cache, rebuild
        self._clock = clock
        self._known: OrderedDict[tuple[str, int], tuple[float, Rebuilt | None]] = OrderedDict()
        self._running: dict[tuple[str, int], asyncio.Task[Rebuilt | None]] = {}

    async def payload(self, row: Row) -> Payload | None:
        """Text, links and labels of a record, or None. Raises BadQuery (503)."""
        payloads = await asyncio.to_thread(self._payloads.get_many, [row.id])
        if payloads:
            return payloads[row.id]
        rebuilt = await self._rebuilt(row)
        return None if rebuilt is None else rebuilt.payload

    async def media(self, kind: Kind, row: Row) -> Media | None:
        """The record's thumbnail or snippet, or None. Raises BadQuery (503)."""
        get = self._media_cache.get
        cached = await asyncio.to_thread(get, kind, row.id, version=row.version)
        if cached is not None:
            return cached
        rebuilt = await self._rebuilt(row)
        return None if rebuilt is None else rebuilt.media.get(kind)

    async def _rebuilt(self, row: Row) -> Rebuilt | None:
        key = (row.id, row.version)
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            until, rebuilt = known
            if self._clock() < until:
                return rebuilt
        if self._rebuild is None:
            return None
        if (task := self._running.get(key)) is None:
            task = self._running[key] = asyncio.create_task(self._make(key, row))
        return await asyncio.shield(task)  # others may wait for the task, too

    async def _make(self, key: tuple[str, int], row: Row) -> Rebuilt | None:
        assert self._rebuild is not None
        try:
            rebuilt = await self._rebuild(row.id, row.partition, row.version)
            if rebuilt is not None:
                await asyncio.to_thread(self._keep, row, rebuilt)
            # A link, for example, may be readable later.
            whole = rebuilt is not None and all(
                kind in rebuilt.media for name, kind in KIND_OF.items() if name in row.vectors
            )
            self._known[key] = (math.inf if whole else self._clock() + ABSENT_S, rebuilt)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return rebuilt
        finally:
            del self._running[key]

    def _keep(self, row: Row, rebuilt: Rebuilt) -> None:
        self._payloads.add(row.id, rebuilt.payload)
        media = {(kind, row.id): one for kind, one in rebuilt.media.items()}
        self._media_cache.put_many(media, version=row.version)
