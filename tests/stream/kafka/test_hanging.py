"""A transaction that the broker aborted without markers, as Apache Kafka does while it starts."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from braid.stream.kafka import hanging
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.client import BY_KEY, Output, replay
from braid.stream.kafka.hanging import HEADER, Covered, Hanging
from braid.stream.kafka.topics import ensure
from braid.stream.local.child import Child
from braid.stream.settings import Settings
from braid.stream.worker.outputs import OutputTopics
from tests.conftest import Topics
from tests.services import KafkaBroker
from tests.stream.harness import sink_of, topic_of, wait_for

ID = "slot-0"
TIMEOUT_S = 2.0
ATTEMPTS = 8
LEAVES_OPEN = """
    import sys, time
    from confluent_kafka import Consumer
    from braid.stream.kafka.client import Output
    from braid.stream.settings import Settings
    from braid.stream.kafka.sink import TransactionalSink
    from braid.stream.worker.outputs import OutputTopics

    class Sink(TransactionalSink):
        def _until_done(self, doing, call, deadline):
            if doing == "committing":
                print("open", flush=True)
                time.sleep(600)
            return super()._until_done(doing, call, deadline)

    settings = Settings()
    group = settings.group(settings.generation)
    lease = Consumer(
        {"bootstrap.servers": settings.kafka.bootstrap, "group.id": group}
    ).consumer_group_metadata()
    topics = OutputTopics(settings, settings.generation)
    outputs = [
        Output(topic=topic, partition=partition, key=b"k", value=b"aborted")
        for topic in (topics.vectors, topics.predictions)
        for partition in range(2)
    ]
    Sink(settings, transactional_id=sys.argv[1], group=group, topics=topics.committed).publish(
        outputs, offsets={0: 10, 1: 20}, starts={0: 0, 1: 0}, lease=lease
    )
"""


Begin = Callable[..., str]


def place(part: Hanging) -> tuple[str, int]:
    return part.topic, part.partition


def output(topic: str, partition: int, value: bytes = b"") -> Output:
    return Output(topic=topic, partition=partition, key=b"k", value=value)


def test_the_first_message_of_each_partition_names_its_transaction() -> None:
    outputs = [output("v", 1), output("v", 1), output("p", 1), output("v", 0), output("v", 7)]
    outputs += [output("parts", BY_KEY), output("parts", BY_KEY)]
    made = list(hanging.named(outputs, "a slot", {1: 30, 0: 20}, {1: 25}))
    covered = [dict(its.headers).get(HEADER) for its in made]
    assert [header and Covered.decoded(header) for header in covered] == [
        Covered("a slot", 1, 25, 30),
        None,
        Covered("a slot", 1, 25, 30),
        Covered("a slot", 0, 20, 20),
        *[Covered("a slot", 0, 20, 20)] * 3,
    ]
    assert Covered.decoded(b"a user's own") is None
    assert Covered.decoded(None) is None


@pytest.mark.parametrize(
    ("committed", "repeated", "aborted"),
    [
        ({}, False, True),
        ({3: 19}, False, True),
        ({3: 20}, False, False),
        ({3: 40}, False, False),
        ({3: 40}, True, True),  # another worker read the same records again
        ({4: 40}, False, True),
    ],
)
def test_only_what_the_offsets_have_passed_once_was_committed(
    committed: dict[int, int], repeated: bool, aborted: bool
) -> None:
    its = Hanging("vectors", 3, Covered(ID, 3, 10, 20), repeated)
    assert hanging.aborted([its], committed) is aborted


@pytest.fixture
def begun(kafka: str, topics: Topics) -> Iterator[Begin]:
    """Begins transactions, which stay open until the test has ended."""
    topic, producers = topics.create("open", partitions=2), list[Producer]()

    def begin(*covered: Covered) -> str:
        for each in covered:
            producer = Producer(
                {"bootstrap.servers": kafka, "transactional.id": f"{topic}-{len(producers)}"}
            )
            producers.append(producer)
            producer.init_transactions(30)
            producer.begin_transaction()
            header: list[tuple[str, str | bytes | None]] = [(HEADER, each.encoded())]
            producer.produce(topic, partition=each.partition, key=b"k", headers=header)
            assert producer.flush(30) == 0
        return topic

    yield begin
    for producer in producers:
        producer.abort_transaction(30)


@pytest.mark.kafka
def test_what_follows_tells_whether_it_was_repeated(kafka: str, begun: Begin) -> None:
    own = Settings(kafka={"bootstrap": kafka})
    mine = [Covered(ID, partition, 10, 20) for partition in range(2)]
    topic = begun(*mine)
    assert sorted(hanging.find(own, ID, [topic]), key=place) == [
        Hanging(topic, partition, mine[partition]) for partition in range(2)
    ]
    assert hanging.find(own, "slot-1", [topic, "a-topic-that-is-not-there"]) == []
    begun(Covered("slot-1", 0, 15, 30), Covered("slot-1", 1, 20, 30), Covered("slot-1", 0, 30, 40))
    assert [part.repeated for part in sorted(hanging.find(own, ID, [topic]), key=place)] == [
        True,
        False,
    ]


@pytest.mark.kafka
def test_an_open_end_that_takes_long_to_read_is_left(
    kafka: str, begun: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topic = begun(Covered("slot-1", 0, 10, 20))
    monkeypatch.setattr(hanging, "READ_S", 0.0)
    assert hanging.find(Settings(kafka={"bootstrap": kafka}), ID, [topic]) == []
    assert f"not read to their end within 0 s: [('{topic}', 0)]" in caplog.text


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Of a broker on which a transaction of ID hangs, with its offsets sent."""
    # So often, an abort falls into the time in which the partitions have no leader yet.
    often = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "100"}
    with KafkaBroker(tmp_path / "kafka", properties=often) as broker:
        own = Settings(
            kafka={
                "bootstrap": broker.start(),
                "partitions": 2,
                "transaction_timeout_s": TIMEOUT_S,
            },
            home=tmp_path,
        )
        ensure(own, own.generation)
        for attempt in range(ATTEMPTS):
            child = Child(
                "worker",
                [sys.executable, "-c", textwrap.dedent(LEAVES_OPEN), ID],
                log=tmp_path / f"worker-{attempt}.log",
                env=own.environment(),
            ).start()
            child.wait_until(lambda its=child: "open" in its.tail(), timeout=60)  # type: ignore[misc]
            broker.stop()
            child.stop(grace=0)
            time.sleep(TIMEOUT_S)  # so that it is aborted as soon as the broker can
            broker.start()
            wait_for("the leaders are back", lambda: answers(own), timeout=60)
            if hanging.find(own, ID, topics(own)):
                yield own
                return
        pytest.fail(f"the broker wrote the markers {ATTEMPTS} times")


def topics(settings: Settings) -> list[str]:
    return OutputTopics(settings, settings.generation).committed


def answers(settings: Settings) -> bool:
    time.sleep(2 * TIMEOUT_S)  # the abort comes with the first look at time-outs, each second
    return all(Admin(settings).ends(topic, 2) for topic in topics(settings))


def shown(settings: Settings, topic: str) -> set[bytes | None]:
    admin, name = Admin(settings), topic_of(settings, topic)
    wait_for("markers", lambda: not admin.open_ends([name]), timeout=30)
    ends = admin.ends(name, settings.kafka.partitions)
    stop_at = {number: end for number, (_, end) in ends.items()}
    return {its.value for its in replay(settings, name, stop_at=stop_at)}


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_control_the_next_commit_shows_what_was_aborted(settings: Settings) -> None:
    """What braid's sink prevents; where this fails, Kafka was mended, and `hanging` may go."""
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "transactional.id": ID, "log_level": 0}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for partition in range(2):
        producer.produce(settings.topic("predictions"), partition=partition, value=b"committed")
    producer.commit_transaction(30)
    assert shown(settings, "predictions") == {b"aborted", b"committed"}


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sink_aborts_what_hangs_before_its_first_transaction(settings: Settings) -> None:
    reader = Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap,
            "group.id": settings.group(settings.generation),
            "isolation.level": "read_committed",
        }
    )
    position = TopicPartition(settings.topic("records"), 0)
    with pytest.raises(KafkaException):  # UNSTABLE_OFFSET_COMMIT, for ever
        reader.committed([position], timeout=3)
    sink = sink_of(settings, ID)
    sink.open()
    assert reader.committed([position], timeout=30)[0].offset < 0
    outputs = [output(settings.topic("predictions"), number, b"committed") for number in range(2)]
    sink.publish(outputs, offsets={0: 1}, lease=reader.consumer_group_metadata())
    assert hanging.find(settings, ID, topics(settings)) == []
    assert shown(settings, "predictions") == {b"committed"}
    assert shown(settings, "vectors") == set()
    assert reader.committed([position], timeout=30)[0].offset == 1
    reader.close()
