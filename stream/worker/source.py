"""What the worker reads from: polls of `records`, as many and as often as the worker has room for.

`Intake` decides when to poll, and how long to wait. A `Source` decides what a poll returns. The
sources of a generation that is built wrap the plain one: it is limited to a share of the time while
live traffic runs, and its partitions are backfilled before `records` is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Protocol

from ..kafka.client import Message
from ..kafka.transactions import RecordSource
from .backfill import Backfill
from .latency import STAGES, LatencyTarget
from .recovery import NOT_PUBLISHED
from .shared import Shared

POLL_RECORDS = 64
POLL_SHARE = 8  # of what may be in flight, in one poll, if that is more
CALLBACKS_EVERY_S = 1.0  # rebalance callbacks are served this often by a worker that does not poll
LAG_EVERY_S = 1.0
PAUSE_S = 0.005
PATIENCE_S, MAX_PATIENCE_S = 0.002, 0.02
"""How long new records may wait for a poll while others are encoded: a hundredth of the last
batch's time, since each pass of the loop takes Python from the encoders' threads."""
MAX_REST_S = 2.0


class Source(Protocol):
    """What `Intake` polls."""

    @property
    def ready(self) -> bool:
        """Whether it may be polled; if not, the worker rests on purpose."""
        ...

    def poll(self, limit: int, *, wait_s: float) -> list[Message]:
        """Up to `limit` records, after `wait_s` at most. Rebalance callbacks run in here."""
        ...

    def encoded(self, seconds: float) -> None:
        """Note that a batch took so long on the device."""
        ...

    def forget(self) -> None:
        """Forget what was read of the committed offsets: they, or the partitions, have changed."""
        ...


class PlainSource:
    """`records`, as a member of the consumer group."""

    ready = True

    def __init__(self, records: RecordSource) -> None:
        self.poll = records.poll

    def encoded(self, seconds: float) -> None: ...
    def forget(self) -> None: ...


class Throttle:
    """Limits a generation that is being built while live traffic runs.

    While the live worker of the process has records in flight, the building worker is active for
    `share` of the time, measured by the duration of its own batches. Otherwise it is not limited.

    Args:
        share: of the time while others are busy, in (0, 1].
        others_busy: whether the live worker has records in flight.
    """

    def __init__(self, share: float, others_busy: Callable[[], bool]) -> None:
        self._share, self._others_busy = share, others_busy
        self._rest_until = 0.0

    def worked(self, seconds: float, now: float) -> None:
        """Count a batch that took `seconds` and ended at `now`."""
        rest_s = min(MAX_REST_S, seconds * (1 / self._share - 1))
        self._rest_until = max(self._rest_until, now + rest_s)

    def ready(self, now: float) -> bool:
        """Whether the next batch may be processed."""
        return now >= self._rest_until or not self._others_busy()


class ThrottledSource:
    """A source that is ready only when `throttle` is."""

    def __init__(self, source: Source, throttle: Throttle, clock: Callable[[], float]) -> None:
        self._throttle, self._clock = throttle, clock
        self.poll, self.forget = source.poll, source.forget

    @property
    def ready(self) -> bool:
        return self._throttle.ready(self._clock())

    def encoded(self, seconds: float) -> None:
        self._throttle.worked(seconds, self._clock())


class BackfillingSource:
    """A source that backfills the assigned partitions before it polls another one.

    A poll makes one transaction of the backfill and returns no records, until all are complete.
    """

    def __init__(
        self,
        source: Source,
        backfill: Backfill,
        shared: Shared,
    ) -> None:
        self._source, self._backfill, self._shared = source, backfill, shared
        self.encoded, self.forget = source.encoded, backfill.forget

    @property
    def ready(self) -> bool:
        return self._source.ready

    def poll(self, limit: int, *, wait_s: float) -> list[Message]:
        if self._backfill.busy:
            self._step()
            return []
        messages = self._source.poll(limit, wait_s=wait_s)
        # Polled with a new assignment: read again after the backfill.
        return [] if self._backfill.busy else messages

    def _step(self) -> None:
        shared, began = self._shared, self._shared.clock()
        try:
            done = self._backfill.step(shared.records, shared.sink, shared.topics)
        except NOT_PUBLISHED as error:
            self._backfill.forget()
            shared.recovery.begin(error)
            return
        shared.progress.moved()
        if done:
            shared.recovery.committed()
            shared.failpoint("after-chunk")
            self._source.encoded(shared.clock() - began)


class Intake:
    """Polls a source, within the bounds of what may be in flight, and after a recovery only.

    Used by the worker's loop alone.
    """

    def __init__(self, shared: Shared, source: Source) -> None:
        self._shared, self._source = shared, source
        self._max_records = shared.settings.worker.inflight_records
        self._poll_records = max(POLL_RECORDS, self._max_records // POLL_SHARE)
        self._max_bytes = shared.settings.worker.inflight_bytes
        self._last_poll = self._last_lag = shared.clock()

    def receive(self, now: float) -> list[Message]:
        """As many records as there is room for. Rebalance callbacks run in here.

        Args:
            now: monotonic seconds.
        """
        self._report_lag(now)
        if not self._shared.recovery.step():
            self._rest(now)
            return []
        shared, ledger = self._shared, self._shared.ledger
        room = self._in_flight() - len(ledger)
        # Without room, those in preparation are all that can fill a micro-batch.
        shared.queue.backlog = room <= 0 and shared.preparation.next is not None
        if room <= 0 or ledger.nbytes >= self._max_bytes:
            self._wait_for_room()
            self._serve_callbacks(now)
            return []
        if not self._source.ready:
            self._shared.progress.moved()
            self._rest(now)
            return []
        self._last_poll = now
        limit = min(room, self._poll_records)
        working = shared.at_work or shared.sink.future is not None
        wait_s = PATIENCE_S if working else self._patience(now)
        messages = self._source.poll(limit, wait_s=wait_s)
        if shared.recovery.pending:  # begun by a callback of this poll: they are read again
            return []
        shared.queue.backlog = len(messages) == limit
        if working and not messages:
            self._wait_for_work(now)
        return messages

    def _in_flight(self) -> int:
        """How many records may be polled and not committed."""
        if self._shared.latency is None:
            return self._max_records
        return min(self._max_records, STAGES * self._shared.queue.records)

    def _report_lag(self, now: float) -> None:
        if now - self._last_lag > LAG_EVERY_S:
            self._last_lag = now
            self._shared.metrics.lag(lags := self._shared.records.lag())
            waiting = sum(lags.values())
            self._shared.progress.note_lag(waiting + len(self._shared.ledger))
            if self._shared.latency is not None:
                self._check(self._shared.latency, waiting)

    def _check(self, latency: LatencyTarget, waiting: int) -> None:
        """Report whether the latency target is kept."""
        shared = self._shared
        why = latency.missed(waiting, shared.queue.record_s)
        latency.report(why, generation=shared.generation)
        shared.metrics.latency(latency.target_s, latency.p99_s(), why)

    def _patience(self, now: float) -> float:
        """The timeout of the next poll, in seconds."""
        due = self._shared.queue.due_in(now)
        return 0.1 if due is None else min(0.1, due)

    def _rest(self, now: float) -> None:
        """Pause shortly; rebalance callbacks are still served."""
        self._serve_callbacks(now)
        time.sleep(PAUSE_S)

    def _serve_callbacks(self, now: float) -> None:
        if now - self._last_poll > CALLBACKS_EVERY_S:
            self._last_poll = now
            self._shared.records.idle_poll()

    def _wait_for_work(self, now: float) -> None:
        """Wait until a thread has ended its work, a batch is due or records may have come."""
        rest_s = min(MAX_PATIENCE_S, max(PATIENCE_S, self._shared.queue.took_s / 100))
        due = self._shared.queue.due_in(now)
        self._wait_for_room(rest_s if due is None else min(rest_s, max(PATIENCE_S, due)))

    def _wait_for_room(self, within_s: float = 0.01) -> None:
        shared = self._shared
        futures: list[Future | None] = [*shared.queue.futures]
        futures += [shared.sink.future, shared.preparation.next]
        waiting = [future for future in futures if future is not None]
        if waiting:
            wait(waiting, timeout=within_s, return_when="FIRST_COMPLETED")
        else:  # all records wait for the micro-batch to close
            time.sleep(PATIENCE_S)


def source_for(shared: Shared, *, throttle: Throttle | None, backfill: Backfill | None) -> Source:
    """The plain source, wrapped for a generation that is built."""
    source: Source = PlainSource(shared.records)
    if throttle is not None:
        source = ThrottledSource(source, throttle, shared.clock)
    if backfill is not None:
        source = BackfillingSource(source, backfill, shared)
    return source
