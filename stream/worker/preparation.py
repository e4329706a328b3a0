"""Step 2 of the worker: CPU threads prepare records; order of arrival is kept."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from braid.encoders.types import Model

from ..errors import WorkerError
from ..media.links import Links
from ..monitoring.steps import Steps
from ..settings import Settings
from .canary_shadow import CanaryShadow
from .in_flight import Item, model_of, record_of, where

# A link and a decoder that hangs, tried twice; see braid.encoders.decoding.isolation.
BOUND_S = 180.0
CHUNK_S = 0.005
"""Of what a thread takes at a time: a piece of work for each small text would cost the worker's
loop more than all else that it does for it, and long ones would leave a thread idle."""
CHUNK = 8  # records, until it is known how long one takes
SHORTEST_S = 1e-6  # of a chunk, by a clock that stands still
FADES = 0.8  # what the time of a record before counts with each chunk


class Preparation:
    """A queue of records that CPU threads prepare. Used by the worker's loop.

    Args:
        clock: monotonic seconds.
        steps: None: the time is not measured.

    Attributes:
        shadow: the running canary; None: none. Set by any thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        steps: Steps | None = None,
    ) -> None:
        self._steps = steps
        self.shadow: CanaryShadow | None = None
        self._links = Links(settings)
        self._clock = clock
        self._items: deque[Item] = deque()
        self._chunks: deque[tuple[Future[None], Item]] = deque()  # with the last of each
        self._head_since = 0.0
        self._each_s = CHUNK_S / CHUNK
        self._count = settings.worker.prepare_threads
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="prepare")

    def __len__(self) -> int:
        return len(self._items)

    def add(self, items: Sequence[Item], model: Model) -> None:
        """Prepare the decoded records among `items`."""
        decoded = [item for item in items if item.record is not None]
        if not self._items:
            self._head_since = self._clock()
        fitting = int(CHUNK_S / self._each_s)
        size = max(1, min(fitting, math.ceil(len(decoded) / self._count)))
        for start in range(0, len(decoded), size):
            chunk = decoded[start : start + size]
            for item in chunk:
                item.model = model
            self._items += chunk
            self._chunks.append(
                (self._threads.submit(self._prepare, chunk, self.shadow), chunk[-1])
            )

    def finished(self) -> Iterator[Item]:
        """The next records whose preparation has ended, in order, without those that were dropped.

        Raises:
            BaseException: what ended the preparation of the oldest records, if it is no Exception.
            WorkerError: there was no memory for the oldest record.
        """
        while self._items:
            if self._items[0].prepared is None:
                if self._chunks[0][0].done():
                    self._chunks[0][0].result()
                return
            self._head_since = self._clock()
            item = self._items.popleft()
            if isinstance(item.prepared, MemoryError):
                raise WorkerError(
                    f"preparing record {where(item)}: out of memory"
                ) from item.prepared
            if item is self._chunks[0][1]:
                self._chunks.popleft()
            if not item.ticket.dropped:
                yield item

    @property
    def next(self) -> Future[None] | None:
        """The preparation of the oldest records."""
        return self._chunks[0][0] if self._chunks else None

    @property
    def within_bound(self) -> bool:
        """Whether the oldest record has been in preparation for less than BOUND_S."""
        return bool(self._items) and self._clock() - self._head_since < BOUND_S

    def clear(self) -> None:
        """Forget all records; results of the threads are dropped."""
        self._items.clear()
        self._chunks.clear()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._links.close()

    def _prepare(self, items: Sequence[Item], shadow: CanaryShadow | None) -> None:
        began, started = self._clock(), time.monotonic()
        for item in items:
            try:
                sample = self._links.sample(record_of(item))
                prepared = model_of(item).prepare(sample)
                if shadow is not None:
                    item.shadow_result = shadow.prepare(sample, prepared, item.message.partition)
                item.prepared = prepared
            except Exception as error:  # noqa: BLE001 (the loop decides what it means)
                item.prepared = error
        if self._steps is not None:
            self._steps.took("prepare records", started, records=len(items))
        each_s = max(SHORTEST_S, self._clock() - began) / len(items)
        self._each_s = FADES * self._each_s + (1 - FADES) * each_s
