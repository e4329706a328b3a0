"""Stable sampling of a collection: ids are hashed onto a circle.

Milvus gives no random rows. A sample starts somewhere on the circle, by its seed, and takes the
rows that follow; what comes and goes changes it by as many rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

CIRCLE = 2**32
AT_ONCE = 4_000  # rows expected of one query; a server returns 16,384 at most


def lot_of(id: str) -> int:
    """Where a row is on the circle: the same for the same id, on any machine."""
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def start_of(seed: int) -> int:
    """Where a sample begins."""
    return lot_of(f"seed {seed}")


def arcs(start: int, *, alive: int, limit: int) -> Iterator[str]:
    """Expressions for the parts of the circle in turn, all of it once; each finds about `limit`."""
    width = max(1, CIRCLE * min(limit, AT_ONCE) // max(alive, 1))
    for offset in range(0, CIRCLE, width):
        first, last = start + offset, start + min(offset + width, CIRCLE) - 1
        if first // CIRCLE == last // CIRCLE:
            yield f"(lot >= {first % CIRCLE} and lot <= {last % CIRCLE})"
        else:
            yield f"(lot >= {first % CIRCLE} or lot <= {last % CIRCLE})"
