"""Traces: one of a record, across the processes that it passes, by OTLP to a real collector."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer as RawProducer

from braid.encoders.model.null import NullModel
from braid.stream.kafka.client import Message
from braid.stream.settings import Settings
from braid.stream.tracing import HEADER, Tracing, has_context, tracing_of
from tests.stream.collector import Collector, Received, collecting
from tests.stream.harness import Deployment, wait_for
from tests.stream.running import running, wait_until_idle

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def traced(collector: Collector, sample: float = 1.0) -> Settings:
    return Settings(tracing={"endpoint": collector.url, "sample": sample})


def parent(flags: str) -> list[tuple[str, bytes | None]]:
    return [("other", b"x"), (HEADER, f"00-{TRACE}-{SPAN}-{flags}".encode())]


def test_a_message_continues_the_trace_of_its_header(collector: Collector) -> None:
    tracing = Tracing(traced(collector, sample=0.0), "test")
    span = tracing.received("process records", parent("01"), topic="records", id="a")
    assert span is not None
    ((name, value),) = span.headers
    span.step("decode", 1.0, 1.5, records=2)
    span.end()
    tracing.close()
    step, record = collector.spans()
    assert (record.trace, record.parent, record.service) == (TRACE, SPAN, "test")
    assert record.attributes["messaging.destination.name"] == "records"
    assert record.attributes["braid.record.id"] == "a"
    assert (name, value) == (HEADER, f"00-{TRACE}-{record.id}-01".encode())
    assert (step.name, step.trace, step.parent) == ("decode", TRACE, record.id)
    assert step.ended - step.began == pytest.approx(0.5e9, abs=1e6)


@pytest.mark.parametrize(
    ("headers", "sample"),
    [(parent("00"), 1.0), ([], 0.0), ([(HEADER, b"nonsense")], 0.0), ([(HEADER, None)], 0.0)],
)
def test_what_is_not_sampled_has_no_span(
    collector: Collector, headers: list[tuple[str, bytes | None]], sample: float
) -> None:
    tracing = Tracing(traced(collector, sample), "test")
    assert tracing.received("process records", headers) is None
    tracing.close()
    assert collector.spans() == []


def test_about_the_share_of_traces_that_begin_here_is_sampled(collector: Collector) -> None:
    tracing = Tracing(traced(collector, sample=0.1), "test")
    spans = [tracing.sent("records", str(number)) for number in range(2000)]
    assert 120 <= sum(span is not None for span in spans) <= 280  # six standard deviations
    tracing.close()


def test_without_an_endpoint_there_is_no_tracing_and_nothing_is_imported() -> None:
    assert tracing_of(Settings(), "test") is None
    code = "import sys, braid.stream.worker.app, braid.stream.index_node.node\n"
    code += "import braid.stream.kafka.producer\n"
    code += "print(any(name.startswith('opentelemetry.exporter') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def deployment(kafka: str, tmp_path: Path, collector: Collector) -> Iterator[Deployment]:
    tracing = {"endpoint": collector.url, "sample": 1.0}
    with Deployment(kafka, tmp_path, kafka={"partitions": 1}, tracing=tracing) as deployed:
        yield deployed


@pytest.mark.kafka
@pytest.mark.slow
def test_one_record_is_one_trace_across_three_processes(
    deployment: Deployment, collector: Collector, tmp_path: Path
) -> None:
    deployment.worker("embed")
    deployment.index()
    events = tmp_path / "events.jsonl"
    events.write_text('{"id": "bird", "text": "a red bird"}\n')
    deployment.child("produce", ["-m", "braid", "produce", str(events)])

    def spans() -> dict[str, Received]:
        return {
            each.name.replace(deployment.settings.prefix, ""): each
            for each in collector.spans()
            if each.attributes.get("braid.record.id") != "__progress"
        }

    expected = {
        *("send records", "process records", "decode", "encode", "publish"),
        "apply vectors.g0001",
    }
    wait_for("the spans", lambda: set(spans()) == expected, timeout=60)
    found = spans()
    send, process = found["send records"], found["process records"]
    apply = found["apply vectors.g0001"]
    assert len({each.trace for each in found.values()}) == 1
    assert len(collector.spans()) == len(expected)
    assert send.parent == ""
    assert process.parent == send.id
    for step in ("decode", "encode", "publish"):
        assert found[step].parent == process.id
        assert found[step].service == "braid-embed"
        assert process.began <= found[step].began <= found[step].ended <= process.ended
    assert apply.parent == process.id
    assert [each.service for each in (send, process, apply)] == [
        *("braid-produce", "braid-embed", "braid-index")
    ]
    assert send.began <= process.began <= found["decode"].ended <= found["encode"].began
    assert found["encode"].ended <= found["publish"].began <= apply.ended
    for each in (send, process, apply):
        assert each.attributes["braid.record.id"] == "bird"
        assert each.attributes["messaging.system"] == "kafka"
    offset = process.attributes["messaging.kafka.offset"]
    assert send.attributes["messaging.kafka.offset"] == offset == 0
    assert found["encode"].attributes["braid.model"] == "null-16"


@pytest.mark.kafka
def test_the_span_of_a_dead_letter_has_failed_and_says_no_content(
    deployment: Deployment, collector: Collector
) -> None:
    producer = RawProducer({"bootstrap.servers": deployment.settings.kafka.bootstrap})
    producer.produce(
        deployment.settings.topic("records"),
        key=b"bad",
        value=b"a secret",
        headers={HEADER: parent("01")[1][1]},
    )
    assert producer.flush(30) == 0
    with running(deployment.settings, NullModel(16)) as run:
        wait_until_idle(run, deployment.lag)
    wait_for("the spans", lambda: len(collector.spans()) == 3, timeout=30)
    (process,) = [each for each in collector.spans() if each.name.startswith("process")]
    assert (process.trace, process.parent) == (TRACE, SPAN)
    assert process.status == "BadRecord in value, found by decode"
    assert "secret" not in str(collector.spans())


@pytest.mark.kafka
def test_outputs_of_records_without_a_trace_have_no_header(kafka: str, tmp_path: Path) -> None:
    def headers(messages: list[Message]) -> list[bool]:
        return [has_context(each.headers) for each in messages]

    with Deployment(kafka, tmp_path, kafka={"partitions": 1}) as deployed:
        deployed.produce([{"id": "a", "text": "x"}])
        deployed.delete("a")
        with running(deployed.settings, NullModel(16)) as run:
            wait_until_idle(run, deployed.lag)
        assert headers(deployed.read("records")) == [False, False]
        assert headers(deployed.vectors()) == [False, False]
