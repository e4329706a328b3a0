"""A broker that does not answer, or not yet: what is retried, what the log says and how often."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from braid.stream.errors import BrokerError, PublishRefused, Unreachable
from braid.stream.kafka import connection
from braid.stream.kafka.admin import Admin, Topic
from braid.stream.kafka.connection import check_listens
from braid.stream.kafka.waiting import Waiting
from braid.stream.settings import Settings


def test_a_long_wait_is_named_at_once_and_then_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 100.0
    waiting = Waiting("b:9092", lambda: now)
    error = Unreachable("no broker at b:9092 (HOW): refused", reason="refused")
    waiting.failed(error)
    assert [record.message.rpartition("): ")[2] for record in caplog.records] == ["refused"]
    assert waiting.reason == str(error)
    for _ in range(3600):
        now += 1
        waiting.failed(error)
    hour = len(caplog.records)
    assert 59 <= hour <= 65
    waiting.over()
    waiting.failed(error)
    assert len(caplog.records) == hour + 1


def test_a_silent_broker_is_named_once_however_often_it_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SAY_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        settings = Settings(home=tmp_path, kafka={"bootstrap": address})
        for _ in range(3):
            with pytest.raises(Unreachable):
                Admin(settings, timeout_s=0.4).partition_counts()
    named = [r for r in caplog.records if f"waiting for Kafka at {address}" in r.getMessage()]
    assert len(named) == 1


def test_the_reason_of_an_error_names_no_address() -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 \(KAFKA_BOOTSTRAP") as caught:
        check_listens(Settings(kafka={"bootstrap": "127.0.0.1:1"}))
    assert caught.value.reason == "127.0.0.1:1: Connection refused"
    for kind in (BrokerError, Unreachable, PublishRefused):
        assert kind("all of it").reason == "all of it"


# What brokers answered to these while they started, led elections or moved partitions.
NOT_YET = (
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError._NOENT,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("code", "times"), [*((code, 2) for code in NOT_YET), *((code, 1000) for code in NOT_YET[:2])]
)
def test_offsets_are_asked_for_until_the_broker_knows_them(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, times: int
) -> None:
    """The broker's answers are real; the errors before them are raised in its place."""
    topic = f"not-yet-{uuid.uuid4().hex}"
    settings = Settings(home=tmp_path, kafka={"bootstrap": kafka})
    admins = Admin(settings)
    admins.create([Topic(name=topic, partitions=2, replication=1, config={})])
    asked: list[str] = []

    class FailsAtFirst(AdminClient):
        def list_offsets(self, *args: Any, **named: Any) -> Any:
            asked.append("list_offsets")
            if len(asked) <= times:
                raise KafkaException(KafkaError(code))
            return super().list_offsets(*args, **named)

    monkeypatch.setattr(connection, "AdminClient", FailsAtFirst)
    try:
        slow = Admin(settings, timeout_s=2.0 if times > 2 else 30)
        calls = (
            lambda: slow.ends(topic),
            lambda: slow.open_ends([topic]),
            lambda: slow.offsets_at(topic, 2, 0),
        )
        for call, expected in zip(calls, ({0: (0, 0), 1: (0, 0)}, {}, {}), strict=True):
            asked.clear()
            if times > 2:
                with pytest.raises(BrokerError, match="offsets"):
                    call()
            else:
                assert call() == expected
            assert len(asked) > 2
    finally:
        monkeypatch.undo()
        admins.delete([topic])


@pytest.mark.kafka
def test_an_error_of_one_position_is_not_taken_for_no_offset(kafka: str, tmp_path: Path) -> None:
    class Position:
        error: KafkaError | None = None

    class Failed:
        error = KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT)

    class Member:
        def __init__(self) -> None:
            self.positions: list[Any] = [Position()]

        def committed(self, *_: Any, **named: Any) -> list[Any]:
            return self.positions

        def poll(self, timeout: float) -> None:
            return None

    admin, member = Admin(Settings(home=tmp_path, kafka={"bootstrap": kafka})), Member()
    assert admin._positions(member, "g", [], 5.0) == member.positions  # type: ignore[arg-type]
    member.positions.append(Failed())
    with pytest.raises(Unreachable, match="offsets of g"):
        admin._positions(member, "g", [], 0.5)  # type: ignore[arg-type]
