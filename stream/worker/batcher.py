"""Steps 3 and 4 of the worker: micro-batches, encoded on the device thread.

A batch closes when it is full (a budget of records, tokens, pixels and seconds of sound), when its
*oldest* record has waited long enough, or at a record with another preprocessing, since records are
encoded together only with equal preprocessing. Order is kept. The clock is passed in.

An exception of `encode` has one of three causes: a record, the size of the batch, or the model and
its device. A failed batch is bisected until the record at fault is alone
(`braid.stream.worker.bisection`). A record becomes a dead letter only if the model has encoded
another batch between its two failures alone, or passes its golden batch now. A model or device that
fails on the golden batch fails on every record, and the worker stops.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from braid.encoders.embedder import DeviceThread
from braid.encoders.types import Embedding, Model, Prepared

from ..errors import BadRecord, WorkerError, bad_record
from ..failpoints import Failpoints
from ..liveness.watchdog import dump_and_exit
from ..monitoring.metrics import GenerationMetrics
from ..settings import Settings
from .bisection import Bisection, Budget, Piece, check_golden, finite, out_of_memory
from .canary_shadow import CanaryShadow, ShadowResult, active_results, encode_both
from .in_flight import Item, future_of, model_of

log = logging.getLogger(__name__)

CLOSE_WITHIN_S = 5.0


class Costed(Protocol):
    """What the batcher reads of an item's cost."""

    @property
    def tokens(self) -> int: ...
    @property
    def pixels(self) -> int: ...
    @property
    def seconds(self) -> float: ...


T = TypeVar("T")


@dataclass(slots=True)
class _Waiting(Generic[T]):
    item: T
    cost: Costed
    since: float
    kind: str


class MicroBatcher(Generic[T]):
    """Collects prepared records into micro-batches. Used by one thread.

    Args:
        budget: upper bounds of one batch.
        max_wait: seconds after which the oldest item closes its batch.
    """

    def __init__(self, budget: Budget, *, max_wait: float) -> None:
        self._budget = budget
        self._max_wait = max_wait
        self._waiting: deque[_Waiting[T]] = deque()
        self._fits = 0  # how many of the waiting, from the oldest on, fit one batch
        self._used = [0, 0, 0.0]  # tokens, pixels, seconds of those
        self._oldest = math.inf  # when the longest waiting of those was polled

    def __len__(self) -> int:
        return len(self._waiting)

    def limit(self, budget: Budget) -> None:
        """Close batches by this budget from here on."""
        if budget != self._budget:
            self._budget = budget
            self._restart()
            self._extend()

    def add(self, item: T, cost: Costed, *, since: float, kind: str = "") -> None:
        """Put one item behind the others; `since` is when its record was polled."""
        self._waiting.append(_Waiting(item, cost, since, kind))
        self._extend()

    def take(self, now: float) -> list[T] | None:
        """The next batch if it is full or its oldest item has waited max_wait, else None."""
        if not self._waiting:
            return None
        full = self._fits < len(self._waiting) or self._fits >= self._budget.records
        if not full and now - self._oldest < self._max_wait:
            return None
        batch = [self._waiting.popleft().item for _ in range(self._fits)]
        self._restart()
        self._extend()
        return batch

    def due_in(self, now: float) -> float | None:
        """Seconds until the oldest item closes its batch; None when nothing waits."""
        if not self._waiting:
            return None
        return max(0.0, self._max_wait - (now - self._oldest))

    def clear(self) -> None:
        """Drop all waiting items."""
        self._waiting.clear()
        self._restart()

    def _restart(self) -> None:
        self._fits, self._used, self._oldest = 0, [0, 0, 0.0], math.inf

    def _extend(self) -> None:
        while self._fits < min(len(self._waiting), self._budget.records):
            if self._waiting[self._fits].kind != self._waiting[0].kind:
                return
            cost = self._waiting[self._fits].cost
            used = [
                self._used[0] + cost.tokens,
                self._used[1] + cost.pixels,
                self._used[2] + cost.seconds,
            ]
            over = (
                used[0] > self._budget.tokens
                or used[1] > self._budget.pixels
                or used[2] > self._budget.seconds
            )
            if over and self._fits:
                return
            self._oldest = min(self._oldest, self._waiting[self._fits].since)
            self._fits, self._used = self._fits + 1, used
            if over:
                return


@dataclass(slots=True, eq=False)
class Batch:
    """One micro-batch on the device, with its model.

    Attributes:
        began: when the device thread took it, in monotonic seconds; None: it is queued.
        took_s: seconds on the device, once it has ended.
    """

    piece: Piece
    model: Model
    encoding: Future[list[Embedding | None]] | None = None
    began: float | None = None
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """The result of one device call.

    Attributes:
        made: the records with an embedding.
        condemned: a record that failed alone, with the reason.
        took_s: seconds on the device.
    """

    model: Model
    made: Sequence[tuple[Item, Embedding]]
    condemned: tuple[Item, BadRecord] | None
    took_s: float


class EncodeQueue:
    """Micro-batches, the device thread, and the pieces of batches that failed.

    Used by the worker's thread.

    Args:
        clock: monotonic seconds.

    Attributes:
        shadow: the running canary; None: none. Set by any thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: GenerationMetrics,
        failpoint: Failpoints,
        clock: Callable[[], float],
    ) -> None:
        budget = Budget(
            records=settings.batch.records,
            tokens=settings.batch.tokens,
            pixels=settings.batch.pixels,
            seconds=settings.batch.seconds,
        )
        self._timeout_s = settings.worker.encode_timeout_s
        self._metrics = metrics
        self._failpoint = failpoint
        self._clock = clock
        self._batcher = MicroBatcher[Item](budget, max_wait=settings.batch.wait_s)
        self._bisection = Bisection(budget, clock=clock)
        self._device = DeviceThread()
        self._running: deque[Batch] = deque()
        self.shadow: CanaryShadow | None = None
        self._passes = 0  # calls of the device that did not raise; of its thread
        self._logged: set[type[BaseException]] = set()

    @property
    def busy(self) -> bool:
        """Whether the device has work, or a piece of a failed batch waits for it."""
        return bool(self._running) or len(self._bisection) > 0

    @property
    def futures(self) -> list[Future[list[Embedding | None]]]:
        """Of what is on the device."""
        return [batch.encoding for batch in self._running if batch.encoding is not None]

    def add(self, item: Item, prepared: Prepared) -> None:
        """Queue a prepared record for the next micro-batch."""
        self._batcher.add(item, prepared.cost, since=item.since, kind=prepared.preprocessing)

    def due_in(self, now: float) -> float | None:
        """Seconds until the oldest record closes its batch; None when nothing waits."""
        return self._batcher.due_in(now)

    def submit(self, model: Model) -> None:
        """Submit as many batches as the device takes; parts of failed batches first."""
        self._batcher.limit(self._bisection.budget())
        while not self._device.full and (piece := self._next()) is not None:
            prepared = [future_of(item).result() for item in piece.items]
            alike = model.preprocessing == prepared[0].preprocessing
            batch = Batch(piece, model if alike else model_of(piece.items[0]))
            shadow_results = active_results(piece.items, self.shadow, batch.model)
            batch.encoding = self._device.submit(self._encode, batch, prepared, shadow_results)
            self._running.append(batch)

    def finished(self) -> Iterator[Encoded]:
        """Results of finished device calls, in order.

        Ends the process if a call exceeds its time limit.

        Raises:
            WorkerError: the model fails on its own golden batch.
        """
        while self._running:
            batch = self._running[0]
            assert batch.encoding is not None
            if not batch.encoding.done():
                self._bound(batch)
                return
            self._running.popleft()
            yield self._outcome(batch, batch.encoding)

    def wait(self, timeout: float) -> None:
        """Wait until what is on the device has ended, `timeout` seconds at most."""
        wait(self.futures, timeout=timeout)

    def clear(self) -> None:
        """Forget all records; results of the device are dropped."""
        self._batcher.clear()
        self._bisection.clear()
        self._running.clear()

    def close(self) -> None:
        """End the device thread; a hanging one is abandoned."""
        if not self._device.close(timeout=CLOSE_WITHIN_S):
            log.warning("the device thread is still at work after %g s", CLOSE_WITHIN_S)

    def _next(self) -> Piece | None:
        piece = self._bisection.take()
        if piece is not None:
            return piece
        items = self._batcher.take(self._clock())
        return None if items is None else Piece(items, self._bisection.share, whole=True)

    def _outcome(self, batch: Batch, encoding: Future[list[Embedding | None]]) -> Encoded:
        piece, condemned, took_s = batch.piece, None, batch.took_s
        made: list[tuple[Item, Embedding]] = []
        try:
            embeddings = encoding.result()
        except WorkerError:
            raise
        except Exception as error:  # noqa: BLE001 (any error is bisected)
            self._log(batch, error)
            self._metrics.batch_failed("memory" if out_of_memory(error) else "error")
            if (item := self._bisection.failed(piece, error, took_s)) is not None:
                condemned = item, bad_record(error, stage="encode")
            for item in self._bisection.released():
                self.add(item, future_of(item).result())
        else:
            self._metrics.batch(len(piece.items), took_s)
            for item, embedding in zip(piece.items, embeddings, strict=True):
                if embedding is not None:
                    made.append((item, embedding))
            self._bisection.passed(piece, len(made), took_s)
            self._bisection.suspect(
                [
                    item
                    for item, embedding in zip(piece.items, embeddings, strict=True)
                    if embedding is None
                ]
            )
        return Encoded(batch.model, made, condemned, took_s)

    def _encode(
        self, batch: Batch, prepared: list[Prepared], shadow_results: list[ShadowResult]
    ) -> list[Embedding | None]:
        """On the device thread: embeddings in order, None for one that is not finite."""
        batch.began = self._clock()
        try:
            self._failpoint("before-encode")
            embeddings = encode_both(batch.model, prepared, shadow_results)
            if len(embeddings) != len(prepared):
                raise ValueError(f"{len(embeddings)} embeddings of {len(prepared)} records")
            made = finite(embeddings)
            self._passes += 1
            return made
        except Exception as error:
            # Frees the failed call's device memory before the next call begins.
            traceback.clear_frames(error.__traceback__)
            piece = batch.piece
            if piece.last and piece.passes == self._passes:
                check_golden(batch.model, error)
            piece.passes = self._passes
            raise
        finally:
            batch.took_s = self._clock() - batch.began

    def _bound(self, batch: Batch) -> None:
        if batch.began is not None and self._clock() - batch.began > self._timeout_s:
            dump_and_exit(
                f"a batch of {len(batch.piece.items)} records has been on the device for more than "
                f"{self._timeout_s:g} s (BRAID_WORKER__ENCODE_TIMEOUT_S), model {batch.model.name}"
            )

    def _log(self, batch: Batch, error: Exception) -> None:
        """Log a failed batch; the traceback only once for each type of error."""
        known = type(error) in self._logged
        self._logged.add(type(error))
        log.log(
            logging.DEBUG if known else logging.WARNING,
            "model %s failed on a batch of %d records, which is cut in halves: %s",
            batch.model.name,
            len(batch.piece.items),
            type(error).__name__,
            exc_info=None if known else error,
        )
