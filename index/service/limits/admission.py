"""So many at once, so many in line, and the rest are told to come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ...errors import Busy


class ConcurrencyLimiter:
    """Lets `places` through at once; up to `line` more wait in the order in which they came.

    Args:
        what: named in the refusal, in the plural.
        inside: told how many are through, whenever that changes.
        queued: told how many wait.
    """

    def __init__(
        self,
        what: str,
        places: int,
        line: int,
        inside: Callable[[int], None] = lambda count: None,
        queued: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._what, self._places, self._line = what, places, line
        self._tell_inside, self._tell_queued = inside, queued
        self._semaphore = asyncio.Semaphore(places)
        self._inside = self._queued = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and hold it. Raises Busy if the line is full."""
        if self._semaphore.locked():
            if self._queued >= self._line:
                raise Busy(
                    f"{self._places} {self._what} are under way and {self._queued} wait, "
                    f"the limit is {self._places} and {self._line}; try again"
                )
            self._count_queued(1)
            try:
                await self._semaphore.acquire()
            finally:
                self._count_queued(-1)
        else:
            await self._semaphore.acquire()  # at once
        self._count_inside(1)
        try:
            yield
        finally:
            self._count_inside(-1)
            self._semaphore.release()

    def _count_inside(self, change: int) -> None:
        self._inside += change
        self._tell_inside(self._inside)

    def _count_queued(self, change: int) -> None:
        self._queued += change
        self._tell_queued(self._queued)
