"""A label that no single modality carries: the exclusive or of what is written and what is shown.

A sentence speaks of an animal or of a tool, a picture shows something warm or cold in colour; the
label is "odd" if exactly one of animal and warm holds. Each alone says nothing about it.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from braid.encoders.types import Sample

TASK = "parity"
ANIMALS = ("cat", "dog", "horse", "mouse", "goat", "duck", "fox", "owl")
TOOLS = ("hammer", "saw", "drill", "chisel", "wrench", "file", "plane", "axe")
FRAMES = ("a {}", "the {}", "here is a {}", "this is the {}", "one {} more", "look, a {}")
SIDE = 32


def samples(count: int, seed: int) -> list[Sample]:
    """`count` of them, the four cases equally often."""
    rng = np.random.default_rng([seed, 2024])
    records = []
    for number in range(count):
        animal, warm = number % 2, number // 2 % 2
        noun = str(rng.choice(ANIMALS if animal else TOOLS))
        records.append(
            Sample(
                id=f"xor-{seed}-{number}",
                text=str(rng.choice(FRAMES)).format(noun),
                image=_picture(bool(warm), rng),
                labels={TASK: "odd" if animal != warm else "even"},
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
