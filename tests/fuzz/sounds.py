"""Sounds of every container and subtype that libsndfile writes, and broken and hostile ones."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import soundfile

RATE = 8000
FULL = ("WAV", "FLAC", "OGG", "MP3")
SOME = ("WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")
FEW = ("NIST", "VOC", "PAF", "SVX", "IRCAM", "MAT4", "MAT5", "PVF", "HTK", "SDS", "AVR", "XI")


@lru_cache(maxsize=4)
def tone(seconds: float = 0.5, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """A tone of a third of full scale, float32[N, channels]."""
    wave_N = np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE) / 3
    return np.repeat(wave_N[:, None], channels, axis=1).astype(np.float32)


def written(
    wave_NC: np.ndarray, format: str, subtype: str | None = None, rate: int = RATE
) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave_NC, rate, format=format, subtype=subtype)
    return out.getvalue()


def every_format() -> Iterator[tuple[str, bytes]]:
    """A tone in each container, and in each subtype of the common ones."""
    most = dict.fromkeys(FULL, 99) | dict.fromkeys(SOME, 4) | dict.fromkeys(FEW, 1)
    for format, number in most.items():
        for subtype in list(soundfile.available_subtypes(format))[:number]:
            try:
                yield f"{format}-{subtype}", written(tone(), format, subtype)
            except (soundfile.SoundFileError, TypeError, ValueError):
                continue  # not at this rate, or this number of channels


def wav_header(
    *, rate: int = RATE, channels: int = 1, bits: int = 16, code: int = 1, claimed: int = 1000
) -> bytes:
    """The header of a WAV that claims what it likes."""
    align = channels * bits // 8 & 0xFFFF
    form = struct.pack("<HHIIHH", code, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", claimed)
    return b"RIFF" + struct.pack("<I", min(len(head) + claimed, 0xFFFFFFFF)) + head


def untagged_mp3(seconds: float = 1.0) -> bytes:
    """Frames alone: soundfile writes no ID3v2 tag."""
    return written(tone(seconds), "MP3", "MPEG_LAYER_III")


def long_ogg() -> bytes:
    """Twelve minutes of silence; libvorbis crashes where it gets them at once."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 1000, 1, format="OGG", subtype="VORBIS") as file:
        for _ in range(720):
            file.write(np.zeros(1000, np.float32))
    return out.getvalue()


def hostile() -> Iterator[tuple[str, bytes]]:
    """Headers that lie, sizes that are wrong, values that are extreme."""
    plain = written(tone(), "WAV", "PCM_16")
    floats = tone()[:, 0].copy()
    for name, value in (("nan", np.nan), ("inf", np.inf), ("huge", 3e38), ("denormal", 1e-42)):
        odd = floats.copy()
        odd[100] = value
        yield f"float-{name}", written(odd, "WAV", "FLOAT")
    yield "float-all-huge", written(floats * np.float32(1e38), "WAV", "FLOAT")
    yield "float-pcm-scale", written(floats * 32768, "WAV", "FLOAT")
    yield "double-pcm-24-scale", written(floats.astype(np.float64) * 2**23, "WAV", "DOUBLE")
    yield "antiphase", written(tone(channels=2) * np.array([1, -1], np.float32), "WAV", "PCM_16")
    yield "silence", written(np.zeros(4000, np.float32), "WAV", "PCM_16")
    yield "one-sample", written(tone()[:1], "WAV", "PCM_16")
    yield "many-channels", written(tone(0.05, 64), "WAV", "PCM_16")
    yield "fast", written(tone(), "WAV", "PCM_16", 384_000)
    yield "odd-rate", written(tone(), "WAV", "PCM_16", 44_101)
    yield "hour-flac", written(np.zeros(3600 * 1000, np.int16), "FLAC", "PCM_16", 1000)
    yield "twelve-minutes-ogg", long_ogg()
    for name, fields in {
        "no-channels": {"channels": 0},
        "channels-65535": {"channels": 65_535},
        "rate-0": {"rate": 0},
        "rate-max": {"rate": 0xFFFFFFFF},
        "bits-0": {"bits": 0},
        "bits-64": {"bits": 64},
        "bits-7": {"bits": 7},
        "code-odd": {"code": 0x1234},
        "claims-4GB": {"claimed": 0xFFFFFFFF},
        "claims-nothing": {"claimed": 0},
        "adpcm": {"code": 2, "bits": 4},
        "gsm": {"code": 49},
    }.items():
        yield f"wav-{name}", wav_header(**fields) + plain[44:]
    chunks = b"junk\0\0\0\0" * 200_000
    yield "wav-many-chunks", plain[:12] + chunks + plain[12:]
    yield "aiff-many-chunks", b"FORM\0\x10\0\0AIFF" + b"ANNO\0\0\0\0" * 200_000
    yield "caf-many-chunks", b"caff\0\1\0\0" + (b"free" + bytes(8)) * 200_000
    yield "wav-backward-chunk", plain[:12] + b"junk\xf0\xff\xff\xff" + plain[12:]
    yield "wav-no-data", plain[:36]
    yield "riff-only", b"RIFF\xff\xff\xff\xffWAVE"
    flac = bytearray(written(tone(), "FLAC", "PCM_16"))
    flac[21:26] = b"\x0f\xff\xff\xff\xff"  # the number of samples, of 36 bits
    yield "flac-many-samples", bytes(flac)
    mp3 = untagged_mp3()
    yield "mp3-untagged", mp3
    yield "mp3-tagged", b"ID3\x04\0\0\0\0\0\0" + mp3
    yield "mp3-tag-lies", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + mp3
    yield "mp3-tags", b"ID3\x04\0\0\0\0\0\0" * 100_000 + mp3
    yield "mp3-after-zeros", bytes(1000) + mp3
    yield "mp3-twice", mp3 + mp3[::-1]
    yield "mp3-long", mp3 * 700
    yield "mp3-sync-only", b"\xff\xfb\x90\0" * 1000
    yield "aac-like", b"\xff\xf1\x50\x80\x01\x1f\xfc" * 500
    ogg = written(tone(), "OGG", "VORBIS")
    yield "ogg-chained", ogg * 50
    yield "ogg-pages", ogg[:58] + b"OggS" * 100_000
    yield "midi", b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0"
    yield "nothing", b""
    yield "text", b"not a sound at all, and long enough for a header of any kind" * 4
