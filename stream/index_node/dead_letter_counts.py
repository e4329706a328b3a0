"""Counts the dead letters of the last hour for the index node, at most every KEPT_S."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from braid.index.errors import BadQuery

from ..dead_letters.letters import recent
from ..errors import StreamError
from ..settings import Settings

log = logging.getLogger(__name__)

KEPT_S = 15.0
BROKER_S = 5.0


def _count(settings: Settings) -> Mapping[str, Any]:
    return recent(settings, timeout_s=BROKER_S)


class DeadLetterCounts:
    """What `GET /v1/dead-letters` answers. All who ask at once share one count.

    Args:
        count: reads the topic.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        count: Callable[[Settings], Mapping[str, Any]] = _count,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._count, self._clock = count, clock
        self._counting: asyncio.Task[Mapping[str, Any]] | None = None
        self._began = 0.0

    async def __call__(self) -> Mapping[str, Any]:
        """Raises BadQuery (503): the broker does not answer."""
        old = self._counting is not None and self._clock() - self._began > KEPT_S
        if self._counting is None or (old and self._counting.done()):
            self._began = self._clock()
            self._counting = asyncio.create_task(asyncio.to_thread(self._count, self._settings))
        try:
            return await asyncio.shield(self._counting)
        except StreamError as error:
            log.warning("dead letters are not counted: %s", error)  # it names hosts
            reason = "does not answer: dead letters are not counted"
            raise BadQuery("broker", reason, status=503, retry_after_s=int(KEPT_S)) from error
