"""Logs: text or JSON, redacted, and without the content of records."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from confluent_kafka import Producer as RawProducer

from braid.encoders.model.null import NullModel
from braid.encoders.types import Embedding, Prepared, Sample
from braid.stream.kafka.client import Message
from braid.stream.logs import FIELDS, JsonFormatter
from braid.stream.settings import Settings
from tests.stream.harness import Deployment, wait_for
from tests.stream.running import running, wait_until_idle

SECRET = "sesame-7f3a"
REDACTED = "rediss://user:pass@host:6379/0"


def record_of(level: int, message: str, *args: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord(
        "braid.x", level, __file__, 1, message, args, more.pop("exc_info", None)
    )
    made.__dict__.update(more)
    return made


def test_a_line_of_json_has_the_fields_of_its_record_and_no_passwords() -> None:
    made = record_of(
        logging.WARNING, "at %s\nand on", REDACTED, **{FIELDS: {"record": {"id": "a"}}}
    )
    made.created, made.msecs = 1_700_000_000.25, 250.0
    text = JsonFormatter().format(made)
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("process") > 0
    assert line == {
        "ts": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "braid.x",
        "message": "at rediss://***@host:6379/0\nand on",
        "record": {"id": "a"},
    }


def test_a_line_of_json_has_the_traceback_without_passwords() -> None:
    try:
        raise ValueError(f"no answer from {REDACTED}")
    except ValueError:
        made = record_of(logging.ERROR, "it ends", exc_info=sys.exc_info())
    error = json.loads(JsonFormatter().format(made))["error"]
    assert error.startswith("Traceback")
    assert "ValueError: no answer from rediss://***@host:6379/0" in error


@pytest.mark.slow
def test_an_error_that_ends_a_command_is_json_too() -> None:
    command = [sys.executable, "-m", "braid", "status", "--log-format", "json"]
    settings = Settings(kafka={"bootstrap": "127.0.0.1:9", "broker_timeout_s": 1.0})
    done = subprocess.run(
        command, env=settings.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["level"] == "critical"
    assert last["message"].startswith("braid: no broker at 127.0.0.1:9")


def poison() -> list[tuple[bytes, bytes]]:
    """Records with the secret in each field, all of which become dead letters."""

    def value(number: int, **fields: Any) -> bytes:
        packed: bytes = msgpack.packb(
            {"v": 1, "id": f"r{number}", "ts": 1, "text": SECRET} | fields
        )
        return packed

    fields: Sequence[dict[str, Any]] = (
        {"v": SECRET},
        {"ts": SECRET},
        {"text": [SECRET]},
        {"image": {"uri": f"http://{SECRET}/x.png"}},
        {"image": {"uri": f"file:///{SECRET}"}},
        {"meta": {"a": {SECRET: SECRET}}},
        {"labels": {"a": [SECRET, 1]}},
        {"text": None},
        {"id": SECRET},
    )
    made = [(f"r{n}".encode(), value(n, **each)) for n, each in enumerate(fields)]
    return [*made, (b"r98", SECRET.encode() * 10), (b"r99", msgpack.packb(SECRET))]


@pytest.fixture
def deployment(kafka: str, tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(kafka, tmp_path, kafka={"partitions": 1}) as deployed:
        yield deployed


def send(deployment: Deployment, topic: str, messages: list[tuple[bytes, bytes]]) -> None:
    producer = RawProducer({"bootstrap.servers": deployment.settings.kafka.bootstrap})
    for key, content in messages:
        producer.produce(deployment.settings.topic(topic), key=key, value=content)
    assert producer.flush(60) == 0


def test_repetitions_of_a_producer_are_no_warnings_and_other_warnings_stay() -> None:
    program = """if True:
        import logging
        from braid.stream.logs import set_up
        from braid.stream.settings import Settings
        set_up(Settings())
        logging.getLogger("aiokafka.producer.sender").warning("retrying")
        logging.getLogger("aiokafka.producer.sender").error("given up")
        logging.getLogger("aiokafka.conn").warning("closed")
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "retrying" not in done.stderr
    assert "given up" in done.stderr
    assert "closed" in done.stderr


@pytest.mark.kafka
@pytest.mark.slow
def test_processes_log_json_with_ids_and_without_content(deployment: Deployment) -> None:
    sent = poison()
    send(deployment, "records", sent)
    send(deployment, "parts", [(b"p1", SECRET.encode())])
    more = {"BRAID_LOG_FORMAT": "json", "REDIS_URL": "redis://u:hidden@127.0.0.1:9/0"}
    worker = deployment.worker("embed", **more)
    index = deployment.index(env=more)

    def dead() -> list[Message]:
        return deployment.read("dead-letters")

    wait_for("the dead letters", lambda: len(dead()) == len(sent) + 1, timeout=60)
    wait_for("the index node", lambda: "caught up" in index.log.read_text(), timeout=60)
    for child in (worker, index):
        child.stop()
    lines = [
        json.loads(line) for child in (worker, index) for line in child.log.read_text().splitlines()
    ]
    letters = [line for line in lines if line["message"].startswith("dead letter")]
    ids = {(line["record"]["topic"].partition("-")[2], line["record"]["id"]) for line in letters}
    assert ids == {("records", key.decode()) for key, _ in sent} | {("parts", "p1")}
    assert {line["stage"] for line in letters} == {"decode", "prepare"}
    for line in letters:
        assert line["level"] == "warning"
        assert (line["record"]["partition"], line["record"]["offset"] >= 0) == (0, True)
    text = worker.log.read_text() + index.log.read_text()
    assert SECRET not in text
    assert "hidden" not in text
    assert any(SECRET in str(message.headers) for message in dead()), "a reason quotes its record"


class Quoting(NullModel):
    """A model whose errors quote the record, as those of a plug-in may."""

    def prepare(self, sample: Sample) -> Prepared:
        if sample.id.startswith("prepare"):
            raise ValueError(f"cannot prepare {sample.text!r}")
        return super().prepare(sample)

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        if any(each.id.startswith("encode") for each in prepared):
            raise ValueError(f"cannot encode {SECRET}")
        return super().encode(prepared)


@pytest.mark.kafka
def test_what_an_encoder_says_of_a_record_is_not_logged(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    ids = ["good", "prepare-1", "encode-1", "fine"]
    deployment.produce({"id": id_, "text": SECRET} for id_ in ids)
    with caplog.at_level(logging.INFO), running(deployment.settings, Quoting(16)) as run:
        wait_until_idle(run, deployment.lag)
    assert {each["id"] for each in deployment.predictions()} == {"good", "fine"}
    letters = [each for each in caplog.records if each.getMessage().startswith("dead letter")]
    logged = {each.__dict__[FIELDS]["record"]["id"]: each.__dict__[FIELDS] for each in letters}
    assert {id_: (each["stage"], each["kind"]) for id_, each in logged.items()} == {
        "prepare-1": ("prepare", "ValueError"),
        "encode-1": ("encode", "ValueError"),
    }
    assert SECRET not in caplog.text
