"""What the parts of one worker share: the records in flight, and the connections to Kafka."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..failpoints import Failpoints
from ..kafka.sink import TransactionalSink
from ..kafka.transactions import RecordSource
from ..liveness.burst import Burst
from ..liveness.progress import Progress
from ..monitoring.metrics import WorkerMetrics
from ..monitoring.steps import Steps
from ..monitoring.trace import trace_of
from ..settings import Settings
from ..tracing import tracing_of
from .batcher import EncodeQueue
from .bounded_sink import BoundedSink
from .in_flight import Outcome
from .latency import LatencyTarget
from .offsets import OffsetLedger
from .outputs import OutputTopics
from .preparation import Preparation
from .recovery import Recovery


class RebalanceListener(Protocol):
    """The callbacks of the consumer group; see RecordSource."""

    def on_assigned(self, partitions: list[int]) -> None: ...
    def on_revoked(self, partitions: list[int]) -> None: ...
    def on_lost(self, partitions: list[int]) -> None: ...


class Shared:
    """Used by the worker's loop.

    Args:
        generation: names its group and the topic of its vectors.
        transactional_id: stable per worker slot.
        lanes: of the model; see `braid.encoders.types.Model`.

    Attributes:
        latency: the target of `batch.latency_ms`; None: there is none.
        ledger: every record in flight.
        preparation, queue: those of them that are prepared or encoded.
        records, sink: the member of the consumer group, and the transactional producer.
        tracing: OpenTelemetry's; None: off.
        recovery: of both, after a failed transaction.
        listener: must be set before the first poll.
        clock: monotonic seconds.
    """

    listener: RebalanceListener

    def __init__(
        self,
        settings: Settings,
        generation: str,
        transactional_id: str,
        *,
        lanes: int,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
    ) -> None:
        group = settings.group(generation)
        self.generation = generation
        self.settings, self.clock = settings, clock
        self.metrics = metrics.of(generation)
        self.tracing = tracing_of(settings, "braid-embed")
        self.steps = Steps(self.metrics, trace_of(settings))
        self.topics = OutputTopics(settings, generation)
        self.progress = Progress(clock)
        self.failpoint = Failpoints.from_environment()
        self.burst = Burst(settings)
        self.ledger = OffsetLedger[Outcome]()
        self.preparation = Preparation(settings, clock=clock, steps=self.steps)
        latency_ms = settings.batch.latency_ms
        self.latency = None if latency_ms is None else LatencyTarget(latency_ms / 1000, clock=clock)
        self.queue = EncodeQueue(
            settings,
            lanes=lanes,
            metrics=self.metrics,
            failpoint=self.failpoint,
            clock=clock,
            steps=self.steps,
            target=self.latency,
        )
        self.records = RecordSource(
            settings,
            group=group,
            on_assigned=lambda partitions: self.listener.on_assigned(partitions),
            on_revoked=lambda partitions: self.listener.on_revoked(partitions),
            on_lost=lambda partitions: self.listener.on_lost(partitions),
            incremental=True,
        )
        self.sink = BoundedSink(
            lambda: TransactionalSink(
                settings,
                transactional_id=transactional_id,
                group=group,
                topics=self.topics.committed,
                clock=clock,
            ),
            bound_s=settings.worker.publish_timeout_s,
            clock=clock,
            steps=self.steps,
        )
        self.metrics.watch_queue(lambda: self.queued)
        self.recovery = Recovery(
            self.sink, self.records.rewind, address=settings.kafka.bootstrap, clock=clock
        )

    @property
    def queued(self) -> dict[str, int]:
        """How many records are in flight, by state. Thread-safe, and then a moment out of step."""
        preparing, collecting = len(self.preparation), self.queue.waiting
        encoding = self.queue.encoding
        finished = max(0, len(self.ledger) - preparing - collecting - encoding)
        return {
            "preparing": preparing,
            "collecting": collecting,
            "encoding": encoding,
            "finished": finished,
        }

    @property
    def at_work(self) -> bool:
        """Whether a record is being prepared or encoded."""
        return self.preparation.next is not None or self.queue.busy

    def drop(self) -> None:
        """Forget every record in flight; results of the threads are dropped."""
        self.ledger.drop()
        self.preparation.clear()
        self.queue.clear()
