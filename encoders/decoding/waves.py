"""Decodes sound files to one channel, within limits. Imports soundfile and numpy only.

Shapes: N samples, C channels.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Limits
from ..errors import BadInput

Array = NDArray[Any]

RATES = (1_000, 384_000)
"""Accepted sampling rates; a header with another one is broken or forged."""
CHANNELS = 32
FORMATS = {
    b"RIFF": "WAV",
    b"RIFX": "WAV",
    b"RF64": "WAV",
    b"riff": "W64",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"dns.": "AU",
    b"caff": "CAF",
    b"fLaC": "FLAC",
    b"OggS": "OGG",
    b"NIST": "NIST",
    b"ID3": "MP3",
}
"""Magic bytes of each format; an MP3 may also begin with a frame. libsndfile reads more formats,
most of them old and little tested."""
CANCELLED = 0.1
"""Share of the energy of a mean of independent channels below which the channels cancel."""
LOUDEST = 4.0
"""Floats above it are not an overshoot (12 dB), but samples of another scale."""
SCALES = (2.0**15, 2.0**23, 2.0**31)
"""Full scale of 16, 24 and 32 bits, for floats that hold integers."""
_BLOCK = 65_536  # frames read at once: nothing is allocated by the header's length
_CALLS = 100_000  # read calls of libsndfile; a file of 16 MiB without tiny chunks takes 300
_SYNC = 65_536  # bytes in which an MP3's first frame must come


def decode_wave(data: bytes, seconds: float, limits: Limits) -> tuple[Array, int]:
    """The first `seconds` of a sound file as float32[N] between -1 and 1, and its sampling rate.

    The length is read from the header and refused before any sample is decoded. Channels are
    averaged; where they cancel each other (a channel in antiphase), the loudest is taken.

    Raises:
        BadInput: none of `FORMATS`, too long, empty, not finite, of no known scale, or broken.
    """
    import soundfile

    try:
        data = _recognised(data)
        wave_N, energy_C, rate = _mean(data, seconds, limits)
        kept = float(np.square(wave_N, dtype=np.float64).sum())
        if kept < CANCELLED * float(energy_C.mean()) / len(energy_C):
            wave_N, _, _ = _mean(data, seconds, limits, channel=int(energy_C.argmax()))
    except BadInput:
        raise
    except soundfile.LibsndfileError as error:
        raise BadInput("audio", f"does not decode: {error.error_string}") from error
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError) as error:
        raise BadInput("audio", f"does not decode: {type(error).__name__}: {error}") from error
    if not np.isfinite(wave_N).all():
        raise BadInput("audio", "holds samples that are not finite")
    return np.clip(_scaled(wave_N), -1.0, 1.0), rate


def _mean(
    data: bytes, seconds: float, limits: Limits, channel: int | None = None
) -> tuple[Array, Array, int]:
    """The mean of the channels, or one of them, the energy of each, and the sampling rate."""
    import soundfile

    with soundfile.SoundFile(_Reader(data)) as sound:
        rate, frames, channels = int(sound.samplerate), int(sound.frames), int(sound.channels)
        if not RATES[0] <= rate <= RATES[1]:
            raise BadInput("audio", f"{rate} samples a second, allowed are {RATES}")
        if channels > CHANNELS:
            raise BadInput("audio", f"{channels} channels, the limit is {CHANNELS}")
        limit = limits.audio_seconds
        if frames > limit * rate:
            raise BadInput("audio", f"{frames / rate:.1f} s, the limit is {limit:g} s")
        left, blocks, energy_C = int(seconds * rate), list[Array](), np.zeros(channels)
        while left > 0:
            block_NC = sound.read(min(left, _BLOCK), dtype="float32", always_2d=True)
            if len(block_NC) == 0:
                break
            blocks.append(block_NC.mean(axis=1) if channel is None else block_NC[:, channel])
            if channels > 1:
                with np.errstate(over="ignore", invalid="ignore"):  # judged by the caller
                    energy_C += np.square(block_NC, dtype=np.float64).sum(axis=0)
            left -= len(block_NC)
    if not blocks:
        raise BadInput("audio", "holds no samples")
    return np.concatenate(blocks), energy_C, rate


def _scaled(wave_N: Array) -> Array:
    """Floats that hold integers, between -1 and 1. A few samples above 1 are an overshoot."""
    level = float(np.percentile(np.abs(wave_N), 99.9))
    if level <= LOUDEST:
        return wave_N
    scale = next((scale for scale in SCALES if level <= scale), None)
    if scale is None:
        raise BadInput("audio", f"samples of {level:.3g}: no scale of 16, 24 or 32 bits")
    scaled_N: Array = wave_N / np.float32(scale)
    return scaled_N


class _Reader(io.BytesIO):
    """A file in memory that ends after `_CALLS` reads.

    libsndfile reads each chunk by a call into Python; a file of empty chunks would take seconds.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._calls = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._calls += 1
        return super().read(size) if self._calls <= _CALLS else b""

    def readinto(self, buffer: Any, /) -> int:
        self._calls += 1
        return super().readinto(buffer) if self._calls <= _CALLS else 0


# MP3: libsndfile takes a buffer only where it begins with a frame or with a tag that is not empty

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBITS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # MPEG 1, and MPEG 2 and 2.5


def _recognised(data: bytes) -> bytes:
    """`data` from the first byte that libsndfile recognises.

    Raises:
        BadInput: it is none of `FORMATS`.
    """
    start = 0
    while data[start : start + 3] == b"ID3" and start < len(data):  # a tag, its length in 7 bits
        size = data[start + 6 : start + 10]
        start += 10 + sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(size))
    if start == 0 and data.startswith(tuple(magic for magic in FORMATS if magic != b"ID3")):
        return data
    for place in range(start, min(start + _SYNC, len(data) - 4)):
        if data[place] == 0xFF and (length := _frame(data, place)) and _frame(data, place + length):
            return data[place:]
    known = ", ".join(dict.fromkeys(FORMATS.values()))
    raise BadInput("audio", f"does not decode: none of {known}, or a broken one")


def _frame(data: bytes, place: int) -> int:
    """Bytes of the frame of an MP3 at `place`; 0 where there is none."""
    head = data[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # sync, layer III
        return 0
    version, kbits, rate = head[1] >> 3 & 3, (head[2] >> 4) - 1, head[2] >> 2 & 3
    if version == 1 or not 0 <= kbits < 14 or rate == 3:
        return 0
    first = version == 3
    share = 144_000 if first else 72_000
    return share * _KBITS[first][kbits] // _RATES[version][rate] + (head[2] >> 1 & 1)
