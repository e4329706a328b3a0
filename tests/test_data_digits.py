"""Digits: pairs agree, splits are disjoint, reduction and noise are what they say; XOR is fair."""

from __future__ import annotations

import io
import os
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks import data_digits, data_xor
from braid.stream.datasets.sources import DIGIT_NAMES, DatasetError


@pytest.fixture(scope="module")
def digits() -> data_digits.Digits:
    folder = data_digits.default_folder()
    if not folder.is_dir():
        assert not os.environ.get("CI"), f"{folder} must be there in CI"
        pytest.skip(f"no {folder}; set BRAID_DATA")
    return data_digits.load(folder)


def made(tmp_path: Path) -> Path:
    """A folder in the right layout: 40 pictures, 20 recordings of two speakers."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mnist.npz",
        images=rng.integers(0, 255, (40, 28, 28), dtype=np.uint8),
        labels=np.arange(40, dtype=np.uint8) % 10,
    )
    np.savez(
        tmp_path / "fsdd.npz",
        samples=rng.integers(-9000, 9000, 20 * 800).astype(np.int16),
        lengths=np.full(20, 800, dtype=np.int32),
        digit=np.arange(20, dtype=np.uint8) % 10,
        speaker=np.array(["ann", "bob"]).repeat(10),
        take=np.arange(20, dtype=np.uint8) % 20,
    )
    return tmp_path


def test_pairs_are_of_one_digit_and_told_apart(tmp_path: Path) -> None:
    loaded = data_digits.load(made(tmp_path))
    held = data_digits.held_out_pictures(loaded)
    train, test = data_digits.unseen_split(loaded, "bob")
    assert set(loaded.speaker_R[train]) == {"ann"}
    assert set(loaded.speaker_R[test]) == {"bob"}
    seen = data_digits.paired(
        loaded, loaded.images_NHW, train, ~held, seed=0, each=2, captions=True
    )
    assert len(seen) == 20
    assert len({sample.id for sample in seen}) == 20
    kept = {loaded.images_NHW[i].tobytes(): int(loaded.image_digit_N[i]) for i in range(40)}
    for sample in seen:
        name = str(sample.labels["digit"])
        with Image.open(io.BytesIO(sample.image or b"")) as picture:
            assert DIGIT_NAMES[kept[np.asarray(picture).tobytes()]] == name
        assert name in (sample.text or "")
        sound, rate = soundfile.read(io.BytesIO(sample.audio or b""), dtype="int16")
        assert rate == 8000
        digit = int(sample.id.split("-")[1])
        assert DIGIT_NAMES[digit] == name
        assert (sound == loaded.waves[digit]).all()


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no av-digits folder"):
        data_digits.load(tmp_path)
    loaded = data_digits.load(made(tmp_path))
    with pytest.raises(DatasetError, match="no speaker 'eve'; there are ann, bob"):
        data_digits.unseen_split(loaded, "eve")


def test_four_components_are_what_is_left(digits: data_digits.Digits) -> None:
    held = data_digits.held_out_pictures(digits)
    assert held.mean() == pytest.approx(0.2, abs=0.01)
    count = int((~held).sum())
    back = data_digits.reduced(digits.images_NHW, ~held)[~held].reshape(count, -1)
    real = digits.images_NHW[~held].reshape(count, -1).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(real.T))
    left = ((back - real) ** 2).sum(1).mean()
    rest = values[:-4].sum()
    assert 0.8 * rest < left <= rest, "the rest of the variance is gone, clipping brings some back"


def test_the_real_splits(digits: data_digits.Digits) -> None:
    train, test = data_digits.known_split(digits)
    assert (len(train), len(test)) == (2000, 250)
    assert set(digits.take_R[test]) == set(range(5, 10))
    assert digits.speakers == ["george", "jackson", "lucas", "nicolas", "theo"]
    assert len(data_digits.unseen_split(digits, "theo")[1]) == 450


def test_xor_is_fair_and_repeats() -> None:
    result = data_xor.samples(400, 3)
    assert result == data_xor.samples(400, 3)
    assert result != data_xor.samples(400, 4)
    words = Counter(
        (any(n in (s.text or "") for n in data_xor.ANIMALS), s.labels[data_xor.TASK])
        for s in result
    )
    assert set(words.values()) == {100}, "half of the animals are odd"
    warm: Counter[tuple[bool, object]] = Counter()
    for sample in result:
        with Image.open(io.BytesIO(sample.image or b"")) as picture:
            red, _, blue = np.asarray(picture, dtype=float).reshape(-1, 3).mean(0)
        warm[(red > blue, sample.labels[data_xor.TASK])] += 1
    assert set(warm.values()) == {100}


def test_a_parity_of_three_is_fair_and_two_of_three_say_nothing() -> None:
    result = data_xor.samples(800, 3)
    own = ("animal", "warm", "high")
    cases = Counter(
        tuple(str(sample.labels[name]) for name in (*own, data_xor.TASK)) for sample in result
    )
    assert set(cases.values()) == {100}
    assert {(case[:3].count("1") % 2 == 1) == (case[3] == "odd") for case in cases} == {True}
    pitches: Counter[tuple[bool, object]] = Counter()
    for sample in result:
        with wave.open(io.BytesIO(sample.audio or b"")) as file:
            sound_n = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        peak = np.abs(np.fft.rfft(sound_n)).argmax() * data_digits.RATE / len(sound_n)
        pitches[(bool(peak > 650), sample.labels["high"])] += 1
    assert set(pitches) == {(True, "1"), (False, "0")}
    wrong = data_xor.samples(2000, 3, wrong=0.05)
    parity = [sum(int(str(s.labels[name])) for name in own) % 2 == 1 for s in wrong]
    flipped = [
        odd != (s.labels[data_xor.TASK] == "odd") for odd, s in zip(parity, wrong, strict=True)
    ]
    assert 60 < sum(flipped) < 140
