"""The offsets of a group whose broker says that it is not the coordinator, as one that starts does.

librdkafka's admin client ends the process then, by a null pointer (librdkafka#5040).
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from braid.stream.errors import AccessError, Unreachable
from braid.stream.kafka.admin import Admin
from braid.stream.settings import Settings
from tests.conftest import Topics
from tests.kafka_proxy import Connection, KafkaProxy, Request

pytestmark = pytest.mark.kafka

OFFSET_FETCH = 9
NOT_COORDINATOR, GROUP_AUTHORIZATION_FAILED = 16, 30


class Answering:
    """A proxy whose first answers to OffsetFetch carry an error in place of the broker's."""

    def __init__(self, bootstrap: str, error: int, times: int) -> None:
        self.proxy = KafkaProxy(bootstrap, on_request=self._look)
        self.left = times
        self._error = error

    async def _look(self, connection: Connection, request: Request) -> bool:
        if request.api_key != OFFSET_FETCH or not self.left:
            return True
        self.left -= 1
        frame = await self.proxy.inject(request.frame)
        # Version 8 and later end with the group's error code, its tags and those of the answer.
        assert frame[-4:] == b"\0\0\0\0", frame
        frame = frame[:-4] + struct.pack(">h", self._error) + frame[-2:]
        connection.client.write(struct.pack(">i", len(frame)) + frame)
        await connection.client.drain()
        return False


def committed_at(kafka: str, topic: str, group: str, offset: int) -> None:
    with Consumer({"bootstrap.servers": kafka, "group.id": group}) as member:
        member.commit(offsets=[TopicPartition(topic, 1, offset)], asynchronous=False)


def test_offsets_are_asked_for_again(kafka: str, topics: Topics) -> None:
    """In a process of its own, which would end."""
    topic = topics.create("records", partitions=3)
    committed_at(kafka, topic, f"{topic}-group", 7)
    answering = Answering(kafka, NOT_COORDINATOR, 2)
    with answering.proxy as proxy:
        code = (
            "from braid.stream.kafka.admin import Admin\n"
            "from braid.stream.settings import Settings\n"
            f"admin = Admin(Settings(kafka={{'bootstrap': {proxy.address!r}}}))\n"
            f"print(admin.committed('{topic}-group', {topic!r}, 3))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "{1: 7}\n")
    assert answering.left == 0


def test_what_stays_is_an_error_within_the_bound(
    kafka: str, topics: Topics, tmp_path: Path
) -> None:
    topic = topics.create("records", partitions=1)
    with Answering(kafka, NOT_COORDINATOR, 1_000).proxy as proxy:
        settings = Settings(kafka={"bootstrap": proxy.address}, home=tmp_path)
        with pytest.raises(Unreachable, match=f"committed offsets of {topic}-group"):
            Admin(settings, timeout_s=1.5).committed(f"{topic}-group", topic, 1)


def test_a_missing_permission_is_named_at_once(kafka: str, topics: Topics, tmp_path: Path) -> None:
    topic = topics.create("records", partitions=1)
    with Answering(kafka, GROUP_AUTHORIZATION_FAILED, 1_000).proxy as proxy:
        settings = Settings(kafka={"bootstrap": proxy.address}, home=tmp_path)
        with pytest.raises(AccessError, match=f"Describe on group {topic}-group is missing"):
            Admin(settings).committed(f"{topic}-group", topic, 1)
