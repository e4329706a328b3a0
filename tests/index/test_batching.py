"""Calls that come while a batch runs are collected into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from braid.index.batching import Batcher


class Doubling:
    """Doubles numbers in batches that end when the test says so; raises for a negative one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Semaphore(0)

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.gate.acquire()
        if min(items) < 0:
            raise ValueError(f"{min(items)} is negative")
        return [2 * item for item in items]

    def open(self) -> None:
        for _ in range(100):
            self.gate.release()


async def passes(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_calls_that_wait_are_one_batch_of_at_most_the_size() -> None:
    async def go() -> None:
        run = Doubling()
        batcher = Batcher(run, at_once=1, size=3)
        first = asyncio.create_task(batcher(1))
        await passes()
        assert run.batches == [[1]]  # at once
        others = [asyncio.create_task(batcher(number)) for number in range(2, 7)]
        await passes()
        assert run.batches == [[1]]
        run.open()
        assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12]
        assert run.batches == [[1], [2, 3, 4], [5, 6]]
        assert await batcher(7) == 14  # after it has been idle

    asyncio.run(go())


def test_as_many_batches_run_as_may_and_calls_of_one_pass_are_together() -> None:
    async def go() -> None:
        run = Doubling()
        batcher = Batcher(run, at_once=2, size=9)
        tasks = [asyncio.create_task(batcher(number)) for number in (1, 2)]
        await passes()
        tasks += [asyncio.create_task(batcher(number)) for number in (3, 4)]
        await passes()
        tasks += [asyncio.create_task(batcher(number)) for number in (5, 6)]
        await passes()
        assert run.batches == [[1, 2], [3, 4]]
        run.open()
        assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10, 12]
        assert run.batches[2:] == [[5, 6]]

    asyncio.run(go())


def test_an_exception_reaches_its_caller_only() -> None:
    async def go() -> None:
        run = Doubling()
        run.open()
        batcher = Batcher(run, at_once=1, size=9)
        results = await asyncio.gather(*map(batcher, (1, -2, 3)), return_exceptions=True)
        assert results[0::2] == [2, 6]
        assert isinstance(results[1], ValueError)
        assert run.batches == [[1, -2, 3], [1], [-2], [3]]
        with pytest.raises(ValueError, match="-5 is negative"):
            await batcher(-5)

    asyncio.run(go())


def test_an_item_whose_caller_has_gone_is_not_run() -> None:
    async def go() -> None:
        run = Doubling()
        batcher = Batcher(run, at_once=1, size=9)
        first = asyncio.create_task(batcher(1))
        await passes()
        gone, last = (asyncio.create_task(batcher(number)) for number in (2, 3))
        await passes()
        gone.cancel()
        first.cancel()  # while it runs: the batch ends as if nothing had happened
        await passes()
        run.open()
        assert await last == 6
        assert run.batches == [[1], [3]]

    asyncio.run(go())


def test_a_batch_waits_for_as_many_as_the_one_before_had() -> None:
    async def go() -> None:
        run = Doubling()
        batcher = Batcher(run, at_once=1, size=9, linger_s=60.0)
        tasks = [asyncio.create_task(batcher(number)) for number in (1, 2, 3)]
        await passes()
        assert run.batches == [[1, 2, 3]]  # the first waits for none
        await asyncio.sleep(0.4)  # of which it waits for a quarter
        run.open()
        await asyncio.gather(*tasks)
        tasks = [asyncio.create_task(batcher(4))]
        await passes()
        assert len(run.batches) == 1
        tasks += [asyncio.create_task(batcher(number)) for number in (5, 6)]
        await asyncio.gather(*tasks)
        assert run.batches == [[1, 2, 3], [4, 5, 6]]
        assert await batcher(7) == 14  # no other comes: it waits no longer than its share
        assert run.batches[2:] == [[7]]

    asyncio.run(go())


def test_a_batch_waits_for_the_callers_of_the_one_before_and_those_it_left_waiting() -> None:
    async def go() -> None:
        run = Doubling()
        batcher = Batcher(run, at_once=1, size=3, linger_s=60.0)
        tasks = [asyncio.create_task(batcher(1))]
        await passes()
        tasks += [asyncio.create_task(batcher(number)) for number in (2, 3)]
        await asyncio.sleep(0.4)
        run.open()
        await tasks[0]
        assert run.batches == [[1]]
        tasks += [asyncio.create_task(batcher(4))]
        await asyncio.gather(*tasks)
        assert run.batches == [[1], [2, 3, 4]]
        tasks = [asyncio.create_task(batcher(number)) for number in (5, 6, 7, 8)]
        await asyncio.gather(*tasks)
        assert run.batches[2:] == [[5, 6, 7], [8]]

    asyncio.run(go())


def test_no_waiting_without_a_bound_for_it() -> None:
    async def go() -> None:
        run = Doubling()
        batcher = Batcher(run, at_once=1, size=9)
        tasks = [asyncio.create_task(batcher(number)) for number in (1, 2)]
        await passes()
        await asyncio.sleep(0.05)
        run.open()
        await asyncio.gather(*tasks)
        last = asyncio.create_task(batcher(3))
        await passes()
        assert run.batches == [[1, 2], [3]]
        assert await last == 6

    asyncio.run(go())


def test_a_missing_result_is_its_callers_exception_and_the_next_call_runs() -> None:
    async def run(items: Sequence[int]) -> list[int]:
        return [2 * item for item in items if item > 0]

    async def go() -> None:
        batcher = Batcher(run, at_once=1, size=3)
        missing, other = asyncio.ensure_future(batcher(-1)), asyncio.ensure_future(batcher(4))
        assert await asyncio.wait_for(other, 5) == 8
        with pytest.raises(ValueError, match="0 results of 1"):
            await asyncio.wait_for(missing, 5)
        assert await asyncio.wait_for(batcher(3), 5) == 6

    asyncio.run(go())
