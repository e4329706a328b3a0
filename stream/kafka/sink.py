"""The transactional producer: outputs and consumed offsets in one transaction.

A transaction whose end is in doubt must not be followed by another one of the same producer epoch:
a delayed EndTxn would end the next transaction (librdkafka speaks no KIP-890, where each
transaction has its own epoch). So `TransactionalSink` discards a producer after each end that
failed, was refused, took too long or may have been sent twice, and `open` makes a new one:
`init_transactions` raises the epoch of the transactional id after the broker has completed or
aborted the last transaction. If the broker lost its end markers, `open` writes them
(`braid.stream.kafka.hanging`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from ..errors import BrokerError, PublishRefused, StaleLease, Unreachable
from ..settings import Settings
from . import hanging
from .client import (
    FENCED,
    MAX_MESSAGE_BYTES,
    PARTITIONER,
    PERMANENT,
    Output,
    create,
    mapped,
)
from .transactions import Lease

log = logging.getLogger(__name__)
R = TypeVar("R")

# The epoch of a member (KIP-848) had changed; the broker maps the last two to the first.
STALE = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
}

# librdkafka retries an unanswered request after retry.backoff.ms less 20 %, at least 500 ms for
# TxnOffsetCommit. A faster answer belongs to a request that was sent once.
RETRY_BACKOFF_S = 1.0
DOUBTFUL_S = 0.4


class TransactionalSink:
    """Publishes transactions under one transactional id. Used by one thread at a time.

    Args:
        transactional_id: stable per worker slot. Opening a second sink with the same id fences the
            first, and completes or aborts its open transaction.
        group: whose offsets it commits.
        topics: its output topics that are read committed.
        source: the topic whose offsets it commits; by default `records`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        transactional_id: str,
        group: str,
        topics: Sequence[str],
        source: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._id = transactional_id
        self._source, self._group = source or settings.topic("records"), group
        self._topics = list(topics)
        self._settled = False  # whether the last transaction is known to be committed
        self._bound = settings.worker.publish_timeout_s
        self._clock = clock
        self._producer: Producer | None = None
        self._config: dict[str, Any] = {
            # The Python client sets an exception for a fatal error inside `flush`, and would then
            # call the logger with it set: a SystemError instead of the error.
            "logger": None,
            "transactional.id": transactional_id,
            "transaction.timeout.ms": int(settings.kafka.transaction_timeout_s * 1000),
            "delivery.timeout.ms": int(settings.kafka.transaction_timeout_s * 1000),
            "partitioner": PARTITIONER,
            "linger.ms": 1,
            # The join and replays publish to `records`, which the broker keeps uncompressed.
            "compression.type": settings.kafka.compression if source is None else "none",
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "queue.buffering.max.kbytes": 256 * 1024,
            "retry.backoff.ms": int(RETRY_BACKOFF_S * 1000),
        }

    def open(self, *, doubted: bool = False) -> None:
        """Make a producer with a new epoch, unless there is one whose last outcome is known.

        Afterwards every earlier transaction of this id is committed or aborted.

        Args:
            doubted: whether end markers of the last one may be lost though it was committed.

        Raises:
            Unreachable: no answer within worker.publish_timeout_s.
            Fenced: another producer of this id was opened meanwhile.
        """
        if doubted:
            self._retire()
            self._settled = False
        if self._producer is not None:
            return
        producer = create(Producer, self._settings, self._config)
        try:
            self._until_done("opening transactions", producer.init_transactions, self._deadline())
            if not self._settled:
                self._end_hanging(producer, self._deadline())
                self._settled = True
        except KafkaException as error:
            _discard(producer)
            needs = f"Write on transactional-id {self._id}"
            raise mapped(error, "opening transactions", needs=needs) from error
        except BrokerError:
            _discard(producer)
            raise
        self._producer = producer

    def publish(
        self,
        outputs: Iterable[Output],
        *,
        offsets: Mapping[int, int],
        lease: object,
        starts: Mapping[int, int] | None = None,
        metadata: str = "",
    ) -> None:
        """Publish outputs and commit `offsets` (partition -> next offset), atomically.

        `metadata` is stored with each offset, `starts` are the first covered offsets.

        Raises:
            StaleLease: not committed; see there.
            PublishRefused: aborted, or the outcome is unknown until the next `open`. Read the
                records again from the committed offsets.
            Fenced: the broker refused the producer's epoch, though the transaction was short.
            ConfigError, BrokerError: a retry does not help.
            Unreachable: there was no open producer, and none could be opened.
        """
        self.open()
        producer, began = self._producer, self._clock()
        assert producer is not None
        deadline = began + self._bound
        try:
            producer.begin_transaction()
            self._settled = False
            for output in hanging.named(outputs, self._id, offsets, starts or {}):
                self._produce(producer, output, deadline)
            self._flush(producer, deadline)
            sending = self._clock()
            positions = [
                TopicPartition(self._source, number, next_, metadata)
                for number, next_ in offsets.items()
            ]
            held = lease.metadata if isinstance(lease, Lease) else lease
            if held is None:
                raise PublishRefused("the partitions were taken away meanwhile")
            self._until_done(
                "sending offsets",
                lambda left: producer.send_offsets_to_transaction(positions, held, left),
                deadline,
            )
            sent = self._clock()
            self._until_done("committing", producer.commit_transaction, deadline)
            self._settled = True
            doubtful = max(sent - sending, self._clock() - sent) > DOUBTFUL_S
        except KafkaException as error:
            self._retire()
            if isinstance(lease, Lease) and lease.renewed and error.args[0].code() in STALE:
                raise StaleLease(f"{error.args[0].name()}: {error.args[0].str()}") from error
            raise self._refused(error, self._clock() - began) from error
        except Unreachable as error:
            self._retire()
            raise PublishRefused(str(error)) from error
        except BaseException:
            self._retire()
            raise
        if doubtful:
            log.debug("a transaction ended slowly: a new producer before the next one")
            self._retire()

    def _end_hanging(self, producer: Producer, deadline: float) -> None:
        """Write the end markers of the last transaction that the broker lost."""
        ending = hanging.ending(
            self._settings, self._id, self._topics, group=self._group, source=self._source
        )
        if ending is None:
            return
        producer.begin_transaction()
        for message in ending.messages:
            self._produce(producer, message, deadline)
        self._flush(producer, deadline)
        positions = [TopicPartition(self._source, *offset) for offset in ending.offsets.items()]
        if positions:
            self._until_done(
                "sending offsets",
                lambda left: producer.send_offsets_to_transaction(positions, ending.lease, left),
                deadline,
            )
        end = producer.commit_transaction if ending.commit else producer.abort_transaction
        self._until_done("ending a transaction", end, deadline)

    def close(self) -> None:
        """Discard the producer; between publishes no transaction is open."""
        self._retire()

    def _retire(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            _discard(producer)

    def _deadline(self) -> float:
        return self._clock() + self._bound

    def _produce(self, producer: Producer, output: Output, deadline: float) -> None:
        while True:
            try:
                producer.produce(
                    output.topic,
                    partition=output.partition,
                    key=output.key,
                    value=output.value,
                    headers=list(output.headers) if output.headers else None,
                )
                return
            except BufferError:
                if self._clock() > deadline:
                    raise self._late("producing") from None
                producer.poll(0.1)

    def _flush(self, producer: Producer, deadline: float) -> None:
        if producer.flush(max(0.1, deadline - self._clock())):
            raise self._late("producing")

    def _until_done(self, doing: str, call: Callable[[float], R], deadline: float) -> R:
        while True:
            left = deadline - self._clock()
            try:
                return call(max(0.1, left))
            except KafkaException as error:
                cause = error.args[0]
                if cause.fatal() or not cause.retriable():
                    raise
                if left <= 0:
                    raise self._late(f"{doing} ({cause.name()})") from error
                time.sleep(0.05)

    def _late(self, doing: str) -> Unreachable:
        return Unreachable(
            f"{doing}: no answer from {self._settings.kafka.bootstrap} within {self._bound:g} s "
            "(worker.publish_timeout_s)"
        )

    def _refused(self, error: KafkaException, took_s: float) -> Exception:
        """The exception for a failed transaction: whether a new producer helps."""
        cause = error.args[0]
        if cause.code() in FENCED:
            if took_s < self._settings.kafka.transaction_timeout_s:
                return mapped(error, "publishing")
            return PublishRefused(
                f"open for {took_s:.1f} s, longer than kafka.transaction_timeout_s: "
                "the broker aborted it"
            )
        if cause.code() in PERMANENT:
            return mapped(error, "publishing")
        return PublishRefused(f"{cause.name()}: {cause.str()}")


def _discard(producer: Producer) -> None:
    """Destroy a producer on a thread of its own, since this may wait for its connections."""

    def destroy(gone: list[Producer]) -> None:
        with contextlib.suppress(KafkaException):  # a fenced client raises here, too
            gone[0].purge(blocking=False)
        gone.clear()

    threading.Thread(target=destroy, args=([producer],), name="discard", daemon=True).start()
