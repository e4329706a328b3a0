"""Vectors in values: little-endian bytes with a tag of their type, or in JSON lists of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Vector32 = npt.NDArray[np.float32]
FLOAT32, FLOAT16 = "<f4", "<f2"


def packed_array(array: Vector32, dtype: str = FLOAT32) -> dict[str, Any]:
    """A vector as a map of its type, FLOAT32 or FLOAT16, and its bytes."""
    return {"dtype": dtype, "data": np.ascontiguousarray(array, dtype=dtype).tobytes()}


def unpacked_array(raw: Mapping[str, Any] | Sequence[float]) -> Vector32:
    """The vector of a message, as float32.

    Raises:
        ValueError, KeyError: `raw` is no vector.
    """
    if not isinstance(raw, Mapping):
        return _vector(raw)
    if raw["dtype"] not in (FLOAT32, FLOAT16):
        raise ValueError(f"dtype {raw['dtype']!r} is neither {FLOAT32} nor {FLOAT16}")
    return np.frombuffer(raw["data"], dtype=raw["dtype"]).astype(np.float32)


def _vector(numbers: Sequence[float]) -> Vector32:
    vector = np.array(numbers, dtype=np.float32)
    if vector.ndim != 1 or not isinstance(numbers, list):
        raise ValueError("a vector must be a list of numbers")
    return vector
