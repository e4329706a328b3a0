"""While records flow a second version becomes champion; nothing is restarted."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from index.client import Client
from index.errors import BadQuery
from tests.stream.conftest import coloured
from tests.stream.harness import Deployment, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


def braid(deployment: Deployment, *arguments: str, status: int = 0, **env: str) -> Any:
    """A command of the command line; its JSON, or what it says where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "stream", *arguments],
        env={"PATH": "/usr/bin:/bin", **deployment.settings.environment(), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr


def labelled(count: int, start: int = 0) -> list[dict[str, Any]]:
    samples = [coloured(number) for number in range(start, start + count)]
    return [
        {
            "id": sample.id,
            "text": sample.text,
            "image": sample.image,
            "audio": sample.audio,
            "labels": dict(sample.labels),
            "meta": {"half": number % 2},
        }
        for number, sample in enumerate(samples)
    ]


def test_promotion_reaches_running_processes_between_two_batches(deployment: Deployment) -> None:
    deployment.produce(labelled(60))
    first = braid(deployment, "retrain", "--preset", "tiny", "--json")
    assert first["champion"] is True
    worker = deployment.worker("one", model=None)
    index = deployment.index(model=None)
    pids = (worker.pid, index.pid)
    sent: list[str] = []
    enough = threading.Event()

    def flowing() -> Iterator[dict[str, Any]]:
        while not enough.is_set():
            record = labelled(1, start=60 + len(sent))[0]
            sent.append(record["id"])
            yield record

    flow = threading.Thread(target=deployment.produce, args=(flowing(),), kwargs={"per_second": 30})
    flow.start()
    with Client(deployment.url) as client:
        wait_for("records are embedded", lambda: searchable(client) > 60, timeout=90)
        second = braid(deployment, "retrain", "--preset", "tiny", "--heads-only", "--json")
        assert second["space"] == first["space"]
        assert second["champion"] is False
        assert client.status()["model"] == first["name"]
        promoted = braid(deployment, "models", "promote", str(second["version"]), "--json")
        assert promoted["seq"] == 2
        wait_for(
            "the index goes over", lambda: client.status()["model"] == second["name"], timeout=30
        )
        so_far = len(sent)
        wait_for("more records flow", lambda: len(sent) > so_far + 100, timeout=60)
        enough.set()
        flow.join()
        total = 60 + len(sent)
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=90)
        wait_for("all are searchable", lambda: searchable(client) == total, timeout=60)
        answer = client.search(text="a red tile", k=5, vector="image", filter={"half": 1})
        assert answer["model"] == second["name"]
        assert all(hit["meta"]["half"] == 1 for hit in answer["hits"])
        versions = {hit["model"] for hit in client.search(text="a red tile", k=1000)["hits"]}
        assert versions <= {first["name"], second["name"]}
        with pytest.raises(BadQuery) as caught:
            client.search(values=[1.0] * 64, space="s-of-another-model")
        assert caught.value.status == 409
    assert (worker.pid, index.pid) == pids
    assert worker.running
    assert index.running
    predictions = deployment.predictions()
    assert set(Counter(prediction["id"] for prediction in predictions).values()) == {1}
    assert len(predictions) == total
    made_by = Counter(prediction["model"] for prediction in predictions)
    assert set(made_by) == {first["name"], second["name"]}, made_by
    assert min(made_by.values()) > 50, made_by
    for prediction in predictions:
        assert set(prediction["tasks"]["colour"]["by"]) == {"text", "image", "audio", "fused"}


def searchable(client: Client) -> int:
    return int(client.status()["records"]) if client.ready() else -1
