"""Sends the records of `braid produce`, at a rate, and keeps how far it came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import BadRecord, ConfigError, plain
from ...kafka.access import prepare
from ...kafka.producer import Producer
from ...kafka.schemas import check_id
from ...settings import Settings
from .checkpoint import Checkpoint
from .inputs import Entry, Fields, Input, inputs_of
from .storage import failures, locations

Progress = Callable[[str, int, int, Mapping[str, float]], None]

AHEAD = 16  # entries whose files are read before their turn
THREADS = 8
SAVE_EVERY_S = 5.0
BEHIND_S = 0.005  # a rate is kept to that
REFUSED = (BadRecord, TypeError, RecursionError, ArithmeticError)  # by one entry


async def send_all(
    settings: Settings,
    paths: Sequence[str],
    *,
    label: str | None,
    progress: Progress,
    source: str | None = None,
    checkpoint: Path | None = None,
    rate: float | None = None,
) -> dict[str, Any]:
    """Send all records below the paths; those that cannot be sent are listed with the reason.

    Args:
        source: the name of a source whose mapping says where the fields of rows are.
        checkpoint: a file that keeps how far it came; with it, an earlier run is continued.
        rate: records a second; None: as fast as it goes.

    Raises:
        BadRecord: a path does not exist or holds nothing to send.
        DatasetError: a file is of no known kind.
        ConfigError: a package is not installed, there is no such source, or an input has changed
            since the checkpoint.
    """
    mapped = None if source is None else _mapping(settings, source)
    inputs = inputs_of(locations(paths), label=label, mapped=mapped)
    kept = Checkpoint(checkpoint, inputs)
    done = kept.progress
    with ThreadPoolExecutor(THREADS, thread_name_prefix="read") as pool:
        reader = _Reader(_entries(inputs, done.entries), pool)
        if not await reader.begin() and not done.sent + done.refused_count:
            raise BadRecord("PATH", f"nothing to send below {', '.join(paths)}")
        prepare(settings, settings.generation, "producer")
        total, pace = sum(one.size for one in inputs), Pace(rate)
        refused: tuple[type[Exception], ...] = (*REFUSED, *failures())
        saved = time.monotonic()
        async with Producer(settings) as producer:
            async for one, entry, before, fields in reader:
                try:
                    await producer.send(**await asyncio.wrap_future(fields), wait=False)
                    done.sent += 1
                    await pace.wait()
                except refused as error:
                    done.refuse(f"{entry.where}: {plain(error)}")
                done.entries[one.name] = done.entries.get(one.name, 0) + 1
                at = before + int(entry.share * one.size)
                progress("producing", at, total, {"records": done.sent})
                if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY_S:
                    await producer.flush()
                    kept.save()
                    saved = time.monotonic()
        kept.save()
    return {"sent": done.sent, "refused": done.refused, "refused_count": done.refused_count}


class Pace:
    """Keeps to a rate from its first wait on.

    Args:
        rate: a second; None: any.
        clock, sleep: monotonic seconds, and a wait.
    """

    def __init__(
        self,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._began: float | None = None
        self._count = 0

    async def wait(self) -> None:
        """Wait until the next one may be sent."""
        if self._rate is None:
            return
        now = self._clock()
        began = self._began = now if self._began is None else self._began
        self._count += 1
        ahead_s = self._count / self._rate - (now - began)
        if ahead_s > BEHIND_S:
            await self._sleep(ahead_s)


async def delete_all(settings: Settings, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Send a null for each id.

    Returns:
        The partition and offset of each null in `records`.

    Raises:
        BadRecord: an id is not valid; nothing was sent.
    """
    for id_ in ids:
        check_id(id_)
    prepare(settings, settings.generation, "producer")
    sent = []
    async with Producer(settings) as producer:
        for id_ in dict.fromkeys(ids):
            place = await producer.delete(id_)
            assert place is not None
            sent.append({"id": id_, "partition": place[0], "offset": place[1]})
    return sent


Read = tuple[Input, Entry, int, Future[Fields]]
"""An input, one of its entries, the bytes of the inputs before it, and the entry's fields."""


def _entries(
    inputs: Sequence[Input], skip: Mapping[str, int]
) -> Iterator[tuple[Input, Entry, int]]:
    before = 0
    for one in inputs:
        for entry in one.entries(skip.get(one.name, 0)):
            yield one, entry, before
        before += one.size


class _Reader:
    """Reads entries on a thread, and the fields of the next ones on others.

    The event loop, which sends meanwhile, must not wait for a file.
    """

    def __init__(
        self, entries: Iterator[tuple[Input, Entry, int]], pool: ThreadPoolExecutor
    ) -> None:
        self._entries, self._pool = entries, pool
        self._next: list[Read] = []

    async def begin(self) -> bool:
        """Read the first ones; whether there is any."""
        self._next = await asyncio.to_thread(self._chunk)
        return bool(self._next)

    async def __aiter__(self) -> AsyncIterator[Read]:
        while chunk := self._next:
            following = asyncio.create_task(asyncio.to_thread(self._chunk))
            try:
                for read in chunk:
                    yield read
                self._next = await following
            finally:
                following.cancel()

    def _chunk(self) -> list[Read]:
        return [
            (one, entry, before, self._pool.submit(entry.fields))
            for one, entry, before in islice(self._entries, AHEAD)
        ]


def _mapping(settings: Settings, name: str) -> Callable[[Mapping[str, Any]], Fields]:
    """Makes the fields of a row by the mapping of a source. Raises ConfigError."""
    from ...sources.rows import fields_of

    known = {source.title: source for source in settings.sources}
    if name not in known:
        raise ConfigError(
            f"--source {name}: no such source; there are {', '.join(known) or 'none'}"
        )
    return fields_of(known[name])
