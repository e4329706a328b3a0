"""Stable sampling of a collection: ids are hashed onto a circle.

Milvus has no random sampling. A sample starts at a position given by its seed and takes the rows
that follow on the circle, so that a write or a deletion changes it by at most one row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

CIRCLE = 2**32
AT_ONCE = 4_000  # expected rows of one query; a server returns at most 16,384


def lot_of(id: str) -> int:
    """Position of an id on the circle, the same on every machine."""
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def start_of(seed: int) -> int:
    """Start of a sample on the circle."""
    return lot_of(f"seed {seed}")


def arcs(start: int, *, alive: int, limit: int) -> Iterator[str]:
    """Expressions for consecutive arcs of the whole circle; each matches about `limit` rows."""
    width = max(1, CIRCLE * min(limit, AT_ONCE) // max(alive, 1))
    for offset in range(0, CIRCLE, width):
        first, last = start + offset, start + min(offset + width, CIRCLE) - 1
        if first // CIRCLE == last // CIRCLE:
            yield f"(lot >= {first % CIRCLE} and lot <= {last % CIRCLE})"
        else:
            yield f"(lot >= {first % CIRCLE} or lot <= {last % CIRCLE})"
