"""Corrupts samples, one modality at a time, by a known amount."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import Sample


@dataclass(frozen=True, kw_only=True)
class CorruptionLevels:
    """The levels of a modality's corruption, mildest first, and their unit."""

    levels: tuple[float, ...]
    unit: str


LEVELS: Mapping[str, CorruptionLevels] = {
    "text": CorruptionLevels(levels=(0.25, 0.5, 0.75), unit="share of the words left out"),
    "image": CorruptionLevels(
        levels=(0.1, 0.25, 0.5), unit="standard deviation of the noise, white = 1"
    ),
    "audio": CorruptionLevels(levels=(10.0, 0.0, -6.0, -10.0), unit="dB signal to white noise"),
}


def noisy(wave_n: NDArray[np.int16], snr_db: float, rng: np.random.Generator) -> NDArray[np.int16]:
    """White noise added at a signal-to-noise ratio in decibels, from the mean powers of both.

    If the sum would clip, it is scaled down, so that the ratio stays.
    """
    signal_n = wave_n.astype(np.float64)
    power = float(np.mean(signal_n**2)) + 1e-9
    sum_n = signal_n + rng.normal(0.0, np.sqrt(power / 10 ** (snr_db / 10)), len(signal_n))
    peak = float(np.abs(sum_n).max(initial=0.0))
    return np.round(sum_n * min(1.0, 32767.0 / max(peak, 1.0))).astype(np.int16)


def corrupted(sample: Sample, modality: str, level: float, rng: np.random.Generator) -> Sample:
    """The sample with one modality corrupted; unchanged if it lacks the modality."""
    if getattr(sample, modality) is None:
        return sample
    return _CORRUPT[modality](sample, level, rng)


def _text(sample: Sample, level: float, rng: np.random.Generator) -> Sample:
    words = (sample.text or "").split()
    kept = [word for word in words if rng.random() >= level]
    return replace(sample, text=" ".join(kept or words[:1]))


def _image(sample: Sample, level: float, rng: np.random.Generator) -> Sample:
    with Image.open(io.BytesIO(sample.image or b"")) as picture:
        picture.thumbnail((512, 512))
        pixels = np.asarray(picture.convert("RGBA"), dtype=np.float64)
    alpha = pixels[:, :, 3:] / 255.0
    white = pixels[:, :, :3] * alpha + 255.0 * (1.0 - alpha)
    worse = np.clip(white + rng.normal(0.0, 255.0 * level, white.shape), 0, 255)
    out = io.BytesIO()
    Image.fromarray(worse.astype(np.uint8)).save(out, "PNG", compress_level=1)
    return replace(sample, image=out.getvalue())


def _audio(sample: Sample, level: float, rng: np.random.Generator) -> Sample:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(sample.audio or b""), dtype="int16", always_2d=True)
    worse = noisy(samples.astype(np.float64).mean(1).astype(np.int16), level, rng)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(worse.astype("<i2").tobytes())
    return replace(sample, audio=out.getvalue())


_CORRUPT: Mapping[str, Callable[[Sample, float, np.random.Generator], Sample]] = {
    "text": _text,
    "image": _image,
    "audio": _audio,
}
