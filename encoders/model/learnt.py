"""What a version and its ancestors have learnt: hashes of records, in a file of its own.

    learnt.safetensors     keys: int64[n], the sorted hashes of 8 bytes; or, for more than `MOST`,
                           bits: uint8[BITS / 8], a bit for the first bits of each hash

A version writes its own records and those of its parent, so that a judge needs no other version.
More than `MOST` hashes become bits: then a few records count as learnt that are not, never the
other way round (a Bloom filter with one hash function; Bloom 1970).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from ..manifest import Manifest

FILE = "learnt.safetensors"
MOST = 1 << 22  # 32 MiB
BITS = 28  # 2^28 bits: 32 MiB


@dataclass(frozen=True, kw_only=True, eq=False)
class Learnt:
    """A set of hashes of 8 bytes.

    Attributes:
        keys: sorted, uint64[n]; empty where there are bits.
        bits: uint8[2^BITS / 8].
    """

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    bits: NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, keys: Iterable[int]) -> Learnt:
        return cls(keys=np.unique(np.fromiter(keys, np.uint64)))._bounded()

    def __contains__(self, key: int) -> bool:
        wanted = np.uint64(key)
        if self.bits is None:
            place = int(np.searchsorted(self.keys, wanted))
            return place < len(self.keys) and self.keys[place] == wanted
        byte, bit = _places(np.array([wanted]))
        return bool(self.bits[byte[0]] & bit[0])

    def __or__(self, other: Learnt) -> Learnt:
        if self.bits is None and other.bits is None:
            return Learnt(keys=np.union1d(self.keys, other.keys))._bounded()
        return Learnt(bits=self._as_bits() | other._as_bits())

    def to_bytes(self) -> bytes:
        """As `read` reads it."""
        if self.bits is None:
            return save({"keys": self.keys.view(np.int64)})
        return save({"bits": self.bits})

    @classmethod
    def read(cls, folder: Path, manifest: Manifest) -> Learnt | None:
        """That of a version folder; None: it has none, as imported versions that saw records,
        bridged ones, those written before, and those that descend from them."""
        if FILE not in manifest.files:
            return None
        tensors = load((folder / FILE).read_bytes())
        if "bits" in tensors:
            return cls(bits=tensors["bits"])
        return cls(keys=tensors["keys"].view(np.uint64))

    def _bounded(self) -> Learnt:
        return self if len(self.keys) <= MOST else Learnt(bits=self._as_bits())

    def _as_bits(self) -> NDArray[np.uint8]:
        if self.bits is not None:
            return self.bits
        bits = np.zeros(1 << (BITS - 3), np.uint8)
        byte, bit = _places(self.keys)
        np.bitwise_or.at(bits, byte, bit)
        return bits


def _places(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    first = (keys >> np.uint64(64 - BITS)).astype(np.int64)
    return first >> 3, (1 << (first & 7)).astype(np.uint8)
