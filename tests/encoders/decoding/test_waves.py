"""Sounds sound as a player plays them, or are refused: scales, channels, MP3 without a tag."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from braid.encoders.backbones.text import HashedWords
from braid.encoders.config import Limits
from braid.encoders.decoding.waves import decode_wave
from braid.encoders.errors import BadInput
from tests.fuzz.sounds import RATE, hostile, tone, untagged_mp3, written

LIMITS = Limits()
PLAIN = tone()[:, 0]


def decoded(data: bytes) -> np.ndarray:
    wave_N, rate = decode_wave(data, 6.0, LIMITS)
    assert rate == RATE
    return wave_N


def refused(data: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        decode_wave(data, 6.0, LIMITS)
    assert caught.value.field == "audio"
    assert len(caught.value.reason) < 500
    assert " object at " not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("before", [b"", bytes(1000), b"ID3\x04\0\0\0\0\0\0", b"junk" * 10])
def test_an_mp3_needs_no_tag(before: bytes) -> None:
    data = before + untagged_mp3()
    wave_N = decoded(data)
    reference_N, _ = soundfile.read(io.BytesIO(untagged_mp3()), dtype="float32")
    assert np.allclose(wave_N, reference_N, atol=1e-5)  # in blocks, or at once


def test_an_mp3_with_a_tag_is_the_same_sound() -> None:
    tag = b"ID3\x04\0\0\0\0\x01\x00" + b"TIT2\0\0\0\x05\0\0\3name" + bytes(113)
    assert np.array_equal(decoded(tag + untagged_mp3()), decoded(untagged_mp3()))


def test_an_mp3_cut_out_of_a_stream_is_heard_from_its_first_whole_frame() -> None:
    data = untagged_mp3(4.0)
    assert len(decoded(data[1500:])) > 3 * RATE // 2


@pytest.mark.parametrize("name", ["mp3-sync-only", "aac-like", "midi", "text", "nothing"])
def test_what_is_no_sound_is_refused(name: str) -> None:
    assert "none of WAV" in refused(dict(hostile())[name])


def test_formats_that_nobody_sends_are_refused() -> None:
    assert "none of WAV" in refused(written(tone(), "PAF", "PCM_16"))


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_cancel_are_not_silence(channels: int) -> None:
    signs_C = np.resize(np.array([1, -1], np.float32), channels)
    data = written(tone(channels=channels) * signs_C, "WAV", "FLOAT")
    assert np.allclose(np.abs(decoded(data)), np.abs(PLAIN), atol=1e-6)


def test_other_channels_are_averaged() -> None:
    rng = np.random.default_rng(0)
    both_NC = rng.normal(0, 0.1, (RATE, 2)).astype(np.float32)  # independent of each other
    one_NC = np.stack([PLAIN, 0 * PLAIN], axis=1)  # one is silent
    for wave_NC in (both_NC, one_NC, tone(channels=32)):
        data = written(wave_NC, "WAV", "FLOAT")
        assert np.array_equal(decoded(data), wave_NC.mean(axis=1))


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_floats_that_hold_integers_are_scaled(bits: int) -> None:
    data = written(PLAIN.astype(np.float64) * 2 ** (bits - 1), "WAV", "DOUBLE")
    assert np.allclose(decoded(data), PLAIN, atol=1e-5)


def test_an_overshoot_and_a_click_are_clipped_as_before() -> None:
    loud_N = PLAIN * 4.5  # peaks at 1.5
    assert np.array_equal(decoded(written(loud_N, "WAV", "FLOAT")), np.clip(loud_N, -1, 1))
    click_N = PLAIN.copy()
    click_N[100] = 3e38
    assert np.array_equal(decoded(written(click_N, "WAV", "FLOAT")), np.clip(click_N, -1, 1))


def test_floats_of_no_known_scale_are_refused() -> None:
    assert "no scale of 16, 24 or 32 bits" in refused(written(PLAIN * 1e20, "WAV", "FLOAT"))


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    seen: list[str] = []

    class Recording(HashedWords):
        def tokenize(self, text: str) -> list[int]:
            seen.append(text)
            return [1]

    for text in ("\ufeffa red bird", "a red bird", "a red\ufeff bird"):
        Recording().prepare(text, LIMITS)
    assert seen == ["a red bird", "a red bird", "a red\ufeff bird"]
