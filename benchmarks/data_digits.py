"""Handwritten and spoken digits: MNIST's pictures, the Free Spoken Digit Dataset's recordings.

The folder holds `mnist.npz` (images uint8[N, 28, 28], labels) and `fsdd.npz` (samples int16, all
recordings end to end; lengths, digit, speaker, take; 8 kHz). Any picture of a 7 goes with any
recording of a "seven": they are paired here, by a seed.

Shapes: N pictures, P pixels, K principal components, R recordings, n samples of a waveform.
"""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from braid.encoders.evaluation.corruptions import noisy
from braid.encoders.types import Sample
from braid.stream.datasets.sources import DIGIT_NAMES, DatasetError

RATE = 8_000
TASK = "digit"
TEST_TAKES = range(5, 10)
"""Known speakers are tested on takes 5 to 9 and trained on 10 to 49."""
TEST_PICTURES = 0.2  # share of the pictures of each digit that only tests see
CAPTIONS = (
    "a handwritten {}",
    "the digit {}",
    "a picture of a {}",
    "somebody says {}",
    "{}",
    "the number {}, written by hand",
)
SIDE = 28

Pixels = NDArray[np.uint8]
Wave = NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class Digits:
    """The two data sets, unpaired."""

    images_NHW: Pixels
    image_digit_N: NDArray[np.int64]
    waves: Sequence[Wave]
    digit_R: NDArray[np.int64]
    speaker_R: NDArray[np.str_]
    take_R: NDArray[np.int64]

    @property
    def speakers(self) -> list[str]:
        return sorted(set(self.speaker_R.tolist()))


def default_folder() -> Path:
    """`BRAID_DATA`/av-digits, else `../shared/data/av-digits` beside the checkout."""
    root = os.environ.get("BRAID_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return (Path(root) if root else beside) / "av-digits"


def load(folder: Path) -> Digits:
    """Read the folder.

    Raises:
        DatasetError: a file is missing, or is not what it should be.
    """
    try:
        pictures = np.load(folder / "mnist.npz", allow_pickle=False)
        sounds = np.load(folder / "fsdd.npz", allow_pickle=False)
        ends = np.cumsum(sounds["lengths"])
        digits = Digits(
            images_NHW=pictures["images"],
            image_digit_N=pictures["labels"].astype(np.int64),
            waves=np.split(sounds["samples"], ends[:-1]),
            digit_R=sounds["digit"].astype(np.int64),
            speaker_R=sounds["speaker"],
            take_R=sounds["take"].astype(np.int64),
        )
    except (OSError, KeyError, ValueError) as error:
        raise DatasetError(
            f"{folder} is no av-digits folder (mnist.npz and fsdd.npz): {error}"
        ) from error
    if digits.images_NHW.shape[1:] != (SIDE, SIDE) or int(ends[-1]) != len(sounds["samples"]):
        raise DatasetError(f"{folder}: pictures must be 28 x 28, lengths must add up")
    return digits


def held_out_pictures(digits: Digits) -> NDArray[np.bool_]:
    """Which pictures only tests see: the last `TEST_PICTURES` of each digit, bool[N]."""
    held_N = np.zeros(len(digits.images_NHW), dtype=bool)
    for digit in range(10):
        places = np.flatnonzero(digits.image_digit_N == digit)
        held_N[places[int(len(places) * (1 - TEST_PICTURES)) :]] = True
    return held_N


def reduced(images_NHW: Pixels, fit_on: NDArray[np.bool_], components: int = 4) -> Pixels:
    """The pictures as `components` principal components see them, the mean restored.

    The components are those of the pictures at `fit_on`; values are rounded and clipped to 0..255.
    """
    flat_NP = images_NHW.reshape(len(images_NHW), -1).astype(np.float64)
    mean_P = flat_NP[fit_on].mean(0)
    covariance_PP = np.cov((flat_NP[fit_on] - mean_P).T)
    _, vectors_PP = np.linalg.eigh(covariance_PP)  # eigenvalues ascend
    basis_PK = vectors_PP[:, -components:]
    back_NP = (flat_NP - mean_P) @ basis_PK @ basis_PK.T + mean_P
    pixels_NP: Pixels = np.clip(np.round(back_NP), 0, 255).astype(np.uint8)
    return pixels_NP.reshape(images_NHW.shape)


def known_split(digits: Digits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Recordings to train on and to test on, speakers known: by take."""
    test_R = np.isin(digits.take_R, TEST_TAKES)
    return np.flatnonzero(~test_R), np.flatnonzero(test_R)


def unseen_split(digits: Digits, speaker: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Recordings to train on and to test on, one speaker left out.

    Raises:
        DatasetError: no such speaker.
    """
    test_R = digits.speaker_R == speaker
    if not test_R.any():
        raise DatasetError(f"no speaker {speaker!r}; there are {', '.join(digits.speakers)}")
    return np.flatnonzero(~test_R), np.flatnonzero(test_R)


def paired(
    digits: Digits,
    images_NHW: Pixels,
    recordings: Sequence[int] | NDArray[np.int64],
    pictures: NDArray[np.bool_],
    *,
    seed: int,
    each: int = 1,
    captions: bool = False,
    snr_db: float | None = None,
) -> list[Sample]:
    """Each recording `each` times, with pictures of its digit drawn from `pictures`.

    Args:
        images_NHW: the pictures, as they are or `reduced`.
        captions: also a caption, one of `CAPTIONS`.
        snr_db: add white noise to the sound at this ratio.
    """
    rng = np.random.default_rng([seed, 77])
    by_digit = [np.flatnonzero(pictures & (digits.image_digit_N == d)) for d in range(10)]
    samples = []
    for number in recordings:
        digit = int(digits.digit_R[number])
        for turn in range(each):
            picture = int(rng.choice(by_digit[digit]))
            wave_n = digits.waves[number]
            if snr_db is not None:
                wave_n = noisy(wave_n, snr_db, rng)
            name = DIGIT_NAMES[digit]
            samples.append(
                Sample(
                    id=f"{digits.speaker_R[number]}-{digit}-{digits.take_R[number]}-{turn}",
                    text=str(rng.choice(CAPTIONS)).format(name) if captions else None,
                    image=png(images_NHW[picture]),
                    audio=wav(wave_n),
                    labels={TASK: name},
                )
            )
    return samples


def png(pixels_HW: Pixels) -> bytes:
    """A grey picture file."""
    out = io.BytesIO()
    Image.fromarray(pixels_HW).save(out, "PNG", compress_level=1)
    return out.getvalue()


def wav(wave_n: Wave) -> bytes:
    """A sound file of one channel at `RATE`."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(wave_n.astype("<i2").tobytes())
    return out.getvalue()
