"""Byte budget of all request bodies in memory."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException

FREE = 64 * 1024  # of each body: a query of words is answered while large bodies fill the budget


class BudgetFull(HTTPException):
    """All request bodies together hold as much as they may (503)."""

    def __init__(self, limit: int, waited_s: float) -> None:
        reason = (
            f"the bodies of all requests hold {limit} bytes, the limit, and none was let go "
            f"within {waited_s:g} s; try again"
        )
        super().__init__(503, detail=reason, headers={"retry-after": "1", "connection": "close"})


class BodyBudget:
    """Counts the bytes of bodies from when they are read until their requests are answered.

    Args:
        limit: bytes of all bodies, beside the first FREE bytes of each.
        wait_s: how long one waits for room before it is refused.
    """

    def __init__(self, limit: int, *, wait_s: float = 2.0) -> None:
        self._limit, self._wait_s = limit, wait_s
        self._held = 0
        self._room = asyncio.Condition()

    @property
    def held(self) -> int:
        """Bytes that count now."""
        return self._held

    async def take(self, count: int) -> None:
        """Reserve so many bytes. Raises BudgetFull."""
        if self._held + count <= self._limit:
            self._held += count
            return
        try:
            async with asyncio.timeout(self._wait_s), self._room:
                await self._room.wait_for(lambda: self._held + count <= self._limit)
                self._held += count
        except TimeoutError:
            raise BudgetFull(self._limit, self._wait_s) from None

    async def give_back(self, count: int) -> None:
        """Let go of what was reserved."""
        if count:
            self._held -= count
            async with self._room:
                self._room.notify_all()


class Reservation:
    """What one body holds."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._seen = self._taken = 0

    async def grow(self, count: int) -> None:
        """So many more bytes of the body come into memory. Raises BudgetFull."""
        self._seen += count
        more = max(0, self._seen - FREE) - self._taken
        if more > 0:
            await self._budget.take(more)
            self._taken += more

    async def release(self) -> None:
        """The request is answered."""
        taken, self._taken = self._taken, 0
        await self._budget.give_back(taken)
