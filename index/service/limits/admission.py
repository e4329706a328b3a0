"""Concurrency limit with a bounded queue; beyond it 503."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ...errors import Busy


class ConcurrencyLimiter:
    """Admits `limit` callers at once; up to `queue_size` more wait, first come, first served.

    Args:
        what: named in the refusal, in the plural.
        on_active: called with the number of admitted callers whenever it changes.
        on_queued: called with the number of waiting callers whenever it changes.
    """

    def __init__(
        self,
        what: str,
        limit: int,
        queue_size: int,
        on_active: Callable[[int], None] = lambda count: None,
        on_queued: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._what, self._limit, self._queue_size = what, limit, queue_size
        self._on_active, self._on_queued = on_active, on_queued
        self._semaphore = asyncio.Semaphore(limit)
        self._active = self._queued = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it. Raises Busy if the queue is full."""
        if self._semaphore.locked():
            if self._queued >= self._queue_size:
                raise Busy(
                    f"{self._limit} {self._what} are under way and {self._queued} wait, "
                    f"the limit is {self._limit} and {self._queue_size}; try again"
                )
            self._count_queued(1)
            try:
                await self._semaphore.acquire()
            finally:
                self._count_queued(-1)
        else:
            await self._semaphore.acquire()  # does not wait
        self._count_active(1)
        try:
            yield
        finally:
            self._count_active(-1)
            self._semaphore.release()

    def _count_active(self, change: int) -> None:
        self._active += change
        self._on_active(self._active)

    def _count_queued(self, change: int) -> None:
        self._queued += change
        self._on_queued(self._queued)
