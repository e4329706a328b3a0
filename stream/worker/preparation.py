"""Step 2 of the worker: CPU threads prepare records; order of arrival is kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from braid.encoders.types import Model, Prepared

from ..media.links import Links
from ..settings import Settings
from .canary_shadow import CanaryShadow
from .in_flight import Item, future_of, record_of

# A link and a decoder that hangs, tried twice; see braid.encoders.decoding.isolation.
BOUND_S = 180.0


class Preparation:
    """A queue of records that CPU threads prepare. Used by the worker's loop.

    Args:
        clock: monotonic seconds.

    Attributes:
        shadow: the running canary; None: none. Set by any thread.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.shadow: CanaryShadow | None = None
        self._links = Links(settings)
        self._clock = clock
        self._items: deque[Item] = deque()
        self._head_since = 0.0
        self._threads = ThreadPoolExecutor(
            settings.worker.prepare_threads, thread_name_prefix="prepare"
        )

    def add(self, items: Sequence[Item], model: Model) -> None:
        """Prepare the decoded records among `items`."""
        for item in items:
            if item.record is None:
                continue
            if not self._items:
                self._head_since = self._clock()
            item.model = model
            item.preparing = self._threads.submit(self._prepare, model, item, self.shadow)
            self._items.append(item)

    def finished(self) -> Iterator[Item]:
        """The next records whose preparation has ended, in order."""
        while self._items and future_of(self._items[0]).done():
            self._head_since = self._clock()
            yield self._items.popleft()

    @property
    def next(self) -> Future[Prepared] | None:
        """The preparation of the oldest record."""
        return future_of(self._items[0]) if self._items else None

    @property
    def within_bound(self) -> bool:
        """Whether the oldest record has been in preparation for less than BOUND_S."""
        return bool(self._items) and self._clock() - self._head_since < BOUND_S

    def clear(self) -> None:
        """Forget all records; results of the threads are dropped."""
        self._items.clear()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._links.close()

    def _prepare(self, model: Model, item: Item, shadow: CanaryShadow | None) -> Prepared:
        sample = self._links.sample(record_of(item))
        prepared = model.prepare(sample)
        if shadow is not None:
            item.shadow_result = shadow.prepare(sample, prepared, item.message.partition)
        return prepared
