"""`braid bench`: what it measures, what it advises, and that it leaves nothing on the broker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from braid.stream.cli import bench
from braid.stream.datasets.sources import DatasetError
from braid.stream.errors import ConfigError
from braid.stream.kafka.admin import Admin
from braid.stream.settings import Settings


def report(encode: Mapping[str, float], *, prepare: float = 1000, ratio: float = 1) -> Any:
    row = {"prepare": prepare, "encode": encode}
    return {
        "model": "m",
        "cores": 8,
        "records": 10,
        "modalities": {"text": row},
        "offline": 50.0,
        "stream": 50.0 * ratio,
        "stream / offline": ratio,
    }


def test_it_advises_what_the_figures_show_and_nothing_else() -> None:
    settings = Settings(batch={"records": 32}, worker={"prepare_threads": 2})
    even = report({"1": 10, "8": 96, "32": 100})
    assert bench.advice(settings, even) == []
    (larger,) = bench.advice(settings, report({"8": 50, "32": 80, "128": 99, "512": 100}))
    assert larger.startswith("batch.records: 32 -> 128")
    (threads,) = bench.advice(settings, report({"8": 100}, prepare=30))
    assert threads.startswith("worker.prepare_threads: 2 -> 7")
    few = settings.replace(worker={"inflight_records": 40})
    (inflight,) = bench.advice(few, report({"32": 100}, ratio=0.5))
    assert inflight.startswith("worker.inflight_records: 40 -> 128")
    assert bench.advice(few, report({"32": 100}, ratio=0.95)) == []


@pytest.mark.kafka
@pytest.mark.slow
def test_it_measures_each_modality_and_the_stream_and_deletes_its_topics(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RATE_S", 0.05)
    settings = Settings(
        home=tmp_path, kafka={"bootstrap": kafka}, worker={"prepare_isolation": "thread"}
    )
    before = set(Admin(settings).partition_counts())
    stages = []
    result = bench.measure(settings, "null:4", None, 40, lambda stage, *rest: stages.append(stage))
    assert stages == ["encode text", "encode image", "encode audio", "embed", "stream"]
    assert {name: list(row["encode"]) for name, row in result["modalities"].items()} == {
        name: ["1", "8", "32"] for name in ("text", "image", "audio")
    }
    assert min(rate for row in result["modalities"].values() for rate in row["encode"].values()) > 0
    assert result["records"] == 40
    assert result["stream"] > 0
    assert result["offline"] > 0
    assert set(Admin(settings).partition_counts()) == before
    text = "\n".join(bench.lines(result))
    assert "encode in micro-batches of" in text
    assert f"{result['stream']:g} by a worker" in text


@pytest.mark.kafka
@pytest.mark.slow
def test_it_takes_a_folder_of_ones_own(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RATE_S", 0.05)
    settings = Settings(
        home=tmp_path, kafka={"bootstrap": kafka}, worker={"prepare_isolation": "thread"}
    )
    folder = tmp_path / "own"
    folder.mkdir()
    with pytest.raises(DatasetError, match="own holds no"):
        bench.measure(settings, "null:4", folder, 40, lambda *_: None)
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    result = bench.measure(settings, "null:4", folder, 9, lambda *_: None)
    assert list(result["modalities"]) == ["image"]
    assert result["records"] == 9


def test_without_a_champion_it_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model"):
        bench._folder(Settings(home=tmp_path), None)
