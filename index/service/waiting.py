"""Waits until the store reflects given offsets of `records` (read your own writes)."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping

from ..errors import BadQuery, OffsetsNotReached
from ..store import VectorStore

POLL_S = 0.01
SLOWEST_S = 0.1
OFFSETS = r"[0-9]{1,9}:[0-9]{1,18}(,[0-9]{1,9}:[0-9]{1,18})*"  # as in a record's URL


def read_offsets(text: str) -> dict[int, int]:
    """`0:42,3:7` as partition -> offset. Raises BadQuery."""
    if not re.fullmatch(OFFSETS, text):
        reason = f"must be partition:offset, several joined by commas, got {text[:60]!r}"
        raise BadQuery("min_offsets", reason)
    pairs = (pair.split(":") for pair in text.split(","))
    return {int(number): int(offset) for number, offset in pairs}


def missing(store: VectorStore, offsets: Mapping[int, int]) -> dict[int, int]:
    """The offsets that the store does not reflect yet."""
    progress = store.progress
    return {n: at for n, at in offsets.items() if progress.get(n, 0) < at}


async def reflected(store: VectorStore, offsets: Mapping[int, int], *, timeout_ms: int) -> None:
    """Wait until the store reflects the offsets. Raises OffsetsNotReached after `timeout_ms`."""
    timeout_s = timeout_ms / 1000
    began, pause_s = time.monotonic(), POLL_S
    while absent := missing(store, offsets):
        left_s = began + timeout_s - time.monotonic()
        if left_s <= 0:
            n, at = next(iter(absent.items()))
            reached = store.progress.get(n, 0)
            raise OffsetsNotReached(
                f"partition {n} is at {reached}, not yet at {at} after {timeout_s:g} s; try again"
            )
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(SLOWEST_S, pause_s * 1.2)  # hundreds of requests may wait
