"""A broker that is reset, cut off, stopped or away: workers wait, and nothing doubles."""

from __future__ import annotations

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from braid.encoders.model.null import NullModel
from braid.stream.errors import BrokerError
from braid.stream.local.child import Child, free_port
from tests.kafka_proxy import KafkaProxy
from tests.services import KafkaBroker
from tests.stream.harness import Deployment, wait_for
from tests.stream.running import running, wait_until_idle

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"text {n}"} for n in range(start, start + count)]


def counts(deployment: Deployment) -> Counter[str]:
    return Counter(prediction["id"] for prediction in deployment.predictions())


def readable(deployment: Deployment) -> bool:
    """Whether a broker that has just started has leaders for the topics."""
    try:
        counts(deployment)
    except BrokerError:
        return False
    return True


def blackhole(proxy: KafkaProxy) -> None:
    proxy.blackhole()
    time.sleep(12)  # longer than a transaction, a publish and the session may take
    proxy.forward()


def refuse(proxy: KafkaProxy) -> None:
    proxy.refuse()
    time.sleep(3)
    proxy.forward()


@pytest.mark.parametrize(
    "fault", [KafkaProxy.reset, KafkaProxy.half_open, blackhole, refuse], ids=lambda f: f.__name__
)
def test_a_worker_resumes_by_itself(
    deployment: Deployment, fault: Callable[[KafkaProxy], None]
) -> None:
    with KafkaProxy(deployment.settings.kafka.bootstrap) as proxy:
        settings = deployment.settings.replace(
            kafka={"bootstrap": proxy.address}, worker={"publish_timeout_s": 6.0}
        )
        with running(settings, NullModel(16)) as run:
            deployment.produce(texts(50))
            wait_until_idle(run, deployment.lag)
            deployment.produce(texts(500, start=50))
            fault(proxy)
            deployment.produce(texts(50, start=550))
            wait_until_idle(run, deployment.lag, timeout=120)
    assert counts(deployment) == {f"r{n}": 1 for n in range(600)}


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    folder = tmp_path / "kafka"
    folder.mkdir()
    with KafkaBroker(folder) as broker:
        yield broker


def healthz(port: int) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


def ends_within_bound(child: Child) -> int:
    child.send(signal.SIGTERM)
    return child.wait(30)  # 15 s are its own bound; the machine may be busy


def test_services_wait_for_a_broker_that_goes_away_and_end_without_it(
    own_broker: KafkaBroker, tmp_path: Path
) -> None:
    bootstrap, port = own_broker.start(), free_port()
    with Deployment(bootstrap, tmp_path / "home", metrics={"port": port}) as deployment:
        own_broker.stop()
        worker, index = deployment.worker("one"), deployment.index()
        for child in (worker, index):
            wait_for(
                "they name what they wait for",
                lambda child=child: (  # type: ignore[misc]
                    f"waiting for Kafka at {bootstrap} (KAFKA_BOOTSTRAP" in child.tail(200)
                ),
                timeout=90,
            )
        own_broker.start()
        deployment.produce(texts(50))
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=90)
        wait_for("the worker is well", lambda: healthz(port)[0] == 200, timeout=30)
        assert healthz(port)[1]["model"] == "null-16"

        own_broker.pause()
        time.sleep(33)
        own_broker.resume()
        deployment.produce(texts(50, start=50))
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=90)
        assert worker.running
        assert index.running

        own_broker.stop()
        wait_for("the worker is unwell", lambda: healthz(port)[0] == 503, timeout=120)
        assert ends_within_bound(index) == 0
        assert ends_within_bound(worker) == 0
        own_broker.start()
        wait_for("its partitions have leaders", lambda: readable(deployment), timeout=90)
        assert counts(deployment) == {f"r{n}": 1 for n in range(100)}


@pytest.mark.parametrize("command", ["status", "produce", "retrain"])
def test_a_command_fails_soon_and_names_the_broker(tmp_path: Path, command: str) -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    records = tmp_path / "records.jsonl"
    records.write_text('{"id": "a", "text": "x"}\n')
    child = Child(
        command,
        [sys.executable, "-m", "braid", command, *([str(records)] * (command == "produce"))],
        log=tmp_path / "log",
        env={"KAFKA_BOOTSTRAP": bootstrap, "BRAID_HOME": str(tmp_path)},
    ).start()
    assert child.wait(60) == 1
    assert f"no broker at {bootstrap} (KAFKA_BOOTSTRAP" in child.tail(1)
