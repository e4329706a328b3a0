"""Batches calls of concurrent requests: while batches run, the calls that come are collected.

A call that comes while nothing runs starts at once. The next batch waits for as many calls as the
one before had and left waiting, for a quarter of its time and `linger_s` at most: the callers of a
batch often call again together, and half of them cost nearly as much as all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

SHARE = 0.25  # of the last batch's time
POLL_S = 0.001


class Batcher(Generic[T, R]):
    """Calls `run` with the items of several callers; used in one event loop.

    If a batch raises an exception, its items run one at a time, so that each caller gets its own.

    Args:
        run: takes items, returns as many results in their order.
        at_once: batches that run at once.
        size: items of one batch at most.
        linger_s: how long a batch waits for more items at most; 0 does not wait.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        at_once: int,
        size: int,
        linger_s: float = 0.0,
    ) -> None:
        self._run, self._at_once, self._size, self._linger_s = run, at_once, size, linger_s
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._expected, self._last_s = 1, 0.0

    async def __call__(self, item: T) -> R:
        """The result of `item`. Raises what `run` raises for it."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._running) < self._at_once:
            self._running.add(asyncio.create_task(self._work()))
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._linger()
                if batch := self._take():
                    await self._run_batch(batch)
        finally:  # without an await since `_waiting` was seen empty: no item is left behind
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)

    async def _linger(self) -> None:
        await asyncio.sleep(0)  # for callers that are resumed in the same pass of the loop
        now = asyncio.get_running_loop().time
        until = now() + min(self._linger_s, SHARE * self._last_s)
        while len(self._waiting) < self._expected and now() < until:
            await asyncio.sleep(POLL_S)

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        batch: list[tuple[T, asyncio.Future[R]]] = []
        while self._waiting and len(batch) < self._size:
            item, future = self._waiting.popleft()
            if not future.done():  # else its caller is gone
                batch.append((item, future))
        return batch

    async def _run_batch(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        now = asyncio.get_running_loop().time
        began = now()
        try:
            results = await self._run([item for item, _ in batch])
            if len(results) != len(batch):
                raise ValueError(f"{len(results)} results of {len(batch)} items")
        except Exception as error:  # noqa: BLE001 (it is the caller's)
            if len(batch) == 1:
                _, future = batch[0]
                if not future.done():
                    future.set_exception(error)
                return
            for one in batch:
                await self._run_batch([one])
            return
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        self._expected = min(self._size, len(batch) + len(self._waiting))
        self._last_s = now() - began
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
