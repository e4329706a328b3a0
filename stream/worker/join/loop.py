"""The join's loop: reads `parts`, publishes records, changelog and offsets in one transaction.

Each worker process has one member of the consumer group on `parts`, on a thread of its own. Its
loop is that of the hot path in small: read, merge (`braid.stream.worker.join.table`), and publish
the merged records, dead letters, the changelog `parts-seen` and the consumed offsets in one
transaction under the group's lease. What another member or an earlier process kept of a partition
is read back from the changelog before the partition's first message is taken.

The join never ends the process: what makes a loop fail is counted, appears in the heartbeat's
`problems`, and a new loop starts after a pause.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from ...errors import BrokerError, PublishRefused, Unreachable, WorkerError
from ...failpoints import Failpoints
from ...kafka.client import Output, lone_consumer, mapped
from ...kafka.sink import TransactionalSink
from ...kafka.transactions import RecordSource
from ...liveness.loop_thread import LoopThread
from ...monitoring.metrics import JoinMetrics
from ...settings import MIB, Settings
from ..bounded_sink import BoundedSink
from .table import JoinTable

log = logging.getLogger(__name__)

MAX_REFUSALS = 5  # in a row without one success: not a rebalance, something is broken
MESSAGES = 64  # read at once, and so at most in one transaction
BATCH_BYTES = 32 * MIB  # of outputs; beyond them the transaction is published
TICK_S = 0.5
ATTEMPT_S = 5.0  # of one request while the table is read back
CALLBACKS_EVERY_S = 0.5  # while the changelog is read the group's callbacks are still served
LEAVE_WITHIN_S = 3.0


class JoinLoop:
    """One member of the join's group, from its first assignment until `stop`.

    Args:
        transactional_id: stable per worker slot.
        working: called after each step that went well.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        transactional_id: str,
        metrics: JoinMetrics,
        working: Callable[[], None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._metrics, self._working, self._wall = metrics, working, wall
        self._failpoint = Failpoints.from_environment()
        self._table = JoinTable(settings)
        self._changelog = settings.topic("parts-seen")
        self._restored = False
        self._assignments = 0
        self._next: dict[int, int] = {}  # partition -> next offset on `parts`
        self._read_to_ms: dict[int, int] = {}  # partition -> all parts until then are in the table
        self._refusals = 0
        self._last_tick = 0.0
        self._stopping = threading.Event()
        topic, group = settings.topic("parts"), f"{settings.prefix}braid-join"
        self._sink = BoundedSink(
            lambda: TransactionalSink(
                settings,
                transactional_id=transactional_id,
                source=topic,
                group=group,
                topics=[settings.topic(name) for name in ("parts-seen", "records", "dead-letters")],
            ),
            bound_s=settings.worker.publish_timeout_s,
        )
        self._source = RecordSource(
            settings,
            topic=topic,
            group=group,
            on_assigned=self._on_assigned,
            on_revoked=self._on_gone,
            on_lost=self._on_gone,
        )

    def run(self) -> None:
        """Work until `stop`.

        Raises:
            BrokerError, WorkerError: nothing is lost; a new loop begins at the committed offsets.
        """
        try:
            self._sink.open()
            while not self._stopping.is_set():
                if self._restored and self._source.lease is not None:
                    self._step()
                elif self._source.owned and self._source.lease is not None:
                    self._restored = self._restore()
                else:
                    self._source.idle_poll()
                    self._stopping.wait(0.05)
                self._working()
        finally:
            self._source.close(LEAVE_WITHIN_S)
            self._sink.close()

    def stop(self) -> None:
        """End after the step that runs. May be called from any thread."""
        self._stopping.set()

    def _step(self) -> None:
        """Read, merge, publish; every TICK_S also what the timers and the bound release."""
        messages = self._source.poll(MESSAGES, wait_s=0.1)
        if not self._restored:  # the group's callbacks ran in there
            return

        def merged() -> Iterator[list[Output]]:
            for message in messages:
                now_ms = self._now_ms()
                outputs = self._table.take(message, now_ms)
                self._next[message.partition] = message.offset + 1
                self._read_to(message.partition, min(now_ms, message.ts))
                yield outputs
                yield from self._table.trim(now_ms)

        if not self._publish_all(merged(), {message.partition for message in messages}):
            return
        now_ms = self._now_ms()
        for partition in self._source.at_end:
            self._read_to(partition, now_ms)
        if time.monotonic() - self._last_tick > TICK_S:
            self._last_tick = time.monotonic()
            marks = self._source.take_marks()
            self._next.update(marks)
            self._publish_all(self._table.due(now_ms, self._read_to_ms), set(marks))
            self._measure()

    def _publish_all(self, batches: Iterable[list[Output]], consumed: set[int]) -> bool:
        """Publish outputs as they are made, in transactions of about BATCH_BYTES.

        Args:
            consumed: partitions whose offset is committed even if they have no output.
        """
        outputs: list[Output] = []
        nbytes = 0
        touched = set(consumed)
        for batch in batches:
            outputs += batch
            nbytes += sum(len(output.value or b"") for output in batch)
            touched |= {output.partition for output in batch if output.topic == self._changelog}
            if nbytes > BATCH_BYTES:
                if not self._publish(outputs, touched):
                    return False
                outputs, nbytes, touched = [], 0, set(consumed)
        return self._publish(outputs, touched) if touched else True

    def _publish(self, outputs: list[Output], partitions: set[int]) -> bool:
        """One transaction; False: it was refused, and the table is read back."""
        self._failpoint("join-before-publish")
        offsets = {number: self._next[number] for number in partitions}
        try:
            self._sink.publish(self._through(outputs), offsets=offsets, lease=self._source.lease)
        except PublishRefused as error:
            self._refusals += 1
            log.warning("transaction of the join refused, its parts are read again: %s", error)
            if self._refusals >= MAX_REFUSALS:
                raise WorkerError(f"{self._refusals} refusals in a row: {error}") from error
            self._forget()
            return False
        self._refusals = 0
        self._source.note_committed(offsets)
        self._failpoint("join-after-publish")
        self._metrics.counted(self._table.counts)
        self._table.counts.clear()
        return True

    def _through(self, outputs: Iterable[Output]) -> Iterator[Output]:
        yield from outputs
        self._failpoint("join-in-transaction")

    def _restore(self) -> bool:
        """Read back the table of the owned partitions; False: the assignment changed meanwhile.

        The committed offsets come first: they are settled only when no transaction on them is open
        any more, and so every state that belongs to them is below the changelog's end.
        """
        self._sink.open()  # which commits or aborts earlier transactions
        self._forget()
        began, assignment = time.monotonic(), self._assignments
        owned = list(self._source.owned)
        for position in self._source.committed():
            self._next[position.partition] = max(0, position.offset)
        if not self._read_back(self._changelog_ends(owned), assignment):
            return False
        if not self._rewind(assignment):
            return False
        # What came with the partitions may be more than one worker keeps.
        if not self._publish_all(self._table.trim(self._now_ms()), set()):
            return False
        self._measure()
        log.info(
            "the join has partitions %s: %d ids, %d bytes, read back in %.1f s",
            owned,
            len(self._table),
            self._table.nbytes,
            time.monotonic() - began,
        )
        return True

    def _rewind(self, assignment: int) -> bool:
        """Go to the committed offsets, whatever was polled meanwhile; False: to begin anew.

        The poll that serves the assignment may already return messages, which are not taken.
        """
        deadline = time.monotonic() + self._settings.kafka.broker_timeout_s
        while True:
            try:
                self._source.rewind()
                return assignment == self._assignments
            except BrokerError:  # a partition just assigned cannot be sought in for a moment
                if time.monotonic() > deadline:
                    raise
            self._source.idle_poll()
            if assignment != self._assignments or self._stopping.is_set():
                return False
            time.sleep(0.05)

    def _changelog_ends(self, partitions: list[int]) -> dict[int, int]:
        """The end of each partition, with what open transactions have written."""
        consumer = lone_consumer(self._settings, isolation_level="read_uncommitted")
        try:
            return {number: self._end_of(consumer, number) for number in partitions}
        finally:
            consumer.close()

    def _end_of(self, consumer: Consumer, partition: int) -> int:
        part = TopicPartition(self._changelog, partition)
        deadline = time.monotonic() + self._settings.kafka.broker_timeout_s
        while True:  # a topic just made has no leader for a moment
            try:
                marks = consumer.get_watermark_offsets(part, timeout=ATTEMPT_S)
                if marks is not None:
                    return int(marks[1])
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise mapped(error, f"end of {self._changelog}") from error
            if time.monotonic() > deadline:
                raise Unreachable(f"end of {self._changelog}: no answer from the broker")
            time.sleep(0.1)

    def _read_back(self, ends: Mapping[int, int], assignment: int) -> bool:
        """The changelog up to `ends`, read committed; False: to begin anew.

        A transaction that its owner left open holds the reader back until the broker aborts it.
        """
        left = {number: end for number, end in ends.items() if end > 0}
        reader = lone_consumer(self._settings)
        reader.assign([TopicPartition(self._changelog, n, OFFSET_BEGINNING) for n in left])
        patience_s = (
            self._settings.kafka.transaction_timeout_s + self._settings.kafka.broker_timeout_s
        )
        last = served = time.monotonic()
        try:
            while left:
                raw, now = reader.poll(0.1), time.monotonic()
                if now - served > CALLBACKS_EVERY_S:
                    served = now
                    self._source.idle_poll()
                    if assignment != self._assignments or self._stopping.is_set():
                        return False
                if raw is None:
                    if now - last > patience_s:
                        raise Unreachable(f"{self._changelog}: nothing within {patience_s:g} s")
                    continue
                last = now
                error, partition = raw.error(), raw.partition() or 0
                if error is None:
                    self._table.restore(partition, raw.key() or b"", raw.value())
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise mapped(error, f"reading {self._changelog}")
                if (raw.offset() or 0) + (error is None) >= left.get(partition, 0):
                    left.pop(partition, None)
            return True
        finally:
            reader.close()

    def _forget(self) -> None:
        self._restored = False
        self._table.clear()
        self._next.clear()
        self._read_to_ms.clear()

    def _on_assigned(self, partitions: list[int]) -> None:
        self._assignments += 1
        self._forget()
        self._metrics.assigned(len(partitions))

    def _on_gone(self, partitions: list[int]) -> None:
        """No transaction is open while the group's callbacks run."""
        self._forget()
        self._metrics.assigned(0)

    def _measure(self) -> None:
        table = self._table
        self._metrics.table(
            waiting=table.waiting, released=len(table) - table.waiting, nbytes=table.nbytes
        )

    def _read_to(self, partition: int, at_ms: int) -> None:
        self._read_to_ms[partition] = max(self._read_to_ms.get(partition, 0), at_ms)

    def _now_ms(self) -> int:
        return int(self._wall() * 1000)


class JoinThread(LoopThread[JoinLoop]):
    """Runs the join beside a worker."""

    def __init__(self, settings: Settings, *, slot: str, metrics: JoinMetrics) -> None:
        super().__init__(
            "join",
            lambda working: JoinLoop(
                settings,
                transactional_id=f"{settings.prefix}braid-join-{slot}",
                metrics=metrics,
                working=working,
            ),
            failed=metrics.failed,
        )
