"""Augmentation of waveforms in training.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .base import Array


@dataclass(frozen=True, kw_only=True)
class WaveAugmentation:
    """Another start, end, loudness and speed, white noise, and a few short silences.

    Attributes:
        rate: samples a second; `seconds`: the longest output.
        noise_db: range of signal-to-noise ratios, in dB, of the white noise;
            `noise_share` of the sounds get some.
        speed: range of speeds; the pitch goes with it.
        lead: up to this many seconds of silence are put in front.
        gaps: up to this many short silences are inserted.
        cut: up to this share is cut off at either end.
    """

    rate: int
    seconds: float
    noise_db: Sequence[float] = (8.0, 40.0)
    noise_share: float = 1.0
    speed: Sequence[float] = (0.85, 1.15)
    lead: float = 0.25
    gaps: int = 2
    cut: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise_db", "speed"):
            bounds = getattr(self, name)
            if not isinstance(bounds, Sequence) or len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be a lower and an upper bound, is {bounds!r}")
        for name, sound, limits in (
            ("speed", self.speed[0] > 0, "above 0"),
            ("noise_share", 0 <= self.noise_share <= 1, "from 0 to 1"),
            ("lead", self.lead >= 0, "at least 0"),
            ("gaps", self.gaps >= 0, "at least 0"),
            ("cut", 0 <= self.cut < 0.5, "at least 0 and below 0.5"),
        ):
            if not sound:
                raise ValueError(f"{name} must be {limits}, is {getattr(self, name)!r}")

    def __call__(self, value: Array, rng: np.random.Generator) -> Array:
        """int16[N] to int16 of another length; fewer than 2 samples stay as they are."""
        wave_N: Array = value.astype(np.float64)
        if self.cut > 0:
            # At each end, nothing is cut off with probability 1/2.
            front, back = (np.clip(rng.uniform(-1, 1, 2), 0, 1) * self.cut * len(wave_N)).astype(
                int
            )
            wave_N = wave_N[front : len(wave_N) - back]
        if len(wave_N) < 2:
            return value
        speed = rng.uniform(self.speed[0], self.speed[1])
        wave_N = np.interp(np.arange(0, len(wave_N) - 1, speed), np.arange(len(wave_N)), wave_N)
        loudness = float(np.sqrt(np.mean(wave_N**2)) + 1.0)
        wave_N = np.concatenate(
            [np.zeros(rng.integers(0, max(1, int(self.lead * self.rate)))), wave_N]
        )
        ratio_db = rng.uniform(self.noise_db[0], self.noise_db[1])
        wave_N = wave_N * rng.uniform(0.5, 1.2)
        if rng.random() < self.noise_share:
            noise = loudness * 10.0 ** (-ratio_db / 20.0)
            wave_N = wave_N + rng.normal(0.0, noise, len(wave_N))
        for _ in range(rng.integers(0, self.gaps + 1)):
            start = int(rng.integers(0, max(1, len(wave_N))))
            wave_N[start : start + self.rate // 8] = 0.0
        kept = wave_N[: int(self.seconds * self.rate)]
        peak = float(
            np.abs(kept).max(initial=0.0)
        )  # scaled down rather than clipped: the ratio stays
        return (kept * min(1.0, 32767.0 / max(peak, 1.0))).astype(np.int16)
