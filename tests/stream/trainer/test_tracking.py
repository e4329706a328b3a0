"""Training runs in a real MLflow server and in TensorBoard's files."""

from __future__ import annotations

import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import RestException

from braid.encoders.errors import TrainingError
from braid.encoders.manifest import Manifest
from braid.stream.errors import ConfigError
from braid.stream.registry.versions import registry_of
from braid.stream.settings import Settings, load
from braid.stream.trainer.job import Outcome
from braid.stream.trainer.mlflow_run import _refusals
from braid.stream.trainer.options import Options
from braid.stream.trainer.retrain import retrain
from braid.stream.trainer.runs import runs_of
from braid.stream.trainer.tracker import Result, Tracker, TrackerRefused
from braid.stream.trainer.tracking import _Feed, require_trackers
from braid.stream.trainer.window import Progress
from tests.mlflow_server import MlflowServer
from tests.stream.trainers import GATES, SPACES, read, tell

EPOCHS = 8  # of the preset tiny


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer("mlflow", tmp_path_factory.mktemp("mlflow")) as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def settings(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("tracked")
    return Settings(
        home=home,
        refresh={"gates": GATES, "compatibility": SPACES},
        model={"device": "cpu"},
        tracking={"mlflow": server.address, "tensorboard": home / "events", "timeout_s": 60},
    )


def train(settings: Settings, progress: Progress | None = None, **options: Any) -> Outcome:
    asked = Options(**{"preset": "tiny", **options})
    return retrain(settings, asked, progress=progress, read=read, tell=tell)


@pytest.fixture(scope="module")
def outcomes(settings: Settings) -> list[Outcome]:
    """The first version; its successor, whose run was stopped and resumed; and a failed run."""
    (settings.home / "patient.toml").write_text(f"patience = {EPOCHS}")  # validates each epoch
    patient: dict[str, Any] = {"config_file": str(settings.home / "patient.toml")}
    with redirect_stdout(io.StringIO()) as printed:
        first = train(settings, reason="for the tests", **patient)
    assert printed.getvalue() == "", "a command's own output, which may be JSON"

    def stop(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if (stage, done) == ("train", 3):
            raise KeyboardInterrupt

    heads: dict[str, Any] = {"heads_only": True, "seed": 1, **patient}
    with pytest.raises(KeyboardInterrupt):
        train(settings, stop, **heads)

    def fail(stage: str, *_: object) -> None:
        if stage == "train":
            raise TrainingError("made to fail by https://user:secret@host")

    second = train(settings, **heads)
    with pytest.raises(TrainingError):
        train(settings, fail, seed=2)
    return [first, second]


@pytest.fixture(scope="module")
def runs(settings: Settings, outcomes: list[Outcome]) -> dict[str, Any]:
    """What MLflow has, by the names of the versions."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=settings.tracking.mlflow)
    experiment = client.get_experiment_by_name("braid")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags["braid.version"]: run for run in found} | {"count": len(found)}


def curve(settings: Settings, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=settings.tracking.mlflow)
    return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]


def losses(manifest: Manifest) -> list[tuple[int, float]]:
    return list(enumerate(manifest.metrics["losses"], start=1))


@pytest.mark.slow
def test_mlflow_has_a_run_of_each_training(
    settings: Settings, outcomes: list[Outcome], runs: dict[str, Any]
) -> None:
    first, run = outcomes[0].manifest, runs["braid-0001"]
    assert runs["count"] == 3
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "braid-0001"
    assert run.data.params["model.dim"] == str(first.dim)
    assert run.data.params["model.encoders.text.kind"] == "hashed"
    assert run.data.params["run.reason"] == "for the tests"
    assert curve(settings, run, "train/loss") == losses(first)
    held_out = list(enumerate(first.metrics["held_out"], start=1))
    assert curve(settings, run, "train/held_out") == held_out
    assert len(curve(settings, run, "refit/loss")) == len(first.metrics["refit"]["losses"])
    recall = first.metrics["validation"]["recall"]["text->image"]["1"]
    assert run.data.metrics["validation/recall/text to image/1"] == recall
    tags = run.data.tags
    assert tags["braid.run"] == outcomes[0].run
    assert (tags["braid.status"], tags["braid.space"]) == ("champion", first.space)
    assert tags["braid.decision"] == "not judged"


@pytest.mark.slow
def test_a_resumed_run_is_one_run(
    settings: Settings, outcomes: list[Outcome], runs: dict[str, Any]
) -> None:
    second, run = outcomes[1].manifest, runs["braid-0002"]
    assert outcomes[1].resumed
    assert run.info.status == "FINISHED"
    assert curve(settings, run, "train/loss") == losses(second)
    assert run.data.params["run.heads_only"] == "True"
    assert run.data.params["run.champion"] == "braid-0001"
    tags = run.data.tags
    assert tags["braid.decision"] == second.verdict["decision"]
    assert tags["braid.verdict"] == second.verdict["reason"]
    gate = second.verdict["gates"][0]
    logged = run.data.metrics[f"judge/{gate['metric'].replace(':', '_')}/challenger"]
    assert logged == pytest.approx(gate["challenger"])


@pytest.mark.slow
def test_mlflow_has_the_model_card(
    settings: Settings, runs: dict[str, Any], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=settings.tracking.mlflow)
    run = runs["braid-0002"].info.run_id
    text = Path(client.download_artifacts(run, "model_card.md", str(tmp_path))).read_text()
    assert "# braid-0002\n" in text
    assert f"braid models pull {registry_of(settings).uri_of('braid-0002')}\n" in text


@pytest.mark.slow
def test_a_run_that_failed_is_a_failed_one(settings: Settings, runs: dict[str, Any]) -> None:
    run = runs["braid-0003"]
    assert run.info.status == "FAILED"
    assert run.data.tags["braid.error"] == "made to fail by https://***@host"
    assert client_artifacts(settings, run) == []


def client_artifacts(settings: Settings, run: Any) -> list[Any]:
    from mlflow import MlflowClient

    return list(MlflowClient(tracking_uri=settings.tracking.mlflow).list_artifacts(run.info.run_id))


@pytest.mark.slow
def test_tensorboard_has_the_same_curves(settings: Settings, outcomes: list[Outcome]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert settings.tracking.tensorboard is not None
    folders = {folder.name.split()[0]: folder for folder in settings.tracking.tensorboard.iterdir()}
    assert sorted(folders) == ["braid-0001", "braid-0002", "braid-0003"]
    for outcome in outcomes:
        manifest = outcome.manifest
        events = EventAccumulator(str(folders[manifest.name]))
        events.Reload()
        curve = [(one.step, one.value) for one in events.Scalars("train/loss")]
        assert [step for step, _ in curve] == list(range(1, EPOCHS + 1))
        expected = [loss for _, loss in losses(manifest)]
        assert [value for _, value in curve] == pytest.approx(expected, rel=1e-6)
        [text] = events.Tensors("model card/text_summary")
        assert manifest.name in text.tensor_proto.string_val[0].decode()
        assert "configuration/text_summary" in events.Tags()["tensors"]


@pytest.fixture
def away() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@pytest.mark.slow
def test_a_tracker_that_never_answers_does_not_stop_the_training(
    away: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.stream.trainer.tracking.PAUSE_S", 0.01)
    for name, address in (("silent", away), ("closed", "http://127.0.0.1:1")):
        settings = Settings(
            home=tmp_path / name,
            model={"device": "cpu"},
            tracking={"mlflow": address, "tensorboard": "/dev/null/events", "timeout_s": 0.2},
        )
        outcome = train(settings)
        assert outcome.serves
        assert [run.state for run in runs_of(settings).all()] == ["done"]
        assert "tracking.mlflow has not taken all of this run" in caplog.text
        assert "tracking.tensorboard: " in caplog.text
        caplog.clear()


class Recorded:
    """Stands for a tracker whose server fails a number of times, or refuses a step."""

    def __init__(self, failures: int = 0, refused: int | None = None) -> None:
        self.failures, self.refused = failures, refused
        self.steps: list[int] = []
        self.ended = threading.Event()

    def figures(self, at_ms: int, step: int, figures: Mapping[str, float]) -> None:
        if step == self.refused:
            raise TrackerRefused("no such metric")
        if self.failures > 0:
            self.failures -= 1
            raise OSError("away")
        self.steps.append(step)

    def end(self, result: Result) -> None:
        self.ended.set()


def figure(step: int, tracker: Tracker) -> None:
    tracker.figures(0, step, {})


def fed(tracker: Recorded) -> None:
    feed = _Feed("mlflow", lambda: tracker)
    for step in range(5):
        feed.put(partial(figure, step))
    feed.put(lambda tracker: tracker.end(Result(state="FINISHED", tags={}, figures={})))
    feed.start()
    assert tracker.ended.wait(60)
    feed.join(0)
    feed.close(0)


def test_a_call_that_failed_is_made_again_in_its_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("braid.stream.trainer.tracking.PAUSE_S", 0.01)
    tracker = Recorded(failures=3)
    with caplog.at_level(logging.WARNING):
        fed(tracker)
    assert tracker.steps == [0, 1, 2, 3, 4]
    assert caplog.text.count("tracking.mlflow: away; the training goes on") == 1


def test_the_end_of_a_run_is_sent_again_until_the_time_is_over() -> None:
    class Ended(Recorded):
        def end(self, result: Result) -> None:
            self.figures(0, 9, {})  # fails as often as it is told
            super().end(result)

    tracker = Ended(failures=1)
    feed = _Feed("mlflow", lambda: tracker)
    feed.start()
    feed.put(lambda tracker: tracker.end(Result(state="FINISHED", tags={}, figures={})))
    feed.close(time.monotonic() + 60)
    assert tracker.ended.is_set()
    assert tracker.steps == [9]


@pytest.mark.parametrize(
    ("status", "refused"), [(400, True), (404, True), (429, False), (503, False)]
)
def test_a_busy_server_refuses_nothing(status: int, refused: bool) -> None:
    class Answer(RestException):
        def get_http_status_code(self) -> int:
            return status

    with pytest.raises(TrackerRefused if refused else Answer), _refusals():
        raise Answer({"error_code": "INTERNAL_ERROR", "message": "busy"})


def test_a_call_that_is_refused_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Recorded(refused=2)
    with caplog.at_level(logging.WARNING):
        fed(tracker)
    assert tracker.steps == [0, 1, 3, 4]
    assert "tracking.mlflow: no such metric" in caplog.text


def test_calls_beyond_the_bound_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braid.stream.trainer.tracking.MAX_CALLS", 3)
    tracker = Recorded()
    feed = _Feed("mlflow", lambda: tracker)
    for step in range(5):
        feed.put(partial(figure, step))
    feed.start()
    feed.close(time.monotonic() + 60)
    assert tracker.steps == [0, 1, 2]


@pytest.mark.parametrize("setting", ["mlflow", "tensorboard"])
def test_a_tracker_without_its_package_names_the_extra(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.stream.trainer.tracking.find_spec", lambda name: None)
    value = "http://127.0.0.1:5000" if setting == "mlflow" else tmp_path / "events"
    settings = load(home=tmp_path, tracking={setting: value})
    words = rf"tracking\.{setting}: {setting} is not .* pip install 'braid-stream\[{setting}\]'"
    with pytest.raises(ConfigError, match=words):
        train(settings)
    assert runs_of(settings).all() == []
    require_trackers(load(home=tmp_path))


def test_an_address_that_is_none_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.mlflow"):
        load(tracking={"mlflow": "127.0.0.1:5000"})


def test_without_trackers_their_packages_are_not_imported() -> None:
    code = "import json, sys, braid.stream.trainer.job; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert not {"mlflow", "tensorboard", "huggingface_hub"} & set(json.loads(done.stdout))
