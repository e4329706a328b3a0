"""The formats of what workers publish: msgpack, or JSON for consumers that read no msgpack.

Readers tell them apart by the first byte: a JSON object begins with a brace, which begins no
msgpack map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Vector32, packed_array
from .packing import pack

DECIMALS = 12  # of a vector's numbers: float32 as it was, but for the last bits below 1e-5


@dataclass(frozen=True, slots=True)
class ValueFormat:
    """How a value is packed, and what stands for a vector in it, of one of the dtypes."""

    pack: Callable[[Any], bytes]
    array: Callable[[Vector32, str], Any]


def pack_json(value: Any) -> bytes:
    """A value as JSON in UTF-8; numbers that are not finite are null."""
    try:
        return _dumped(value)
    except ValueError:
        return _dumped(_finite(value))


def listed_array(array: Vector32, dtype: str) -> list[float]:
    """A vector as a list of numbers, rounded to the dtype."""
    rounded = np.asarray(array, dtype=dtype).astype(np.float64)
    numbers: list[float] = np.round(rounded, DECIMALS).tolist()
    return numbers


def _dumped(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


MSGPACK = ValueFormat(pack, packed_array)
JSON = ValueFormat(pack_json, listed_array)
FORMATS: Mapping[str, ValueFormat] = {"msgpack": MSGPACK, "json": JSON}
