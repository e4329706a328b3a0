"""EndTxn that is lost, repeated or late: with the defence nothing of an aborted transaction shows.

librdkafka sends an EndTxn again when the connection breaks before its answer. The first one may
reach the broker much later, in the middle of the next transaction of the same producer epoch, and
commits what that one goes on to abort. `LATE_END_TRIES=200` makes 200 tries instead of 16.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException

from braid.stream.errors import PublishRefused
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.client import Output, replay
from braid.stream.kafka.sink import TransactionalSink
from braid.stream.settings import Settings
from tests.conftest import Topics
from tests.kafka_proxy import END_TXN, Connection, KafkaProxy, Request

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]

TRIES = int(os.environ.get("LATE_END_TRIES", "16"))
AT_ONCE = 4
LIMIT = 1000  # bytes of a message


class Undefended(TransactionalSink):
    """The negative control: aborts, and goes on with the same producer and epoch."""

    def _retire(self) -> None:
        if self._producer is not None:
            with contextlib.suppress(KafkaException):  # where no transaction is open
                self._producer.abort_transaction(10.0)


class LateEnd:
    """A proxy that takes the next EndTxn off the wire, breaks its connection, and keeps it."""

    def __init__(self, bootstrap: str, *, lost: bool) -> None:
        self.proxy = KafkaProxy(bootstrap, on_request=self._look)
        self.armed = False
        self._lost = lost
        self._held: bytes | None = None

    async def _look(self, connection: Connection, request: Request) -> bool:
        if request.api_key != END_TXN or not self.armed:
            return True
        self.armed = False
        self._held = request.frame
        if not self._lost:  # it arrives, its answer is lost, and a copy of it arrives again later
            await self.proxy.inject(request.frame)
        connection.reset()
        return False

    def deliver(self) -> None:
        """Now the kept one reaches the broker."""
        held, self._held = self._held, None
        if held is not None:
            self.proxy._call(self.proxy.inject(held))


def visible(
    settings: Settings,
    topics: Topics,
    kafka: str,
    kind: type[TransactionalSink],
    tries: int,
    *,
    lost: bool,
) -> tuple[set[bytes | None], set[bytes | None]]:
    """What a reader sees after `tries` of two transactions each, and what was committed."""
    topic = topics.create("ends", partitions=AT_ONCE, max_message_bytes=str(LIMIT))
    reader = Consumer({"bootstrap.servers": kafka, "group.id": topic})
    lease = reader.consumer_group_metadata()

    def attempts(partition: int) -> list[bytes]:
        late, committed = LateEnd(kafka, lost=lost), []
        own = settings.replace(kafka={"bootstrap": late.proxy.address})
        sink = kind(
            own,
            transactional_id=f"{topic}-{partition}",
            group=own.group(own.generation),
            source=topic,
            topics=[topic],
        )

        def output(value: bytes) -> Output:
            return Output(topic=topic, partition=partition, key=b"k", value=value)

        def aborted(number: int) -> Iterator[Output]:
            yield output(b"aborted %d %d" % (partition, number))
            assert sink._producer is not None
            sink._producer.flush(10)
            late.deliver()
            yield output(random.randbytes(2 * LIMIT))  # which the broker refuses

        for number in range(partition, tries, AT_ONCE):
            value = b"committed %d %d" % (partition, number)
            late.armed = True
            with contextlib.suppress(PublishRefused):
                sink.publish([output(value)], offsets={partition: 1}, lease=lease)
                committed.append(value)
            late.armed = False
            with contextlib.suppress(PublishRefused):
                sink.publish(aborted(number), offsets={partition: 1}, lease=lease)
        sink.close()
        late.proxy.close()
        return committed

    with ThreadPoolExecutor(AT_ONCE) as threads:
        committed = {value for own in threads.map(attempts, range(AT_ONCE)) for value in own}
    reader.close()
    ends = Admin(settings).ends(topic, AT_ONCE)
    stop_at = {number: end for number, (_, end) in ends.items()}
    return {message.value for message in replay(settings, topic, stop_at=stop_at)}, set(committed)


@pytest.fixture
def settings(kafka: str, tmp_path: Path) -> Settings:
    return Settings(kafka={"bootstrap": kafka, "partitions": AT_ONCE}, home=tmp_path)


@pytest.mark.parametrize("lost", [True, False], ids=["late", "repeated"])
def test_a_late_end_ends_no_other_transaction(
    settings: Settings, topics: Topics, kafka: str, lost: bool
) -> None:
    seen, committed = visible(settings, topics, kafka, TransactionalSink, TRIES, lost=lost)
    assert committed
    assert seen == committed


def test_control_the_same_epoch_lets_a_late_end_commit_what_was_aborted(
    settings: Settings, topics: Topics, kafka: str
) -> None:
    seen, _ = visible(settings, topics, kafka, Undefended, AT_ONCE, lost=True)
    assert any((value or b"").startswith(b"aborted") for value in seen)
