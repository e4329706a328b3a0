"""What the parts of one worker share: the records in flight, and the connections to Kafka."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..failpoints import Failpoints
from ..kafka.client import Output
from ..kafka.sink import TransactionalSink
from ..kafka.transactions import RecordSource
from ..liveness.progress import Progress
from ..monitoring.metrics import WorkerMetrics
from ..settings import Settings
from .batcher import EncodeQueue
from .bounded_sink import BoundedSink
from .burst import Burst
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

    Attributes:
        ledger: every record in flight.
        preparation, queue: those of them that are prepared or encoded.
        records, sink: the member of the consumer group, and the transactional producer.
        recovery: of both, after a failed transaction.
        listener: must be set before the first poll.
        clock: monotonic seconds.
    """

    listener: RebalanceListener

    def __init__(
        self,
        settings: Settings,
        generation: str,
        *,
        transactional_id: str,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
    ) -> None:
        group = settings.group(generation)
        self.settings, self.clock = settings, clock
        self.metrics = metrics.of(generation)
        self.topics = OutputTopics(settings, generation)
        self.progress = Progress(clock)
        self.failpoint = Failpoints.from_environment()
        self.burst = Burst(settings)
        self.ledger = OffsetLedger[list[Output]]()
        self.preparation = Preparation(settings, clock=clock)
        self.queue = EncodeQueue(
            settings, metrics=self.metrics, failpoint=self.failpoint, clock=clock
        )
        self.records = RecordSource(
            settings,
            group=group,
            on_assigned=lambda partitions: self.listener.on_assigned(partitions),
            on_revoked=lambda partitions: self.listener.on_revoked(partitions),
            on_lost=lambda partitions: self.listener.on_lost(partitions),
        )
        self.sink = BoundedSink(
            lambda: TransactionalSink(
                settings,
                transactional_id=transactional_id,
                group=group,
                topics=self.topics.committed,
            ),
            bound_s=settings.worker.publish_timeout_s,
            clock=clock,
        )
        self.recovery = Recovery(
            self.sink, self.records.rewind, address=settings.kafka.bootstrap, clock=clock
        )

    @property
    def at_work(self) -> bool:
        """Whether a record is being prepared or encoded."""
        return self.preparation.next is not None or self.queue.busy

    def drop(self) -> None:
        """Forget every record in flight; results of the threads are dropped."""
        self.ledger.drop()
        self.preparation.clear()
        self.queue.clear()
