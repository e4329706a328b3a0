"""Canaries on real workers: marked predictions, the champion's vectors, a challenger that fails."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from braid.encoders.presets import preset
from braid.encoders.training import train
from braid.stream.cli.main import app
from braid.stream.cli.reports import status
from braid.stream.kafka.schemas import decode_vector
from braid.stream.registry.canaries import Canaries, Canary
from braid.stream.registry.versions import Registry
from braid.stream.worker.canary_shadow import CanaryShadow
from tests.stream.cli.test_versions import gives_nan
from tests.stream.conftest import coloured
from tests.stream.harness import Deployment, wait_for
from tests.stream.worker.test_canary import copied

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


def versions(deployment: Deployment, tiny_model: Path) -> Registry:
    """The champion, one of another space, and one of that space that gives NaN: it was written so,
    and its golden batch does not show it."""
    registry = Registry(deployment.settings.models_dir, base="tiny")
    copied(tiny_model, registry, 1)
    samples = [coloured(number) for number in range(160)]
    other = registry.path("tiny-0002")
    train(samples, preset("tiny"), out=other, name=other.name, version=2, seed=5)
    broken = registry.path(copied(other, registry, 3, golden=EMPTY))
    gives_nan(broken)
    registry.promote("tiny-0001", generation="g0001")
    return registry


EMPTY = {"inputs": [], "outputs": [], "tolerance": 0.002}


def braid(deployment: Deployment, *arguments: str, status: int = 0) -> Any:
    """A `braid models` command; its JSON, and what it says on stderr where it should fail."""
    done = CliRunner().invoke(
        app, ["models", *arguments, "--json"], env=deployment.settings.environment()
    )
    assert done.exit_code == status, (done.output, done.exception)
    told = json.loads(done.stdout) if done.stdout else None
    return told if status == 0 else (told, done.stderr or str(done.exception))


class Traffic:
    """Labelled records of text; each id is sent once."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._numbers = itertools.count()
        self.sent: list[str] = []

    def send(self, count: int) -> list[str]:
        """So many records, committed by the worker when this returns; their ids."""
        before = len(self.sent)
        self._deployment.produce(itertools.islice(self._records(), count))
        wait_for("all is committed", lambda: self._deployment.lag() == 0, timeout=60)
        return self.sent[before:]

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Records all the time, while the block runs."""
        done = threading.Event()
        records, rate = self._records(until=done), {"per_second": 100}
        thread = threading.Thread(target=self._deployment.produce, args=(records,), kwargs=rate)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        wait_for("all is committed", lambda: self._deployment.lag() == 0, timeout=60)

    def _records(self, until: threading.Event | None = None) -> Iterator[dict[str, Any]]:
        while until is None or not until.is_set():
            sample = coloured(next(self._numbers))
            self.sent.append(sample.id)
            yield {"id": sample.id, "text": sample.text, "labels": dict(sample.labels)}


def test_a_challenger_of_another_space_serves_a_share_and_then_all(
    kafka: str, tmp_path: Path, tiny_model: Path
) -> None:
    limits = {"min_records": 40, "accuracy": 0.2}
    with Deployment(
        kafka, tmp_path, model={"name": "tiny"}, refresh={"canary": limits}
    ) as deployment:
        registry = versions(deployment, tiny_model)
        champion, other, broken = registry.names()
        assert registry.manifest(other).space != registry.manifest(champion).space
        traffic = Traffic(deployment)
        worker = deployment.worker("one", model=None)
        traffic.send(20)

        for wrong in ("0,4", "a", "-1", ""):
            _, printed = braid(deployment, "canary", other, f"--partitions={wrong}", status=1)
            assert "expected numbers from 0 to 3" in printed
        assert braid(deployment, "canary") is None

        # A share, without an end: exactly the chosen records are marked.
        began = braid(deployment, "canary", other, "--share", "0.5")
        wait_for("it begins", lambda: "canary 1 begins with" in worker.tail(200), timeout=60)
        _, printed = braid(deployment, "canary", broken, status=1)
        assert "canary 1 runs with tiny-0002" in printed
        ids = traffic.send(150)
        shadow = CanaryShadow(Canary(**{**began, "partitions": ()}), None)
        chosen = {id_ for id_ in ids if shadow.takes(id_, 0)}
        assert 40 < len(chosen) < 110
        marked = {
            prediction["id"]: prediction
            for prediction in deployment.predictions()
            if "canary" in prediction
        }
        assert set(marked) == chosen
        for prediction in marked.values():
            assert prediction["model"] == other
            assert prediction["canary"]["model"] == champion
            assert prediction["canary"]["tasks"]["colour"]["kind"] == "classification"
            assert prediction["canary"]["labels"]["colour"] in ("red", "blue")
        shown = braid(deployment, "canary")
        assert shown["state"] == "running"
        assert shown["comparison"]["records"] == len(chosen)
        assert shown["comparison"]["failures"] == 0
        assert shown["comparison"]["tasks"]["colour"]["labelled"] == len(chosen)
        told = status(deployment.settings)["canary"]
        assert (told["name"], told["share"]) == ("tiny-0002", 0.5)
        assert braid(deployment, "canary", "--stop")["state"] == "stopped"
        assert status(deployment.settings)["canary"] is None
        wait_for("it ends", lambda: "canary 1 with tiny-0002 ends" in worker.tail(200), timeout=60)
        after = set(traffic.send(40))

        # One that gives NaN: each of its records is predicted by the champion, and it fails.
        with traffic.flowing():
            failed, printed = braid(
                deployment,
                "canary",
                broken,
                "--share",
                "1",
                "--records",
                "60",
                "--promote",
                status=1,
            )
        assert (failed["state"], failed["comparison"]["records"]) == ("failed", 0)
        assert "tiny-0003 is not promoted: it failed at" in printed
        assert "not finite" in printed
        assert registry.champion() is not None
        assert worker.running

        # One that passes is promoted: into a generation of its own, for it is of another space.
        with traffic.flowing():
            ended = braid(
                deployment, "canary", other, "--share", "0.5", "--records", "60", "--promote"
            )
        assert (ended["state"], ended["number"]) == ("promoted", 3)
        assert ended["comparison"]["passed"] is True
        assert ended["comparison"]["records"] >= 60
        (entry,) = braid(deployment, "generations")
        assert (entry["generation"], entry["model"]) == ("g0002", other)
        assert [canary.state for canary in Canaries(registry.log).all()] == [
            "stopped",
            "failed",
            "promoted",
        ]

        predictions = deployment.predictions()
        assert Counter(prediction["id"] for prediction in predictions) == Counter(traffic.sent)
        assert not any(
            "canary" in prediction for prediction in predictions if prediction["id"] in after
        )
        failures = [
            prediction for prediction in predictions if "failed" in prediction.get("canary", {})
        ]
        assert len(failures) >= 60
        assert {
            (prediction["model"], prediction["canary"]["number"]) for prediction in failures
        } == {(champion, 2)}
        vectors = [decode_vector(message.value or b"") for message in deployment.vectors()]
        assert {vector.id for vector in vectors} == set(traffic.sent)
        space = registry.manifest(champion).space
        assert {(vector.model, vector.space) for vector in vectors} == {(champion, space)}
        assert deployment.read("dead-letters") == []
