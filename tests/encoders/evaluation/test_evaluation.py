"""The report on a version: figures, noise that is what it says, shuffles, the page."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from braid.encoders import Model, Sample
from braid.encoders.evaluation.corruptions import LEVELS, corrupted, noisy
from braid.encoders.evaluation.page import page
from braid.encoders.evaluation.report import report
from braid.encoders.model.torch_model import TorchModel
from tests.encoders.material import png, samples, wav


@pytest.fixture(scope="module")
def result(model: Model) -> dict[str, object]:
    assert isinstance(model, TorchModel)
    return report(model, [*samples(80, seed=5), Sample(id="bad", image=b"broken")])


def test_it_counts_and_measures_what_the_samples_have(result: dict) -> None:
    assert result["samples"] == 80
    assert result["left_out"] == {"bad input": 1}
    assert set(result["recall"]) == {f"{a}->{b}" for a in LEVELS for b in LEVELS if a != b}
    assert result["accuracy"]["colour"]["fused"] > 0.9
    assert len(result["map"]["points"]) == 80
    json.dumps(result, allow_nan=False)


def test_a_modality_that_is_used_is_missed_when_it_is_permuted(result: dict) -> None:
    shuffled = result["shuffled"]
    assert shuffled["as it is"]["colour"] == pytest.approx(result["accuracy"]["colour"]["fused"])
    assert min(one["colour"] for one in shuffled.values()) < shuffled["as it is"]["colour"] - 0.1


def test_noise_makes_the_disturbed_modality_worse_and_leaves_the_others(result: dict) -> None:
    before = result["accuracy"]["colour"]
    steps = result["robustness"]["audio"]
    assert [step["level"] for step in steps] == list(LEVELS["audio"].levels)
    worst = steps[-1]["accuracy"]["colour"]
    assert worst["audio"] < before["audio"]
    assert worst["text"] == before["text"]
    assert worst["image"] == before["image"]


@pytest.mark.parametrize("snr_db", [10.0, 0.0, -10.0])
def test_noise_has_the_ratio_that_it_says(snr_db: float) -> None:
    tone = (30000 * np.sin(np.arange(40000) / 7)).astype(np.int16)
    rng = np.random.default_rng(0)
    mixed = noisy(tone, snr_db, rng).astype(np.float64)
    # The share of the tone in the mix, by projection; the rest is noise.
    scale = float(mixed @ tone) / float(tone.astype(np.float64) @ tone)
    noise = mixed - scale * tone
    ratio = 10 * np.log10(np.mean((scale * tone) ** 2) / np.mean(noise**2))
    assert ratio == pytest.approx(snr_db, abs=0.3)
    assert np.abs(mixed).max() <= 32767


def test_each_modality_is_disturbed_by_itself() -> None:
    whole = Sample(id="1", text="a red bird on a tree", image=png(), audio=wav())
    rng = np.random.default_rng(0)
    assert corrupted(replace(whole, text=None), "text", 0.5, rng).text is None
    less = corrupted(whole, "text", 0.5, rng)
    assert 0 < len((less.text or "").split()) < 6
    assert (less.image, less.audio) == (whole.image, whole.audio)
    grey = corrupted(whole, "image", 0.25, rng)
    assert grey.image != whole.image
    loud = corrupted(whole, "audio", 0.0, rng)
    assert soundfile.info(io.BytesIO(loud.audio or b"")).samplerate == 8000


def test_the_page_shows_all_of_it_and_escapes(result: dict, tmp_path: Path) -> None:
    points = {**result["map"], "ids": ["<script>", *result["map"]["ids"][1:]]}
    html = page({**result, "map": points}, "braid: <tiny>")
    assert "<script>" not in html
    assert html.count("<svg") >= 8
    for words in ("text-&gt;image", "made worse", "calibration error", "permuted", "shared space"):
        assert words in html, words
