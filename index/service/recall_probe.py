"""Live recall probe: repeats a recent query with exact search.

The recall of an approximate index may drop as rows and queries change. The probe periodically takes
a recent query and compares the store's answer with exact search over all rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from ..errors import NotServing
from ..metrics import ServiceMetrics
from ..store import SupportsProbe
from .dependencies import RecentQueries, Serving


async def probe_once(
    serving: Serving, recent: RecentQueries, metrics: ServiceMetrics, rng: random.Random
) -> float | None:
    """Measure the recall of a recent query; None without a query, or if the store cannot."""
    if not isinstance(serving.store, SupportsProbe):
        return None
    chosen = recent.choose(serving.generation, rng)
    if chosen is None:
        return None
    query_D, k, vector = chosen
    recall = await asyncio.to_thread(serving.store.probe, query_D, k=k, vector=vector)
    metrics.of(serving.generation).recall(recall)
    return recall


async def probe_for_ever(
    serving: Callable[[], Serving],
    recent: RecentQueries,
    metrics: ServiceMetrics,
    *,
    every_s: float,
    rng: random.Random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Probe the serving generation every `every_s` seconds, until cancelled."""
    while True:
        await sleep(every_s)
        with contextlib.suppress(NotServing):
            await probe_once(serving(), recent, metrics, rng)
