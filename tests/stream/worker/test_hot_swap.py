"""While records flow a second version becomes champion, and four that cannot be; nothing is
restarted."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from braid.encoders.model.null import NullModel
from braid.encoders.types import Embedding, Prepared
from braid.index.client import Client
from braid.index.errors import BadQuery
from braid.stream.local.child import Child
from braid.stream.registry.versions import Registry
from tests import prepared
from tests.stream.cli.test_versions import altered, gives_nan
from tests.stream.conftest import coloured
from tests.stream.harness import Deployment, wait_for
from tests.stream.running import running, wait_until_idle

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


def braid(deployment: Deployment, *arguments: str, status: int = 0, **env: str) -> Any:
    """A command of the command line; its JSON, or what it says where it fails."""
    settings = deployment.settings
    done = prepared.run(
        "braid", *arguments, folder=settings.home, env={**settings.environment(), **env}
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

    flow = threading.Thread(target=deployment.produce, args=(flowing(),), kwargs={"per_second": 8})
    flow.start()
    with Client(deployment.url) as client:
        wait_for("records are embedded", lambda: searchable(client) > 60, timeout=90)
        second = braid(deployment, "retrain", "--preset", "tiny", "--heads-only", "--json")
        assert second["space"] == first["space"]
        assert second["champion"] is False
        assert client.status().model == first["name"]
        assert second["status"] == "not enough evidence"
        version = str(second["version"])
        printed = braid(deployment, "models", "promote", version, "--json", status=1)
        assert "(--force insists)" in printed
        promoted = braid(deployment, "models", "promote", version, "--force", "--json")
        assert promoted["seq"] == 2
        wait_for("the index goes over", lambda: client.status().model == second["name"], timeout=30)
        so_far = len(sent)
        wait_for("more records flow", lambda: len(sent) > so_far + 60, timeout=60)
        enough.set()
        flow.join()
        total = 60 + len(sent)
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=90)
        wait_for("all are searchable", lambda: searchable(client) == total, timeout=60)
        answer = client.search(text="a red tile", k=5, vector="image", filter={"half": 1})
        assert answer.model == second["name"]
        assert all(hit.meta["half"] == 1 for hit in answer.hits)
        versions = {hit.model for hit in client.search(text="a red tile", k=1000).hits}
        assert versions <= {first["name"], second["name"]}
        with pytest.raises(BadQuery) as caught:
            client.search(values=[1.0] * 64, space="s-of-another-model")
        assert caught.value.status == 409

        registry = Registry(deployment.settings.models_dir, base="braid")
        for seq, (spoil, words) in enumerate(SPOILT.items(), start=3):
            name = f"braid-{seq:04d}"
            shutil.copytree(registry.path(second["name"]), registry.path(name))
            altered(registry.path(name), name=name, version=seq)
            spoil(registry.path(name))
            serves(registry, name, seq)  # past all that would refuse it
            for child in (worker, index):
                wait_for(f"{child.name} says {words!r}", said(child, words), timeout=60)
                assert "all goes on as it was" in child.tail(50)
            deployment.produce(labelled(5, start=10_000 + 5 * seq))
            total += 5
            wait_for("it goes on", holds(client, total), timeout=60)
            assert client.search(text="a red tile", k=1).model == second["name"]
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


class Held(NullModel):
    """Its first batch waits for `go`; it prepares in a way of its own and refuses what did not.

    The space is that of the other null models: such a version recalls what is stored.
    """

    def __init__(self, way: str) -> None:
        super().__init__(16, way)
        self.preprocessing = f"prepared by {way}"
        self.begun, self.go = threading.Event(), threading.Event()

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        self.begun.set()
        assert self.go.wait(30)
        return super().encode(prepared)


def test_a_version_that_prepares_in_another_way_takes_over_between_two_batches(
    deployment: Deployment,
) -> None:
    """What the old ones prepared and did not encode is theirs; nothing is restarted."""
    old, middle, new = Held("old"), Held("middle"), Held("new")
    settings = deployment.settings.replace(
        batch={"records": 8, "wait_s": 0.01}, worker={"inflight_records": 100}
    )
    with running(settings, old) as run:

        def holds(records: int) -> Callable[[], bool]:
            return lambda: len(run.worker._ledger) == records

        def has(model: Held) -> Callable[[], bool]:
            return lambda: run.worker.model is model

        # The first batches wait, and behind them what else is prepared: none is encoded yet.
        for number, model in enumerate((old, middle, new)):
            if model is not old:
                run.worker.offer(model)
                wait_for("it is taken", has(model), timeout=10)
            deployment.produce([{"id": f"{number}-{n}", "text": f"{n}"} for n in range(30)])
            wait_for("they are read", holds(30 * (number + 1)), timeout=30)
        assert [model.begun.is_set() for model in (old, middle, new)] == [True, False, False]
        for model in (old, middle, new):
            model.go.set()
        wait_until_idle(run, deployment.lag)
        assert run.alive
    predictions = deployment.predictions()
    made_by = {prediction["id"]: prediction["model"] for prediction in predictions}
    assert len(predictions) == len(made_by) == 90
    assert {(id_[0], model) for id_, model in made_by.items()} == {
        ("0", "null-16-old"),
        ("1", "null-16-middle"),
        ("2", "null-16-new"),
    }


def serves(registry: Registry, name: str, seq: int) -> None:
    """Write it into the registry as champion, as a hand might."""
    before = registry.champion()
    assert before is not None
    now = {**asdict(before), "name": name, "version": seq, "seq": seq, "until_ms": None}
    del now["at_ms"]
    registry.log.append(lambda _: registry.log.event("champion", **now))


def said(child: Child, words: str) -> Callable[[], bool]:
    return lambda: words in child.tail(50)


def holds(client: Client, records: int) -> Callable[[], bool]:
    return lambda: searchable(client) == records


def flipped(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SPOILT: dict[Callable[[Path], None], str] = {
    flipped: "model.safetensors is damaged",
    lambda folder: altered(folder, config_sha256="0" * 64): "does not fit its sha256",
    lambda folder: altered(folder, dim=32): "dim is 32, the configuration says 64",
    gives_nan: "not finite",
}


def searchable(client: Client) -> int:
    return client.status().records if client.ready() else -1
