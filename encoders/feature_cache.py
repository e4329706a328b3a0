"""Cache of encoders' features by content: a byte-bounded LRU, with an optional store behind it.

A key has two parts: a hash of the encoder (weights, options, preprocessing, precision, device) and
a hash of one prepared input, which is all that the encoder sees of a record. Equal keys therefore
give equal features, whatever else a record or a model version has; projections, fusion and heads
are not cached. A row is float32[F], the pooled features, followed by those of each token where the
fusion needs them.

Importing this module does not import torch.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
DIGEST = 24  # bytes
ENTRY_BYTES = 300  # of an entry beside its row: key, array object, links


def content_digest(value: NDArray[np.generic]) -> bytes:
    """A hash of an array's values, type and shape, in DIGEST bytes."""
    hasher = sha256(f"{value.dtype.str} {value.shape}\n".encode())
    hasher.update(np.ascontiguousarray(value).data)
    return hasher.digest()[:DIGEST]


class FeatureStore(Protocol):
    """A slower level behind the cache. Thread-safe; no call waits for it or raises."""

    def fetch(self, keys: Sequence[bytes]) -> None:
        """Ask for rows. Those that the store has reach `FeatureCache.add` later."""
        ...

    def keep(self, rows: Mapping[bytes, Row]) -> None:
        """Store rows, later and if there is room."""
        ...

    def close(self) -> None: ...


class FeatureCache:
    """The rows that were used last, within `max_bytes`. Thread-safe.

    Attributes:
        store: asked for rows that are not in memory; None: there is none.
        hits, misses: rows looked up, by modality.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.store: FeatureStore | None = None
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()
        self._rows: OrderedDict[bytes, Row] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and what holds them."""
        return self._nbytes

    def expect(self, keys: Sequence[bytes]) -> None:
        """Fetch those of `keys` that are not in memory, in the background: `get` follows soon."""
        if self.store is not None and (absent := [key for key in keys if key not in self._rows]):
            self.store.fetch(absent)

    def get(
        self, modality: str, keys: Sequence[bytes], width: int, token_width: int
    ) -> list[Row | None]:
        """The row of each key in memory, None for others.

        Args:
            width: F; a row of another width is forgotten, which a damaged store may cause.
            token_width: of each token that follows; 0: the pooled features only.
        """
        with self._lock:
            rows = [self._rows.get(key) for key in keys]
            for at, (key, row) in enumerate(zip(keys, rows, strict=True)):
                if row is None:
                    continue
                if _fits(row, width, token_width):
                    self._rows.move_to_end(key)
                else:
                    self._forget(key)
                    rows[at] = None
            hits = sum(row is not None for row in rows)
            self.hits[modality] += hits
            self.misses[modality] += len(rows) - hits
        return rows

    def put(self, rows: Mapping[bytes, Row]) -> None:
        """Keep new rows, also in the store. They must not change."""
        self.add(rows)
        if self.store is not None and rows:
            self.store.keep(rows)

    def add(self, rows: Mapping[bytes, Row]) -> None:
        """Keep rows in memory; one with a value that is not finite is left out."""
        fine = {key: row for key, row in rows.items() if np.isfinite(row).all()}
        with self._lock:
            for key, row in fine.items():
                self._forget(key)
                self._rows[key] = row
                self._nbytes += row.nbytes + ENTRY_BYTES
            while self._nbytes > self.max_bytes:
                self._forget(next(iter(self._rows)))

    def close(self) -> None:
        """Close the store."""
        if self.store is not None:
            self.store.close()

    def _forget(self, key: bytes) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._nbytes -= row.nbytes + ENTRY_BYTES


def _fits(row: Row, width: int, token_width: int) -> bool:
    tokens = row.size - width
    return tokens == 0 if token_width == 0 else tokens > 0 and tokens % token_width == 0
