"""Step 4 of the worker: micro-batches, encoded on the device threads.

`braid.stream.worker.micro_batches` closes the batches. At most IN_FLIGHT of them are encoded, so
that under load those that wait become full: while the device is at work and there are more records
to come at once, a batch leaves only when it is full. A latency target
(`braid.stream.worker.latency`) sets size and wait. The clock is passed in.

An exception of `encode` has one of three causes: a record, the size of the batch, or the model and
its device. A failed batch is bisected until the record at fault is alone
(`braid.stream.worker.bisection`). A record becomes a dead letter only if the model has encoded
another batch between its two failures alone, or passes its golden batch now. A model or device that
fails on the golden batch fails on every record, and the worker stops.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace

from braid.encoders.embedder import DeviceThreads
from braid.encoders.types import Embedding, Model, Prepared

from ..errors import BadRecord, WorkerError, bad_record, plain
from ..failpoints import Failpoints
from ..liveness.watchdog import dump_and_exit
from ..monitoring.metrics import GenerationMetrics
from ..monitoring.steps import Steps
from ..settings import Settings
from .bisection import Bisection, Budget, Piece, check_golden, finite, out_of_memory
from .canary_shadow import CanaryShadow, ShadowResult, active_results, encode_both
from .in_flight import Item, model_of, prepared_of, trace_step
from .latency import LatencyTarget
from .micro_batches import MicroBatcher as MicroBatcher

log = logging.getLogger(__name__)

CLOSE_WITHIN_S = 5.0
IN_FLIGHT = 2
"""Batches that are encoded or wait for the device, so that it has work while results are taken."""
SHORTEST_S = 1e-6  # of a record, by a clock that stands still
LOOK_AHEAD_S = 5.0
"""Of encoding, in a sorted window: records of a backlog are committed so much later at most."""


@dataclass(slots=True, eq=False)
class Batch:
    """One micro-batch on the device, with its model.

    Attributes:
        began: when a device thread took it, in monotonic seconds; None: it is queued.
        took_s: seconds on the device, once it has ended.
        dropped: its records are forgotten; it holds its place on the device until it has ended.
    """

    piece: Piece
    model: Model
    encoding: Future[list[Embedding | None]] | None = None
    began: float | None = None
    took_s: float = 0.0
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """The result of one device call.

    Attributes:
        made: the records with an embedding.
        condemned: a record that failed alone, with the reason.
        took_s: seconds on the device.
        began: when it began, in monotonic seconds.
    """

    model: Model
    made: Sequence[tuple[Item, Embedding]]
    condemned: tuple[Item, BadRecord] | None
    took_s: float
    began: float

    def trace(self) -> None:
        """Add the step to the spans of its records."""
        records, ended = [item for item, _ in self.made], self.began + self.took_s
        trace_step(
            records, "encode", self.began, ended, model=self.model.name, records=len(records)
        )


class EncodeQueue:
    """Micro-batches, the device threads, and the pieces of batches that failed.

    Used by the worker's thread.

    Args:
        lanes: device threads.
        clock: monotonic seconds.
        steps: None: the time is not measured.
        target: of the time from poll to publication; None: there is none.

    Attributes:
        backlog: whether there are more records to come at once.
        shadow: the running canary; None: none. Set by any thread.
        took_s: seconds that the last batch was on the device.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        lanes: int,
        metrics: GenerationMetrics,
        failpoint: Failpoints,
        clock: Callable[[], float],
        steps: Steps | None = None,
        target: LatencyTarget | None = None,
    ) -> None:
        self._steps, self._target, self.backlog = steps, target, False
        budget = self._full = Budget(
            records=settings.batch.records,
            tokens=settings.batch.tokens,
            pixels=settings.batch.pixels,
            seconds=settings.batch.seconds,
        )
        self._timeout_s = settings.worker.encode_timeout_s
        self._metrics = metrics
        self._failpoint = failpoint
        self._clock = clock
        self._wait_s = settings.batch.wait_s
        self._batcher = MicroBatcher[Item](budget, max_wait=self._wait_s)
        self._bisection = Bisection(budget, clock=clock)
        # The other half is prepared while a window is encoded.
        self._max_window = settings.worker.inflight_records // 2
        self._lanes, self._each_s = lanes, math.inf  # seconds of a device thread for a record
        self._device = DeviceThreads(lanes)
        self._running: list[Batch] = []
        self.took_s = 0.0
        self.shadow: CanaryShadow | None = None
        self._passes = 0  # calls of the device that did not raise; under the lock
        self._lock = threading.Lock()
        self._logged: set[type[BaseException]] = set()

    @property
    def busy(self) -> bool:
        """Whether records are on the device, or a piece of a failed batch waits for it."""
        return any(not batch.dropped for batch in self._running) or len(self._bisection) > 0

    @property
    def futures(self) -> list[Future[list[Embedding | None]]]:
        """Of what is on the device."""
        return [batch.encoding for batch in self._running if batch.encoding is not None]

    @property
    def waiting(self) -> int:
        """Prepared records that are in no micro-batch yet."""
        return len(self._batcher)

    @property
    def encoding(self) -> int:
        """Records on the device, or in parts of failed batches."""
        running = (batch.piece for batch in list(self._running) if not batch.dropped)
        return self._bisection.records + sum(len(piece.items) for piece in running)

    def add(self, item: Item) -> None:
        """Queue a prepared record for the next micro-batch."""
        prepared = prepared_of(item)
        self._batcher.add(item, prepared.cost, since=item.since, kind=prepared.preprocessing)

    def due_in(self, now: float) -> float | None:
        """Seconds until the oldest record closes its batch; None when nothing waits."""
        return self._batcher.due_in(now)

    @property
    def records(self) -> int:
        """How many records the next micro-batch may hold."""
        if self._target is None:
            return self._full.records
        return self._target.records(self._bisection.seconds, self._full.records)

    @property
    def record_s(self) -> float:
        """Seconds that a record takes in a full micro-batch."""
        records = self.records
        return self._bisection.seconds(records) / records / min(self._lanes, IN_FLIGHT)

    def submit(self, model: Model) -> None:
        """Submit as many batches as the device takes; parts of failed batches first."""
        if self._target is None:
            encodable = LOOK_AHEAD_S * self._lanes / self._each_s
            self._batcher.window = int(min(self._max_window, encodable))
        while len(self._running) < IN_FLIGHT and (piece := self._next()) is not None:
            prepared = [prepared_of(item) for item in piece.items]
            alike = model.preprocessing == prepared[0].preprocessing
            batch = Batch(piece, model if alike else model_of(piece.items[0]))
            shadow_results = active_results(piece.items, self.shadow, batch.model)
            batch.encoding = self._device.submit(self._encode, batch, prepared, shadow_results)
            self._running.append(batch)
            if self._steps is not None:
                since = min(item.since for item in piece.items)
                self._steps.waited("collect wait", since, records=len(piece.items))

    def finished(self) -> Iterator[Encoded]:
        """Results of finished device calls.

        Ends the process if a call exceeds its time limit.

        Raises:
            WorkerError: the model fails on its own golden batch.
        """
        for batch in list(self._running):
            assert batch.encoding is not None
            if batch.encoding.done():
                self._running.remove(batch)
                if not batch.dropped:
                    yield self._outcome(batch, batch.encoding)
            else:
                self._bound(batch)

    def wait(self, timeout: float) -> None:
        """Wait until what is on the device has ended, `timeout` seconds at most."""
        wait(self.futures, timeout=timeout)

    def clear(self) -> None:
        """Forget all records; results of the device are dropped."""
        self._batcher.clear()
        self._bisection.clear()
        for batch in self._running:
            batch.dropped = True

    def close(self) -> None:
        """End the device threads; a hanging one is abandoned."""
        if not self._device.close(timeout=CLOSE_WITHIN_S):
            log.warning("a device thread is still at work after %g s", CLOSE_WITHIN_S)

    def _next(self) -> Piece | None:
        piece = self._bisection.take()
        if piece is not None:
            return piece
        budget = self._bisection.budget()
        if self._target is not None:
            budget = replace(budget, records=min(budget.records, self.records))
        self._batcher.limit(budget, max_wait=self._max_wait())
        items = self._batcher.take(self._clock())
        return None if items is None else Piece(items, self._bisection.share, whole=True)

    def _max_wait(self) -> float:
        """How long the oldest record of a micro-batch waits for others."""
        busy = any(not batch.dropped for batch in self._running)
        if self._target is not None:
            return self._target.wait_s(busy=busy)
        return math.inf if busy and self.backlog else self._wait_s

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
                self.add(item)
        else:
            self._metrics.batch(len(piece.items), took_s)
            self.took_s, self._each_s = took_s, max(SHORTEST_S, took_s / len(piece.items))
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
        return Encoded(batch.model, made, condemned, took_s, batch.began or 0.0)

    def _encode(
        self, batch: Batch, prepared: list[Prepared], shadow_results: list[ShadowResult]
    ) -> list[Embedding | None]:
        """On a device thread: embeddings in order, None for one that is not finite."""
        if batch.dropped:
            return []
        began = time.monotonic()
        batch.began = self._clock()
        try:
            self._failpoint("before-encode")
            embeddings = encode_both(batch.model, prepared, shadow_results)
            if len(embeddings) != len(prepared):
                raise ValueError(f"{len(embeddings)} embeddings of {len(prepared)} records")
            made = finite(embeddings)
            if not all(embedding.cached for embedding in embeddings):  # else it proves nothing
                with self._lock:
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
            if self._steps is not None:
                self._steps.took("encode batch", began, records=len(prepared))

    def _bound(self, batch: Batch) -> None:
        if batch.began is not None and self._clock() - batch.began > self._timeout_s:
            dump_and_exit(
                f"a batch of {len(batch.piece.items)} records has been on the device for more than "
                f"{self._timeout_s:g} s (BRAID_WORKER__ENCODE_TIMEOUT_S), model {batch.model.name}"
            )

    def _log(self, batch: Batch, error: Exception) -> None:
        """Log a failed batch; the stack only once for each type of error, its text at debug only:
        it may quote a record."""
        kind = type(error)
        stack = (
            "" if kind in self._logged else "\n" + "".join(traceback.format_tb(error.__traceback__))
        )
        log.log(
            logging.WARNING if stack else logging.DEBUG,
            "model %s failed on a batch of %d records, which is cut in halves: %s%s",
            batch.model.name,
            len(batch.piece.items),
            kind.__name__,
            stack.rstrip(),
        )
        self._logged.add(kind)
        log.debug("the error of the batch: %s", plain(error))
