"""`braid models import`: a version in the registry, with or without a broker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from braid.encoders.errors import CheckpointError
from braid.stream.cli.main import app
from braid.stream.errors import LockError, Unreachable
from braid.stream.registry.versions import registry_of
from braid.stream.settings import Settings
from braid.stream.trainer.import_version import import_version
from braid.stream.trainer.lock import TrainerLock
from tests.encoders.joint_models import write_clap
from tests.encoders.test_bridging import captions
from tests.encoders.test_importing import write_sentence_transformer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_sentence_transformer(folder, layers=["Normalize"])
    return folder


def test_the_first_serves_and_the_next_waits(source: Path, tmp_path: Path) -> None:
    settings, told = Settings(home=tmp_path), {}

    def tell(settings: Settings, key: str, value: Mapping[str, Any]) -> None:
        told[key] = value["status"]

    first = import_version(settings, str(source), tell=tell)
    second = import_version(settings, str(source), tell=tell, dim=16)
    registry = registry_of(settings)
    champion = registry.champion()
    assert champion is not None
    assert (champion.name, champion.why) == ("braid-0001", "imported")
    assert (first.serves, second.serves) == (True, False)
    assert first.manifest.space != second.manifest.space
    assert registry.names() == ["braid-0001", "braid-0002"]
    assert registry.check("braid-0002").dim == 16
    assert told == {
        "version/braid-0001": "candidate",
        "champion": "champion",
        "version/braid-0002": "candidate",
    }


def test_without_a_broker_it_is_in_the_registry(source: Path, tmp_path: Path) -> None:
    def away(settings: Settings, key: str, value: Mapping[str, Any]) -> None:
        raise Unreachable("no broker")

    done = import_version(Settings(home=tmp_path), str(source), tell=away)
    assert done.serves
    assert registry_of(Settings(home=tmp_path)).names() == ["braid-0001"]


def test_not_while_a_trainer_runs(source: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with TrainerLock(settings), pytest.raises(LockError):
        import_version(settings, str(source))
    assert registry_of(settings).names() == []


def test_what_cannot_be_imported_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(CheckpointError):
        import_version(settings, str(tmp_path))
    registry = registry_of(settings)
    assert registry.names() == []
    assert registry.champion() is None


def test_the_command(source: Path, tmp_path: Path) -> None:
    line = ["--home", str(tmp_path), "models", "import", str(source), "--no-promote"]
    env = {"KAFKA_BOOTSTRAP": "127.0.0.1:1", "BRAID_KAFKA__BROKER_TIMEOUT_S": "1"}
    done = CliRunner(env=env).invoke(app, [*line, "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert (report["name"], report["status"], report["dim"]) == ("braid-0001", "candidate", 32)
    assert report["origin"]["type"] == "sentence-transformers"
    assert registry_of(Settings(home=tmp_path)).champion() is None


@pytest.mark.slow
def test_the_command_for_a_bridge(source: Path, tmp_path: Path) -> None:
    write_clap(tmp_path / "clap")
    (tmp_path / "captions.txt").write_text("\n".join(captions(200)))
    env = {"KAFKA_BOOTSTRAP": "127.0.0.1:1", "BRAID_KAFKA__BROKER_TIMEOUT_S": "1"}
    settings = Settings(home=tmp_path)
    for model in (source, tmp_path / "clap"):
        import_version(settings, str(model), tell=lambda *_: None)
    line = ["--home", str(tmp_path), "models", "bridge", "1", "braid-0002", "--on"]
    runner = CliRunner(env=env)
    refused = runner.invoke(app, [*line, str(tmp_path / "captions.txt")])
    assert "does not carry" in str(refused.exception)
    missing = runner.invoke(app, [*line, str(tmp_path / "none.txt")])
    assert "--on: " in str(missing.exception)
    done = runner.invoke(
        app, [*line, str(tmp_path / "captions.txt"), "--force", "--json"], catch_exceptions=False
    )
    report = json.loads(done.stdout)
    assert report["modalities"] == ["text", "audio"]
    assert report["bridge"]["of"] == ["braid-0001", "braid-0002"]
    assert (report["status"], report["champion"]) == ("candidate", False)
    assert registry_of(settings).check(report["name"]).space == report["space"]
