"""Long polling: one change watcher and shared answers for all requests."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

from fastapi import Request

POLL_S = 0.05
FRESH_S = 0.25  # for which an answer is reused
KEPT = 16  # answers


class ChangeWatcher:
    """Wakes waiting requests when `number` changes; one task polls it for all of them.

    Args:
        number: called often, in the event loop; must be cheap.
    """

    def __init__(self, number: Callable[[], object]) -> None:
        self._number = number
        self._waiting = 0
        self._change = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def changed(self, seen: object, *, timeout_s: float) -> None:
        """Returns when the number is not `seen`, or after `timeout_s`."""
        self._waiting += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(timeout_s):
                while self._number() == seen:
                    await self._change.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1

    async def _poll(self) -> None:
        last = self._number()
        while self._waiting:
            await asyncio.sleep(POLL_S)
            if (now := self._number()) != last:
                last, change = now, self._change
                self._change = asyncio.Event()
                change.set()


class CoalescedAnswers:
    """Builds an answer once for all requests for the same key within FRESH_S seconds.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: OrderedDict[Hashable, tuple[float, asyncio.Task[bytes]]] = OrderedDict()

    async def get(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The result of `make` for this key, at most FRESH_S old."""
        until, task = self._made.get(key, (0.0, None))
        if task is None or self._clock() >= until:
            task = asyncio.ensure_future(_run(make))
            self._made[key] = self._clock() + FRESH_S, task
            self._made.move_to_end(key)
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        return await asyncio.shield(task)  # others may wait for the task, too


async def _run(make: Callable[[], Awaitable[bytes]]) -> bytes:
    return await make()


async def until_disconnect(request: Request, waiting: Awaitable[object]) -> None:
    """Wait for an awaitable or for the end of the connection, whichever is first."""
    tasks = {asyncio.ensure_future(waiting), asyncio.ensure_future(_disconnected(request))}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
