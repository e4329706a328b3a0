"""A transaction that the broker aborted without markers, as Apache Kafka does while it starts.

How often it does depends on what else the machine does, so the markers are taken out of the logs of
a broker that is down. `tests/chaos` has those that it loses by itself.
"""

from __future__ import annotations

import glob
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from braid.stream.errors import Unreachable
from braid.stream.kafka import hanging
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.client import BY_KEY, Message, Output, replay, to_message
from braid.stream.kafka.hanging import HEADER, Covered, Hanging
from braid.stream.kafka.schemas import PROGRESS_KEY
from braid.stream.kafka.sink import TransactionalSink
from braid.stream.kafka.topics import ensure
from braid.stream.local.child import Child
from braid.stream.settings import Settings
from braid.stream.worker.outputs import OutputTopics
from tests.conftest import Topics
from tests.services import KafkaBroker
from tests.stream.harness import sink_of, topic_of, wait_for

ID = "slot-0"
TIMEOUT_S = 2.0
CONTROL = 0x20  # of a batch's attributes: it is an end marker
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
        if sys.argv[2] == "messages"
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


def test_the_first_and_the_last_message_of_each_partition_name_their_transaction() -> None:
    outputs = [output("v", 1, b"%d" % number) for number in range(4)]
    assert list(hanging.named(outputs, "a slot", {}, {})) == outputs
    made = list(hanging.named([*outputs, output("p", 1)], "a slot", {1: 30}, {}))
    assert [one.value for one in made if one.topic == "v"] == [b"0", b"1", b"2", b"3"]
    assert [one.value for one in made if one.topic == "v" and one.headers] == [b"0", b"3"]
    assert all(one.headers for one in made if one.topic == "p")


def test_a_header_names_the_offsets_that_its_transaction_covers() -> None:
    outputs = [output("v", 1), output("p", 1), output("v", 0), output("v", 7)]
    outputs += [output("parts", BY_KEY), output("parts", BY_KEY)]
    made = list(hanging.named(outputs, "a slot", {1: 30, 0: 20}, {1: 25}))
    covered = [dict(message.headers).get(HEADER) for message in made]
    assert [header and Covered.decoded(header) for header in covered] == [
        Covered("a slot", 1, 25, 30),
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
    last = Output("vectors", 3, b"k", b"v")
    transaction = Hanging("vectors", 3, Covered(ID, 3, 10, 20), last, repeated)
    assert hanging.aborted([transaction], committed) is aborted


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
    for partition, part in enumerate(sorted(hanging.find(own, ID, [topic]), key=place)):
        header = HEADER, mine[partition].encoded()
        last = Output(topic, partition, b"k", None, [header])
        assert part == Hanging(topic, partition, mine[partition], last)
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
    settings = Settings(kafka={"bootstrap": kafka})
    topic = begun(Covered("slot-1", 0, 10, 20), Covered("slot-2", 0, 20, 30))
    read = []

    def slowly(raw: Any) -> Message:
        read.append(raw)
        time.sleep(0.0 if len(read) > 1 else 2 * hanging.READ_S)
        return to_message(raw)

    with monkeypatch.context() as patched:
        patched.setattr(hanging, "to_message", slowly)
        assert hanging.find(settings, ID, [topic]) == []
    assert f"not read to their end within {hanging.READ_S:g} s: [('{topic}', 0)]" in caplog.text
    monkeypatch.setattr(hanging, "READ_S", 0.0)  # nothing was heard of the partition
    with pytest.raises(Unreachable, match=topic):
        hanging.find(settings, ID, [topic])


# A transaction of a client that has ended is aborted so soon.
OFTEN = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "100"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a broker on which a transaction of ID hangs, with its offsets sent."""
    folder = tmp_path_factory.mktemp("hung")
    for _ in hung(folder, "messages"):
        pass
    return folder / "kafka"


@pytest.fixture
def settings(kept: Path, tmp_path: Path) -> Iterator[Settings]:
    """Of a broker with a copy of that data."""
    shutil.copytree(kept, tmp_path / "kafka")
    with KafkaBroker(tmp_path / "kafka", properties=OFTEN) as broker:
        own = settings_of(broker, tmp_path)
        wait_for("the leaders are back", lambda: answers(own), timeout=60)
        yield own


@pytest.fixture
def of_offsets(tmp_path: Path) -> Iterator[Settings]:
    """Of a broker on which a transaction of ID hangs that has sent offsets alone."""
    yield from hung(tmp_path, "offsets")


def settings_of(broker: KafkaBroker, home: Path) -> Settings:
    kafka = {
        "bootstrap": broker.start(),
        "partitions": 2,
        "transaction_timeout_s": TIMEOUT_S,
    }
    return Settings(kafka=kafka, home=home)


def hung(folder: Path, what: str) -> Iterator[Settings]:
    with KafkaBroker(folder / "kafka", properties=OFTEN) as broker:
        own = settings_of(broker, folder)
        ensure(own, own.generation)
        child = Child(
            "worker",
            [sys.executable, "-c", textwrap.dedent(LEAVES_OPEN), ID, what],
            log=folder / "worker.log",
            env=own.environment(),
        ).start()
        child.wait_until(lambda: "open" in child.tail(), timeout=60)
        child.stop(grace=0)
        wait_for("it is aborted", lambda: not (unsettled(own) or still_open(own)), timeout=60)
        broker.stop()
        names = [*(topics(own) if what == "messages" else ()), "__consumer_offsets"]
        assert (
            sum(map(lose_marker, logs(folder / "kafka" / "data", names)))
            == {
                "messages": 2 * 2 + 1,
                "offsets": 1,
            }[what]
        )
        broker.start()
        wait_for("the leaders are back", lambda: answers(own), timeout=60)
        assert unsettled(own) == [0, 1]
        assert bool(hanging.find(own, ID, topics(own))) == (what == "messages")
        yield own


def logs(data: Path, names: Iterable[str]) -> list[Path]:
    """The log files of topics of a broker that is down, each topic's first segment."""
    return [log for name in names for log in data.glob(f"{glob.escape(name)}-*/0*0.log")]


def lose_marker(log: Path) -> bool:
    """Cut a log before its last batch, if that is an end marker (KIP-98, the format of batches)."""
    content = log.read_bytes()
    last = after = 0
    while after < len(content):
        last, after = after, after + 12 + int.from_bytes(content[after + 8 : after + 12], "big")
    marker = bool(content and int.from_bytes(content[last + 21 : last + 23], "big") & CONTROL)
    if marker:
        log.write_bytes(content[:last])
    return marker


def still_open(settings: Settings) -> dict[tuple[str, int], tuple[int, int]]:
    return Admin(settings).open_ends(topics(settings))


def unsettled(settings: Settings) -> list[int]:
    """The partitions of `records` whose offsets wait for an end marker."""
    group, topic = settings.group(settings.generation), settings.topic("records")
    return hanging._offsets(settings, group, topic)[1]


def topics(settings: Settings) -> list[str]:
    return OutputTopics(settings, settings.generation).committed


def answers(settings: Settings) -> bool:
    return all(Admin(settings).ends(topic, 2) for topic in topics(settings))


def shown(settings: Settings, topic: str) -> set[bytes | None]:
    admin, name = Admin(settings), topic_of(settings, topic)
    wait_for("markers", lambda: not admin.open_ends([name]), timeout=30)
    ends = admin.ends(name, settings.kafka.partitions)
    stop_at = {number: end for number, (_, end) in ends.items()}
    return {message.value for message in replay(settings, name, stop_at=stop_at)}


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_control_the_next_commit_shows_what_was_aborted(settings: Settings) -> None:
    """What braid's sink prevents."""
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
@pytest.mark.timeout(900)
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


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sink_settles_the_offsets_of_a_transaction_without_messages(
    of_offsets: Settings,
) -> None:
    """As the join leaves one that consumed parts which gave nothing; seen in a run of chaos."""
    settings, group = of_offsets, of_offsets.group(of_offsets.generation)
    assert not hanging.find(settings, ID, topics(settings))
    sink_of(settings, ID).open()
    assert unsettled(settings) == []
    assert Admin(settings).committed(group, settings.topic("records"), 2) == {}


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_offsets_follow_messages_whose_end_was_written(
    kafka: str, topics: Topics, tmp_path: Path
) -> None:
    """The topics were given their markers, the group's offsets were not: the outcome is theirs.

    Another id leaves the offsets open here, since no broker loses single markers on demand.
    """
    topic, source = topics.create("outputs", partitions=2), topics.create("source", partitions=2)
    settings = Settings(kafka={"bootstrap": kafka}, home=tmp_path)
    id_ = group = f"{topic}-slot"

    def begun(name: str, *covered: Covered, offsets: dict[int, int]) -> Producer:
        producer = Producer({"bootstrap.servers": kafka, "transactional.id": name})
        producer.init_transactions(30)
        producer.begin_transaction()
        for each in covered:
            header: list[tuple[str, str | bytes | None]] = [(HEADER, each.encoded())]
            producer.produce(topic, partition=each.partition, key=b"k", headers=header)
        assert producer.flush(30) == 0
        lease = Consumer({"bootstrap.servers": kafka, "group.id": group}).consumer_group_metadata()
        positions = [TopicPartition(source, *offset) for offset in offsets.items()]
        if positions:
            producer.send_offsets_to_transaction(positions, lease, 30)
        return producer

    def offsets() -> dict[int, int]:
        return Admin(settings).committed(group, source, 2)

    def opened() -> None:
        TransactionalSink(
            settings, transactional_id=id_, group=group, topics=[topic], source=source
        ).open()

    first = [Covered(id_, 0, 0, 10), Covered(id_, 1, 0, 5)]
    begun(id_, *first, offsets={0: 10, 1: 5}).commit_transaction(30)
    begun(id_, Covered(id_, 0, 10, 20), offsets={}).commit_transaction(30)
    begun("another", Covered("another", 0, 20, 25), offsets={}).commit_transaction(30)
    begun(id_, Covered(id_, 1, 5, 9), offsets={}).commit_transaction(30)
    opened()
    assert offsets() == {0: 10, 1: 5}  # settled: nothing was lost
    other = begun("other", offsets={0: 99})  # those of 1 are settled
    opened()
    other.abort_transaction(30)
    assert offsets() == {0: 20, 1: 5}
    begun(id_, Covered(id_, 0, 20, 30), offsets={}).abort_transaction(30)
    other = begun("other", offsets={0: 99})
    opened()
    other.abort_transaction(30)
    assert offsets() == {0: 20, 1: 5}
    # Markers of some partitions were written, of others not.
    begun(id_, Covered(id_, 0, 20, 40), offsets={}).commit_transaction(30)
    hidden = begun("hidden", Covered(id_, 1, 9, 12), offsets={0: 99})
    opened()
    hidden.abort_transaction(30)
    assert offsets() == {0: 40, 1: 5}


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_a_transaction_that_is_repeated_while_it_is_looked_at_is_not_committed(
    kafka: str, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker passes its offsets after its messages were read; seen in runs of chaos."""
    topic, source = topics.create("outputs", partitions=1), topics.create("source", partitions=1)
    settings, group = Settings(kafka={"bootstrap": kafka}, home=tmp_path), f"{topic}-group"
    hung = begun_in(kafka, topic, f"{topic}-mine", Covered(f"{topic}-slot", 0, 0, 10))
    find = hanging.find

    def found_and_passed(*given: Any) -> list[Hanging]:
        parts = find(*given)
        producer = begun_in(kafka, topic, f"{topic}-other", Covered("other", 0, 0, 12))
        lease = Consumer({"bootstrap.servers": kafka, "group.id": group}).consumer_group_metadata()
        producer.send_offsets_to_transaction([TopicPartition(source, 0, 12)], lease, 30)
        producer.commit_transaction(30)
        return parts

    monkeypatch.setattr(hanging, "find", found_and_passed)
    ending = hanging.ending(settings, f"{topic}-slot", [topic], group=group, source=source)
    hung.abort_transaction(30)
    assert ending is not None
    assert [message[:2] for message in ending.messages] == [(topic, 0)]
    assert not ending.commit


@pytest.mark.kafka
@pytest.mark.parametrize(("key", "shown"), [(PROGRESS_KEY, True), (b"k", False)])
def test_progress_of_a_committed_transaction_is_shown_at_once(
    kafka: str, topics: Topics, tmp_path: Path, key: bytes, shown: bool
) -> None:
    """Its slot may never write there again (seed 8808 of the simulation); outputs would double."""
    topic, source = topics.create("outputs", partitions=2), topics.create("source", partitions=1)
    settings, group = Settings(kafka={"bootstrap": kafka}, home=tmp_path), f"{topic}-group"
    covered = Covered(f"{topic}-slot", 0, 10, 10)
    hung = begun_in(kafka, topic, f"{topic}-mine", covered, key=key)
    other = begun_in(kafka, topics.create("others"), f"{topic}-other", Covered("other", 0, 10, 12))
    lease = Consumer({"bootstrap.servers": kafka, "group.id": group}).consumer_group_metadata()
    other.send_offsets_to_transaction([TopicPartition(source, 0, 12)], lease, 30)
    other.commit_transaction(30)
    ending = hanging.ending(settings, f"{topic}-slot", [topic], group=group, source=source)
    hung.abort_transaction(30)
    if shown:
        assert ending is not None
        (message,) = ending.messages
        assert message[:3] == (topic, 0, PROGRESS_KEY)
        assert (ending.commit, ending.offsets) == (True, {})
    else:
        assert ending is None


def begun_in(kafka: str, topic: str, name: str, covered: Covered, key: bytes = b"k") -> Producer:
    """A producer with an open transaction of one message."""
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    header: list[tuple[str, str | bytes | None]] = [(HEADER, covered.encoded())]
    producer.produce(topic, partition=covered.partition, key=key, headers=header)
    assert producer.flush(30) == 0
    return producer
