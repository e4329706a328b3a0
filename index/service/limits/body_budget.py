"""Byte budget of all request bodies in memory."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException

FREE = 64 * 1024  # bytes of each body that do not count: text queries pass when the budget is full


class BudgetFull(HTTPException):
    """The budget of all request bodies is used up (503)."""

    def __init__(self, limit: int, waited_s: float) -> None:
        reason = (
            f"the bodies of all requests hold {limit} bytes, the limit, and none was let go "
            f"within {waited_s:g} s; try again"
        )
        super().__init__(503, detail=reason, headers={"retry-after": "1", "connection": "close"})


class BodyBudget:
    """Counts the bytes of bodies from their arrival until their requests are answered.

    Args:
        limit: bytes of all bodies, without the first FREE bytes of each.
        wait_s: how long a body waits for budget before it is refused.
    """

    def __init__(self, limit: int, *, wait_s: float = 2.0) -> None:
        self._limit, self._wait_s = limit, wait_s
        self._held = 0
        self._room = asyncio.Condition()

    @property
    def held(self) -> int:
        """Reserved bytes."""
        return self._held

    async def take(self, count: int) -> None:
        """Reserve bytes. Raises BudgetFull."""
        if self._held + count <= self._limit:
            self._held += count
            return
        try:
            async with asyncio.timeout(self._wait_s), self._room:
                await self._room.wait_for(lambda: self._held + count <= self._limit)
                self._held += count
        except TimeoutError:
            raise BudgetFull(self._limit, self._wait_s) from None

    async def release(self, count: int) -> None:
        """Release reserved bytes."""
        if count:
            self._held -= count
            async with self._room:
                self._room.notify_all()


class Reservation:
    """The reserved bytes of one body."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._seen = self._taken = 0

    async def grow(self, count: int) -> None:
        """Reserve more bytes for the body. Raises BudgetFull."""
        self._seen += count
        more = max(0, self._seen - FREE) - self._taken
        if more > 0:
            await self._budget.take(more)
            self._taken += more

    async def release(self) -> None:
        """Release all bytes: the request is answered."""
        taken, self._taken = self._taken, 0
        await self._budget.release(taken)
