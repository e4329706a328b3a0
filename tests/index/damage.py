"""Damages a file as a failing disk may."""

from __future__ import annotations

import os
from pathlib import Path


def torn(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def flipped(file: Path, *, at: float = 2 / 3, bit: int = 2) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1 << bit
    file.write_bytes(data)


def flipped_first(file: Path) -> None:
    flipped(file, at=0, bit=7)


def flipped_last(file: Path) -> None:
    flipped(file, at=1 - 1e-9, bit=0)


def longer(file: Path) -> None:
    with open(file, "ab") as end:
        end.write(b"\0")


def zeroed(file: Path) -> None:
    """As a file system leaves a file whose blocks it never wrote."""
    file.write_bytes(bytes(file.stat().st_size))


def missing(file: Path) -> None:
    file.unlink()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


ALL = (
    torn,
    short,
    emptied,
    flipped,
    flipped_first,
    flipped_last,
    longer,
    zeroed,
    missing,
    a_folder,
)
