"""A worker that stops, Redis that goes away: nothing is lost, nothing is doubled."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgpack
import pytest
from confluent_kafka import Producer as RawProducer

from braid.encoders.model.null import NullModel
from braid.stream.errors import Fenced, RegistryError
from braid.stream.media.payload_writer import RedisShowcase
from braid.stream.monitoring.metrics import WorkerMetrics
from tests.services import Valkey
from tests.stream.harness import Deployment, sink_of, wait_for
from tests.stream.running import running, wait_until_idle

pytestmark = pytest.mark.kafka


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"text {n}"} for n in range(start, start + count)]


def counts(deployment: Deployment) -> Counter[str]:
    return Counter(prediction["id"] for prediction in deployment.predictions())


def test_a_worker_that_stops_ends_the_whole_process(deployment: Deployment) -> None:
    deployment.produce(texts(50))
    worker = deployment.worker("one", BRAID_FAILPOINT="before-publish:raise")
    assert worker.wait(60) == 1
    assert "failpoint before-publish" in worker.tail(100)
    worker = deployment.worker("one")
    wait_for("all is committed", lambda: deployment.lag() == 0, timeout=60)
    assert counts(deployment) == {f"r{n}": 1 for n in range(50)}


LINGERING = """
import sys, threading
from braid.stream.worker import app
from braid.stream.cli.main import main
app.END_WITHIN_S = 1.0
threading.Thread(target=threading.Event().wait).start()  # as Faust may leave its own behind
sys.argv[0] = "braid"
main()
"""


def test_a_thread_left_behind_keeps_no_half_dead_worker(deployment: Deployment) -> None:
    deployment.produce(texts(50))
    worker = deployment.child(
        "one",
        ["-c", LINGERING, "embed", "--slot", "one", "--model", "null:16"],
        {"BRAID_FAILPOINT": "before-publish:raise"},
    )
    assert worker.wait(60) == 1
    assert "failpoint before-publish" in worker.tail(100)
    assert "ended at once" in worker.tail(100)


@pytest.mark.redis
def test_redis_gone_and_back_does_not_touch_delivery(
    deployment: Deployment, own_valkey: Valkey
) -> None:
    showcase = RedisShowcase(own_valkey.address)
    payloads = showcase._payloads
    with running(deployment.settings, NullModel(16), showcase=showcase) as run:
        deployment.produce(texts(100))
        wait_until_idle(run, deployment.lag)
        wait_for("texts are kept", lambda: shown(showcase, "r99") == "text 99", timeout=10)
        own_valkey.stop()
        deployment.produce(texts(100, start=100))
        wait_until_idle(run, deployment.lag)
        wait_for("Redis is missed", lambda: not payloads.available, timeout=10)
        own_valkey.start()
        time.sleep(2.1)  # the breaker's pause
        deployment.produce(texts(100, start=200))
        wait_until_idle(run, deployment.lag)
        wait_for("texts are kept again", lambda: shown(showcase, "r299") == "text 299", timeout=10)
    showcase.close()
    assert counts(deployment) == {f"r{n}": 1 for n in range(300)}


def shown(showcase: RedisShowcase, id_: str) -> str | None:
    payload = (showcase._payloads.get_many([id_]) or {}).get(id_)
    return payload.text if payload else None


def test_a_model_of_another_space_is_not_taken(deployment: Deployment) -> None:
    with running(deployment.settings, NullModel(16)) as run:
        with pytest.raises(RegistryError, match="space"):
            run.worker.offer(NullModel(32))
        assert run.worker.model.name == "null-16"


def test_two_workers_of_one_slot_fence_each_other_until_one_stops(deployment: Deployment) -> None:
    settings, sent = deployment.settings, 20
    with running(settings, NullModel(16), slot="same") as first:
        deployment.produce(texts(20))
        wait_until_idle(first, deployment.lag)
        with running(settings, NullModel(16), slot="same") as second:
            until = time.monotonic() + 120
            while first.alive and second.alive and time.monotonic() < until:
                deployment.produce(texts(8, start=sent))
                sent += 8
                time.sleep(0.1)
            stopped, other = (first, second) if not first.alive else (second, first)
            error = stopped.wait_for_end()
            assert isinstance(error, Fenced)
            assert "--slot" in str(error)
            assert "BRAID_KAFKA__TRANSACTION_TIMEOUT_S" in str(error)
            wait_until_idle(other, deployment.lag)
    assert counts(deployment) == {f"r{n}": 1 for n in range(sent)}


def test_a_single_fencing_ends_no_worker(deployment: Deployment) -> None:
    """As by the broker, which aborted what a killed worker of this slot had left open."""
    settings = deployment.settings
    with running(settings, NullModel(16), slot="same") as run:
        deployment.produce(texts(20))
        wait_until_idle(run, deployment.lag)
        sink_of(settings, f"{settings.group(settings.generation)}-same").open()
        deployment.produce(texts(200, start=20))
        wait_until_idle(run, deployment.lag)
    assert counts(deployment) == {f"r{n}": 1 for n in range(220)}


def test_a_worker_counts_its_lag_and_the_fields_it_left_out(deployment: Deployment) -> None:
    topic = deployment.settings.topic("records")
    producer = RawProducer({"bootstrap.servers": deployment.settings.kafka.bootstrap})
    value = {"v": 1, "id": "a", "ts": 1, "text": "x", "colour": "red", "shape": "round"}
    producer.produce(topic, key=b"a", partition=0, value=msgpack.packb(value))
    assert producer.flush(30) == 0
    metrics = WorkerMetrics()
    with running(deployment.settings, NullModel(16), metrics=metrics) as run:
        wait_until_idle(run, deployment.lag)
        registry, label = metrics.registry, {"generation": "g0001"}
        wait_for(
            "the lag is told",
            lambda: registry.get_sample_value("braid_lag", label | {"partition": "0"}) == 0,
            timeout=10,
        )
    assert registry.get_sample_value("braid_unknown_fields_total", label) == 2
    assert registry.get_sample_value("braid_records_total", label) == 1
