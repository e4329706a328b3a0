"""The poison corpus of media: valid files of every kind, broken ones, and bombs.

    for case in corpus(seed=0): ...

Made anew from the seed each time, the same bytes for the same seed; nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.fuzz import pictures, sounds

CASES = 400
Kind = Literal["image", "audio"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaCase:
    """One file.

    Attributes:
        name: what it is; unique within a corpus.
        kind: the field of a record that carries it.
    """

    name: str
    kind: Kind
    data: bytes


def corpus(seed: int) -> Iterator[MediaCase]:
    """`CASES` files: all those made on purpose, then valid ones cut, flipped and spliced at random.

    They are made one at a time; the largest has 8 MB.
    """
    rng = np.random.default_rng(seed)
    made = 0
    valid: list[MediaCase] = []
    for case in made_on_purpose():
        made += 1
        yield case
        if "-" in case.name and case.name.split("/")[0] == "valid":
            valid.append(case)
    while made < CASES:
        first, second = (valid[int(i)] for i in rng.integers(len(valid), size=2))
        name, mutate = MUTATIONS[made % len(MUTATIONS)]
        yield MediaCase(
            name=f"{name}/{made}/{first.name.removeprefix('valid/')}",
            kind=first.kind,
            data=mutate(first.data, second.data, rng),
        )
        made += 1


def made_on_purpose() -> Iterator[MediaCase]:
    """The part of a corpus that does not depend on its seed."""
    groups: list[tuple[str, Kind, Callable[[], Iterator[tuple[str, bytes]]]]] = [
        ("valid", "image", pictures.every_format),
        ("valid", "audio", sounds.every_format),
        ("types", "image", pictures.types_of_tiff),
        ("half", "image", pictures.half_written),
        ("bombs", "image", pictures.bombs),
        ("hostile", "audio", sounds.hostile),
    ]
    for group, kind, make in groups:
        for name, data in make():
            yield MediaCase(name=f"{group}/{name}", kind=kind, data=data)


def _cut(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, max(2, len(data))))]


def _flip(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bits, half of the time in the header."""
    changed = bytearray(data)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 128)
    for place in rng.integers(reach, size=int(rng.integers(1, 9))):
        changed[int(place)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _lie(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A number of 16 or 32 bits in the first 200 bytes becomes an extreme one."""
    number = [b"\xff\xff", b"\0\0", b"\x7f\xff\xff\xff", b"\xff" * 4, b"\0" * 4][
        int(rng.integers(5))
    ]
    place = int(rng.integers(4, max(5, min(len(data), 200))))
    return data[:place] + number + data[place + len(number) :]


def _splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The first part of one file and the last part of another."""
    return data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]


def _repeat(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A piece of the file repeated within it."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 400))
    piece = data[start : start + length]
    return data[:start] + piece * int(rng.integers(2, 50)) + data[start:]


MUTATIONS: list[tuple[str, Callable[[bytes, bytes, np.random.Generator], bytes]]] = [
    ("cut", _cut),
    ("flip", _flip),
    ("lie", _lie),
    ("splice", _splice),
    ("repeat", _repeat),
]
