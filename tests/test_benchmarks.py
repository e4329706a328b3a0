"""The benchmarks run, on a little data: their rows are there, and add up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import benchmarks
from benchmarks import av_digits, index_exact, stamps, xor
from benchmarks.common import spread
from benchmarks.stamps import chrf
from braid.stream.datasets.sources import DatasetError
from tests.stream.conftest import COLOURS, picture, tone
from tests.test_data_digits import made


def test_spread_is_the_samples() -> None:
    assert spread([{"a": 1.0}, {"a": 3.0}])["a"] == {
        "mean": 2.0,
        "sd": pytest.approx(2**0.5, abs=1e-4),
    }
    assert spread([{"a": 1.0}])["a"] == {"mean": 1.0, "sd": 0.0}


def test_chrf_is_one_for_the_same_and_counts_case_for_nothing() -> None:
    assert chrf(["a red bird."], ["A red bird."]) == 1.0
    assert chrf(["xyz"], ["A red bird."]) == 0.0
    assert 0.2 < chrf(["a red fish."], ["A red bird."]) < 0.8


def small(folder: Path) -> list[str]:
    return ["--data", str(folder), "--seeds", "1", "--epochs", "1", "--json"]


@pytest.mark.slow
def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path)
    report = av_digits.main([*small(folder), "--part", "known"])
    assert json.loads(capsys.readouterr().out) == report
    assert {f"known, {snr:g} dB" for snr in av_digits.SNRS_DB} < report["rows"].keys()
    clean = report["rows"]["known, clean"]
    assert {"decision", "picture", "sound", "cross-attention"} < clean.keys()
    deaf = report["rows"]["known, sound missing"]
    assert "sound" not in deaf
    assert any(name.startswith("decision - picture") for name in deaf)
    for part, rows in (("unseen", 7), ("align", 1), ("sweep", 8)):
        assert len(av_digits.main([*small(folder), "--part", part])["rows"]) == rows
    with pytest.raises(SystemExit):
        av_digits.main([*small(folder), "--part", "nothing"])


@pytest.mark.slow
def test_digits_heard_by_a_pretrained_network_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the demo extra is not installed")
    command = [*small(made(tmp_path)), "--part", "pretrained-unseen"]
    one = av_digits.main(command)
    assert len(one["rows"]) == 7
    two = av_digits.main([*command, "--jobs", "2"])
    timed = "pretrained-unseen, one training"
    assert {name: entry for name, entry in one["rows"].items() if name != timed} == {
        name: entry for name, entry in two["rows"].items() if name != timed
    }


def pictures(folder: Path) -> Path:
    for number in range(60):
        colour = sorted(COLOURS)[number % 2]
        stem = folder / colour / f"{colour}-{number}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".png").write_bytes(picture(colour, number))
        stem.with_suffix(".wav").write_bytes(tone(colour, number))
        stem.with_suffix(".txt").write_text(f"a {colour} square, number {number}")
    return folder


@pytest.mark.slow
def test_stamps_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "pictures")
    flags = ["--data", str(folder), "--preset", "tiny", "--seeds", "1", "--json"]
    report = stamps.main([*flags, "--part", "recall"])
    assert json.loads(capsys.readouterr().out) == report
    assert report["trained_on"] + report["held_out"] == 60
    row = report["rows"]["recall"]
    assert row["category decision"]["mean"] == 1.0
    assert 0.0 <= row["text->image recall@1"]["mean"] <= row["text->image recall@10"]["mean"] <= 1.0


@pytest.mark.slow
def test_a_fusion_of_xor() -> None:
    report = xor.main(["--part", "early", "--seeds", "1", "--json"])
    assert report["rows"].keys() == {"early"}
    assert report["rows"]["early"]["decision"]["mean"] > 0.9


def test_a_command_line_names_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for main, option in ((xor.main, "--data"), (index_exact.main, "--seeds")):
        with pytest.raises(SystemExit):
            main([option, "2"])
        assert f"unrecognized arguments: {option} 2" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="no av-digits folder"):
        av_digits.main(["--data", str(tmp_path)])


def test_the_commands_of_the_documents_are_there() -> None:
    root = Path(benchmarks.__file__).parent
    texts = [path.read_text() for path in (root / "RESULTS.md", root.parent / "README.md")]
    named = set(re.findall(r"python -m benchmarks\.(\w+)", "\n".join(texts)))
    assert {"xor", "stamps", "av_digits", "index_exact"} <= named
    for name in named:
        text = (root / f"{name}.py").read_text()
        assert '\nif __name__ == "__main__":\n    main()\n' in text, name
