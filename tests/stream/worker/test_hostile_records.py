"""Records made to stop a worker: each is a dead letter that fits, and its neighbours go through."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import pytest
from confluent_kafka import Producer as RawProducer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from braid.encoders.model.null import NullModel
from braid.encoders.types import Prepared, Sample
from braid.stream.errors import WorkerError
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES, MIB
from braid.stream.monitoring.metrics import WorkerMetrics
from tests.stream.harness import Deployment, wait_for
from tests.stream.running import running, wait_until_idle

pytestmark = pytest.mark.kafka

KEY = b"hostile"


def value(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, "id": KEY.decode(), "ts": 1, "text": "x", **fields})
    return packed


def nested(field: str, depth: int = 1000) -> bytes:
    """A record with one field in `depth` lists."""
    plain = bytearray(msgpack.packb({"v": 1, "id": KEY.decode(), "text": "x"}))
    plain[0] += 1
    return bytes(plain + msgpack.packb(field) + b"\x91" * depth + b"\x01")


def with_integer_names() -> bytes:
    plain = bytearray(msgpack.packb({"v": 1, "id": KEY.decode(), "text": "x"}))
    plain[0] += 1
    pairs = b"".join(b"\xcf" + (i << 40).to_bytes(8, "big") + b"\xc0" for i in range(60_000))
    return bytes(plain + msgpack.packb("meta") + b"\xdf" + (60_000).to_bytes(4, "big") + pairs)


@pytest.fixture
def loop(tmp_path: Path) -> str:
    """A link to a loop of symbolic links."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return (tmp_path / "a").as_uri()


@pytest.fixture
def deployment(kafka: str, tmp_path: Path) -> Iterator[Deployment]:
    links = {"roots": [tmp_path], "hosts": ["host"], "timeout_s": 1.0}
    with Deployment(kafka, tmp_path, links=links) as deployed:
        yield deployed


def hostile(loop: str) -> dict[str, tuple[bytes | None, bytes | None, str]]:
    """By name: key, value, the stage."""
    links = {
        uri: (KEY, value(image={"uri": uri}), "prepare")
        for uri in (
            "http://[",
            "file:///a%00b",
            "http://℀.com/",
            "http://host:abc/",
            "http://host:1/",
            "\x00",
            loop,
        )
    }
    deep = {
        f"{field} 1,000 deep": (KEY, nested(field), "decode")
        for field in ("v", "ts", "id", "image", "labels", "meta", "new")
    }
    name = "n" * 9_000_000
    names = {
        "a meta name of 9 MB": (KEY, value(meta={name: 1}), "decode"),
        "a label of a name of 9 MB": (KEY, value(labels={name: "x"}), "decode"),
        "an unknown name of 9 MB": (KEY, value(**{name: 1}), "decode"),
        "integer names": (KEY, with_integer_names(), "decode"),
    }
    keys: dict[str, tuple[bytes | None, bytes | None, str]] = {
        "a deletion with a key of 3 MB": (b"k" * 3_000_000, None, "decode"),
        "a key of 3 MB": (b"k" * 3_000_000, value(), "decode"),
        "the largest message": (b"k" * 60_000, b"x" * MAX_RECORD_BYTES, "decode"),
    }
    return links | deep | names | keys


def sender(deployment: Deployment, **options: Any) -> RawProducer:
    return RawProducer(
        {
            "bootstrap.servers": deployment.settings.kafka.bootstrap,
            "message.max.bytes": 100 * MIB,
            "batch.num.messages": 1,
            **options,
        }
    )


def produce(deployment: Deployment, messages: list[tuple[bytes | None, bytes | None]]) -> None:
    producer = sender(deployment)
    for key, content in messages:
        assert delivered(producer, deployment, key, content) == ""


def delivered(
    producer: RawProducer, deployment: Deployment, key: bytes | None, content: bytes | None
) -> str:
    """Send one message; the name of the error, if the broker refused it."""
    answers: list[str] = []
    producer.produce(
        deployment.settings.topic("records"),
        key=key,
        value=content,
        partition=0,
        on_delivery=lambda error, _: answers.append(error.name() if error else ""),
    )
    assert producer.flush(60) == 0
    (answer,) = answers
    return answer


def neighbour(number: int) -> tuple[bytes, bytes]:
    id_ = f"good{number}"
    return id_.encode(), msgpack.packb({"v": 1, "id": id_, "text": "x"})


def reasons(message: Message) -> dict[str, str]:
    return {name: (text or b"").decode() for name, text in message.headers}


def test_hostile_records_become_dead_letters_that_fit(deployment: Deployment, loop: str) -> None:
    cases = hostile(loop)
    messages: list[tuple[bytes | None, bytes | None]] = []
    for number, (key, content, _) in enumerate(cases.values()):
        messages += [neighbour(number), (key, content)]
    produce(deployment, messages)
    metrics = WorkerMetrics()
    with running(deployment.settings, NullModel(16), metrics=metrics) as run:
        wait_until_idle(run, deployment.lag)
    predicted = {prediction["id"] for prediction in deployment.predictions()}
    assert predicted == {f"good{number}" for number in range(len(cases))}
    dead = deployment.read("dead-letters")
    assert len(dead) == len(cases)
    for message, (name, (key, content, stage)) in zip(dead, cases.items(), strict=True):
        assert message.key == key, name
        assert message.value == content, name
        headers = reasons(message)
        assert headers["stage"] == stage, (name, headers)
        assert 0 < len(headers["reason"]) <= 500, name
        assert sum(len(part or b"") for _, part in message.headers) < 8192, name
        assert "cut-key" not in headers, name
    counted = {
        (sample.labels["stage"], sample.labels["kind"]): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "braid_dead_letters_total"
    }
    assert sum(counted.values()) == len(cases)
    assert counted["prepare", "InvalidURL"] == 3
    assert counted["prepare", "RuntimeError"] == 1  # the loop of links
    assert ("decode", "BadRecord") in counted


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_a_message_that_unpacks_to_more_than_the_limit_is_refused(
    deployment: Deployment, codec: str
) -> None:
    """4 kB of zstd become 150 MB, at which the client of every worker stops reading for good."""
    producer = sender(deployment, **{"compression.type": codec})
    assert delivered(producer, deployment, KEY, b"\0" * 40_000_000) == "MSG_SIZE_TOO_LARGE"


def test_a_message_that_unpacks_to_more_than_a_dead_letter_takes_is_cut(
    deployment: Deployment,
) -> None:
    """A topic that was made in another way bounds a batch as it was sent, compressed."""
    resource = ConfigResource(ConfigResource.Type.TOPIC, deployment.settings.topic("records"))
    as_sent = ConfigEntry("compression.type", "producer")
    as_sent.incremental_operation = AlterConfigOpType.SET
    resource.add_incremental_config(as_sent)
    admin = AdminClient({"bootstrap.servers": deployment.settings.kafka.bootstrap})
    admin.incremental_alter_configs([resource])[resource].result(30)
    content = value(new="x" * 40_000_000)
    producer = sender(deployment, **{"compression.type": "gzip"})
    # The broker's answer to the change comes before the topic's log has it.
    wait_for(
        "the topic's setting",
        lambda: delivered(producer, deployment, KEY, content) == "",
        timeout=30,
    )
    produce(deployment, [neighbour(0)])
    with running(deployment.settings, NullModel(16)) as run:
        wait_until_idle(run, deployment.lag)
    (prediction,) = deployment.predictions()
    assert prediction["id"] == "good0"
    (dead,) = deployment.read("dead-letters")
    assert dead.key == KEY
    assert dead.value == content[: MAX_DEAD_LETTER_BYTES // 2]
    headers = reasons(dead)
    assert headers["cut-value"] == f"{len(content)} sha256:{sha256(content).hexdigest()}"
    assert f"the limit is {MAX_RECORD_BYTES}" in headers["reason"]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Failing(NullModel):
    """Raises in `prepare` what its texts name."""

    errors: ClassVar[dict[str, Exception]] = {
        "runtime": RuntimeError("r" * 100_000),
        "recursion": RecursionError("too deep"),
        "unprintable": Unprintable(),
        "key": KeyError([[[]]]),
        "memory": MemoryError(),
    }

    def prepare(self, sample: Sample) -> Prepared:
        if (error := self.errors.get(sample.text or "")) is not None:
            raise error
        return super().prepare(sample)


def test_whatever_prepare_raises_is_a_dead_letter(deployment: Deployment) -> None:
    texts = [text for text in Failing.errors if text != "memory"]
    produce(
        deployment,
        [m for i, text in enumerate(texts) for m in ((KEY, value(text=text)), neighbour(i))],
    )
    with running(deployment.settings, Failing(16)) as run:
        wait_until_idle(run, deployment.lag)
    assert len(deployment.predictions()) == len(texts)
    dead = [reasons(message) for message in deployment.read("dead-letters")]
    assert [headers["error"] for headers in dead] == [
        type(Failing.errors[text]).__name__ for text in texts
    ]
    assert {headers["stage"] for headers in dead} == {"prepare"}


def test_out_of_memory_is_not_the_fault_of_a_record(deployment: Deployment) -> None:
    produce(deployment, [(KEY, value(text="memory"))])
    with running(deployment.settings, Failing(16)) as run:
        error = run.wait_for_end()
    assert isinstance(error, WorkerError)
    assert "out of memory" in str(error)
    assert deployment.lag() == 1
