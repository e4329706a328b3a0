"""`braid demo` whole, with the tiny model on a folder made here, on the embedded broker."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from braid.stream.cli.demo import choose, run_demo
from braid.stream.datasets.sources import DatasetError, folder, held_out
from braid.stream.settings import load

COLOURS = {"warm": (230, 60, 30), "cold": (30, 60, 230), "green": (40, 200, 60)}
PER_CATEGORY = 40


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three categories of coloured squares; every fourth has no caption."""
    chance = random.Random(0)
    for category, colour in COLOURS.items():
        place = tmp_path / "pictures" / category
        place.mkdir(parents=True)
        for number in range(PER_CATEGORY):
            shade = tuple(max(0, min(255, part + chance.randint(-25, 25))) for part in colour)
            Image.new("RGB", (24, 24), shade).save(place / f"{category[0]}{number}.png")
            if number % 4:
                (place / f"{category[0]}{number}.txt").write_text(f"a {category} square {number}")
    return tmp_path / "pictures"


@pytest.mark.slow
@pytest.mark.redis
def test_the_main_job(
    pictures: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("KAFKA_BOOTSTRAP", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    assert run_demo(load(home=home), data=pictures, preset="tiny") == 0
    captured = capfd.readouterr()
    figures = json.loads(captured.out.splitlines()[-1])
    count = PER_CATEGORY * len(COLOURS)
    assert figures["records_in"] == count
    assert figures["vectors_indexed"] == count
    assert figures["predictions_out"] == count
    assert figures["dead_letters"] == 0
    assert figures["records_per_s"] > 0
    assert figures["dataset"] == "pictures"
    assert figures["model"] == "braid-0001"
    assert set(figures["accuracy"]) >= {"fused", "text", "image", "audio"}
    assert figures["accuracy"]["audio"] is None  # there is no sound
    assert figures["accuracy"]["image"] > 0.5  # a colour is easy to tell
    for way in ("text->image", "image->text"):
        at_1, at_5, at_10 = (figures["recall"][way][depth] for depth in ("1", "5", "10"))
        assert 0 <= at_1 <= at_5 <= at_10 <= 1
    assert "three best hits" in captured.out
    assert list(home.iterdir()) == []  # after success nothing is left
    unseen = [item for item in folder(pictures) if held_out(item.id)]
    assert f"{count - len(unseen)} labelled records, {len(unseen)} held out" in captured.err


def test_a_folder_is_named_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk" / "here").mkdir(parents=True)
    (tmp_path / "disk" / "here" / "a.txt").write_text("a")
    (tmp_path / "pictures").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "disk" / "here")
    names = {word: choose(Path(word)).name for word in (".", "..", "../../pictures")}
    assert names == {".": "here", "..": "disk", "../../pictures": "pictures"}


def test_without_the_stamps_the_digits_stand_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(*arguments: object) -> None:
        raise DatasetError("apt-get is not on this machine")

    monkeypatch.setattr("braid.stream.cli.demo.stamps", nothing)
    dataset = choose(None)
    assert (dataset.name, dataset.captions_name_label, len(dataset.items)) == ("digits", True, 1797)
    errors = capsys.readouterr().err
    assert "apt-get is not on this machine" in errors
    assert "no recall and no text accuracy" in errors
