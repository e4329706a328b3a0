"""Small pictures, sounds and samples for the tests, made here: no file is needed."""

from __future__ import annotations

import io
import struct
import wave
import zlib

import numpy as np
from PIL import Image

from braid.encoders import Sample

COLOURS = {
    "red": ((255, 0, 0), 200),
    "green": ((0, 255, 0), 500),
    "blue": ((0, 0, 255), 1200),
    "white": ((250, 250, 250), 3000),
}


def png(colour: tuple[int, ...] = (255, 0, 0), size: tuple[int, int] = (40, 30)) -> bytes:
    """A picture of one colour; four numbers make it transparent."""
    out = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def wav(hertz: float = 440.0, seconds: float = 0.4, rate: int = 8000, channels: int = 1) -> bytes:
    """A tone, 16 bits."""
    out = io.BytesIO()
    tone_N = 9000 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(tone_N.astype("<i2"), channels).tobytes())
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A png whose header claims a size; it holds no pixels worth the name."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 64)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def samples(count: int = 160, seed: int = 0) -> list[Sample]:
    """Coloured rectangles with a tone and a sentence; some lack one modality or the label."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    made: list[Sample] = []
    for i in range(count):
        name = names[i % 4]
        colour, hertz = COLOURS[name]
        shade = tuple(int(np.clip(c + rng.integers(-30, 30), 0, 255)) for c in colour)
        made.append(
            Sample(
                id=f"s{i}",
                text=f"a {name} thing, number {i % 7}" if i % 5 else None,
                image=png(shade) if i % 3 else None,
                audio=wav(hertz * (1 + 0.1 * rng.random())),
                labels={"colour": name} if i % 11 else {},
            )
        )
    return made
