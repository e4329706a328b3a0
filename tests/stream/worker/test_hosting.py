"""The workers of one process: whose failure ends it, and whose does not."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from braid.encoders.model.null import NullModel
from braid.stream.errors import RegistryError
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.registry.generations import GenerationRecord, GenerationRecords
from braid.stream.registry.handover import Handovers
from braid.stream.registry.promotion import drop, promote
from braid.stream.registry.versions import Registry
from braid.stream.retries import FIRST_S
from braid.stream.settings import Settings
from braid.stream.worker import supervisor
from braid.stream.worker.supervisor import Host
from tests.stream.cli.test_versions import gives_nan
from tests.stream.harness import Deployment, wait_for
from tests.stream.worker.test_canary import copied
from tests.stream.worker.test_hot_swap import labelled

OLD, NEW = {"g0001": "old"}, {"g0001": "old", "g0002": "new"}


class Idle:
    """In the place of a Worker: `fails` ends it, `stop` stops it."""

    def __init__(self, settings: Settings, model: Any, **options: Any) -> None:
        self.generation, self.model = options["generation"], model
        self.throttle = options["throttle"]
        self.busy = True
        self._end = threading.Event()
        self._error: Exception | None = None

    def run(self) -> None:
        self._end.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._end.set()

    def fails(self, words: str) -> None:
        self._error = RuntimeError(words)
        self._end.set()

    def offer(self, model: Any) -> None:
        self.model = model

    def show(self, showcase: Any) -> None: ...

    def set_shadow(self, trial: Any) -> None: ...


class Process:
    """A Host with its clock; `loaded` names the models that were loaded, `ended` what ended it."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.loaded: list[str] = []
        self.broken: set[str] = set()
        self.ended: list[BaseException | None] = []
        monkeypatch.setattr(supervisor, "Worker", Idle)
        monkeypatch.setattr(supervisor, "ensure", lambda settings, generation, **_: None)
        monkeypatch.setattr(supervisor, "handovers_of", lambda _, registry: Handovers(registry.log))
        monkeypatch.setattr(supervisor, "load", self._load)
        settings = Settings(home=home)
        self.registry = Registry(settings.models_dir)
        self.host = Host(
            settings,
            self.registry,
            slot="one",
            metrics=WorkerMetrics(),
            showcase=None,
            ended=self.ended.append,
            clock=lambda: self.now,
        )

    def worker(self, generation: str) -> Any:
        return self.host._hosted[generation].worker

    def fails(self, generation: str, words: str) -> None:
        """Its worker ends, and so does its thread."""
        self.worker(generation).fails(words)
        self.host._hosted[generation].thread.join()

    def _load(self, path: Path, **options: object) -> NullModel:
        self.loaded.append(path.name)
        if path.name in self.broken:
            raise RegistryError(f"{path.name} is damaged")
        model = NullModel(16)
        model.name = path.name
        return model


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(tmp_path, monkeypatch)


def test_a_worker_that_does_not_serve_fails_by_itself(process: Process) -> None:
    host = process.host
    host.follow(NEW, "g0001")
    live = process.worker("g0001")
    for pause_s in (FIRST_S, 2 * FIRST_S):
        process.fails("g0002", "NaN in record 7")
        for _ in range(3):  # no poll tries again before its time
            with pytest.raises(RegistryError, match=r"g0002: NaN in record 7 \(tried again"):
                host.follow(NEW, "g0001")
        assert "NaN in record 7" in host.problems["g0002"]
        process.now += pause_s
        host.follow(NEW, "g0001")
        assert host.problems == {}
    assert process.loaded == ["old", "new", "new", "new"]
    registry = host._metrics.registry
    assert registry.get_sample_value("braid_worker_failures_total", {"generation": "g0002"}) == 2
    assert process.worker("g0001") is live
    assert process.ended == []
    process.fails("g0001", "the device fell over")
    assert [str(error) for error in process.ended] == ["the device fell over"]
    host.close()


def test_a_generation_that_comes_to_serve_is_not_left_without_a_worker(process: Process) -> None:
    """A rollback to one whose worker failed in its grace."""
    process.host.follow(NEW, "g0002")
    process.fails("g0001", "a refusal too many")
    with pytest.raises(RegistryError, match="g0001: a refusal too many"):
        process.host.follow(NEW, "g0002")
    process.host.follow(NEW, "g0001")
    assert process.worker("g0001").model.name == "old"
    assert process.ended == []
    process.host.close()


def test_a_version_that_is_not_taken_is_not_loaded_at_every_poll(process: Process) -> None:
    process.host.follow(OLD, "g0001")
    process.broken = {"bad"}
    for _ in range(3):
        with pytest.raises(RegistryError, match="g0001: bad is damaged"):
            process.host.follow({"g0001": "bad"}, "g0001")
    assert process.loaded == ["old", "bad"]
    process.host.follow({"g0001": "better"}, "g0001")  # another one is tried at once
    assert process.worker("g0001").model.name == "better"
    process.host.close()


def test_only_what_is_built_leaves_the_machine_to_the_live_one(process: Process) -> None:
    """Not what is in its grace: after a rollback it answers, and must not be old."""
    host, generation_records = process.host, GenerationRecords(process.registry.log)

    def rests(generation: str) -> bool:
        throttle = process.worker(generation).throttle
        throttle.worked(1.0, now=0.0)
        return not throttle.ready(0.1)

    new = GenerationRecord(generation="g0002", model="new", space="s", state="building")
    generation_records.put(new)
    host.follow(NEW, "g0001")
    assert (rests("g0001"), rests("g0002")) == (False, True)
    process.worker("g0001").busy = False
    assert not rests("g0002")
    process.worker("g0001").busy = True
    host.follow(NEW, "g0002")  # the flip is there before what is said of both
    assert (rests("g0001"), rests("g0002")) == (False, False)
    generation_records.put(replace(new, state="serving"))
    generation_records.put(
        GenerationRecord(generation="g0001", model="old", space="r", state="grace", until_ms=9)
    )
    host.follow(NEW, "g0002")
    assert (rests("g0001"), rests("g0002")) == (False, False)
    host.close()


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_a_version_that_fails_at_a_record_leaves_the_live_one_alone(
    deployment: Deployment, three_versions: Registry
) -> None:
    """It passed its checks, and gives NaN on what it replays."""
    settings, registry = deployment.settings, three_versions
    golden = {"inputs": [], "outputs": [], "tolerance": 0.002}
    broken = copied(registry.path("tiny-0003"), registry, 4, golden=golden)
    gives_nan(registry.path(broken))
    promote(settings, registry, "tiny-0001")
    deployment.produce(labelled(20))
    worker = deployment.worker("one", model=None, BRAID_WORKER__POISON_WINDOW="10")
    wait_for("the first are committed", lambda: deployment.lag() == 0, timeout=90)
    entry = promote(settings, registry, broken)
    assert isinstance(entry, GenerationRecord)

    def said(words: str) -> int:
        return worker.tail(1000).count(words)

    wait_for("it fails", lambda: said("worker of g0002 stops, the others go on") == 1, timeout=60)
    deployment.produce(labelled(20, start=20))
    wait_for("it is tried again", lambda: said("tiny-0004 feeds generation g0002") > 1, timeout=60)
    wait_for("and fails again", lambda: said("worker of g0002 stops") > 1, timeout=60)
    assert "FloatingPointError in record, found by encode" in worker.tail(1000)
    drop(settings, registry, entry.generation, why="it fails")
    deployment.produce(labelled(20, start=40))
    wait_for("all is committed", lambda: deployment.lag() == 0, timeout=60)
    assert worker.running
    predictions = deployment.predictions()
    assert Counter(prediction["id"] for prediction in predictions) == {
        f"c{n}": 1 for n in range(60)
    }
    assert {prediction["model"] for prediction in predictions} == {"tiny-0001"}
