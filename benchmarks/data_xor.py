"""Labels that no two of three modalities carry: parities of what records show.

A sentence speaks of an animal or of a tool, a picture shows something warm or cold in colour, a
sound is high or low; the label is "odd" if an odd number of animal, warm and high holds. Two of
them alone say nothing about it.

Shapes: n samples of a waveform.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.data_digits import RATE, wav
from braid.encoders.types import Sample

TASK = "parity"
ANIMALS = ("cat", "dog", "horse", "mouse", "goat", "duck", "fox", "owl")
TOOLS = ("hammer", "saw", "drill", "chisel", "wrench", "file", "plane", "axe")
FRAMES = ("a {}", "the {}", "here is a {}", "this is the {}", "one {} more", "look, a {}")
SIDE, SECONDS = 32, 0.3


def samples(count: int, seed: int, *, wrong: float = 0.0) -> list[Sample]:
    """`count` of them, all cases equally often.

    Each modality has a label of its own beside that of all: three encoders from scratch find no
    slope towards a parity of three.

    Args:
        wrong: share of the labels of all that are wrong, drawn by the seed.
    """
    rng = np.random.default_rng([seed, 2024])
    records = []
    for number in range(count):
        animal, warm, high = number % 2, number // 2 % 2, number // 4 % 2
        noun = str(rng.choice(ANIMALS if animal else TOOLS))
        own = {"animal": str(animal), "warm": str(warm), "high": str(high)}
        odd = (animal + warm + high) % 2 == 1
        records.append(
            Sample(
                id=f"xor-{seed}-{number}",
                text=str(rng.choice(FRAMES)).format(noun),
                image=_picture(bool(warm), rng),
                audio=_sound(bool(high), rng),
                labels={
                    TASK: "odd" if odd != (wrong > 0 and rng.random() < wrong) else "even",
                    **own,
                },
            )
        )
    return records


def _picture(warm: bool, rng: np.random.Generator) -> bytes:
    """A disc or a square of random size and place, red to yellow or blue to green, on grey."""
    picture = Image.new("RGB", (SIDE, SIDE), (int(rng.integers(90, 180)),) * 3)
    size = int(rng.integers(14, 24))
    x, y = (int(v) for v in rng.integers(2, SIDE - size - 1, 2))
    most, some, least = (int(rng.integers(low, low + 60)) for low in (190, 60, 10))
    draw = ImageDraw.Draw(picture)
    shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
    shape((x, y, x + size, y + size), fill=(most, some, least) if warm else (least, some, most))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _sound(high: bool, rng: np.random.Generator) -> bytes:
    """A tone of 900 to 1,500 Hz or of 200 to 400 Hz under as much white noise, as a wav file."""
    hertz = rng.uniform(900, 1500) if high else rng.uniform(200, 400)
    tone_n = np.sin(2 * np.pi * hertz * np.arange(int(SECONDS * RATE)) / RATE + rng.uniform(0, 6))
    wave_n = 4000 * tone_n + 2800 * rng.normal(size=len(tone_n))
    return wav(np.clip(wave_n, -32768, 32767).astype(np.int16))
