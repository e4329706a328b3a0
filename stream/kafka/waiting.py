"""Waits for a broker that does not answer: exponential backoff, with a log line every few seconds.

A service waits without limit; a command gives up after kafka.broker_timeout_s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import Unreachable
from ..settings import Settings

log = logging.getLogger(__name__)
R = TypeVar("R")

FIRST_S, LONGEST_S = 0.2, 3.0
SAY_EVERY_S = 5.0
ATTEMPT_S = 5.0  # the bound of one attempt of a service, which is retried


class Waiting:
    """The pauses and log lines of one wait.

    Args:
        address: of the broker.
        clock: monotonic seconds.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address, self._clock = address, clock
        self._pause_s, self._next = FIRST_S, 0.0
        self._logged: float | None = None
        self.reason: str | None = None

    @property
    def due(self) -> bool:
        """Whether the pause after the last failure has passed."""
        return self._clock() >= self._next

    def failed(self, reason: str) -> float:
        """Note a failed attempt; returns the seconds until the next one."""
        now = self._clock()
        self.reason = reason
        if self._logged is None or now - self._logged >= SAY_EVERY_S:
            self._logged = now
            log.warning("waiting for Kafka at %s (KAFKA_BOOTSTRAP): %s", self._address, reason)
        pause_s, self._pause_s = self._pause_s, min(LONGEST_S, 2 * self._pause_s)
        self._next = now + pause_s
        return pause_s

    def over(self) -> None:
        """Note a successful attempt."""
        if self.reason is not None:
            log.info("Kafka at %s answers again", self._address)
        self._pause_s, self._next = FIRST_S, 0.0
        self._logged, self.reason = None, None


def attempt_s(settings: Settings) -> float:
    """How long one attempt of a service waits for the broker."""
    return min(ATTEMPT_S, settings.kafka.broker_timeout_s)


def until_reachable(settings: Settings, attempt: Callable[[float], R]) -> R:
    """The result of `attempt`, which is retried while it raises Unreachable.

    Args:
        attempt: takes the seconds that it may wait for the broker.
    """
    waiting, bound_s = Waiting(settings.kafka.bootstrap), attempt_s(settings)
    while True:
        try:
            result = attempt(bound_s)
        except Unreachable as error:
            time.sleep(waiting.failed(str(error)))
        else:
            waiting.over()
            return result


async def until_reachable_async(settings: Settings, attempt: Callable[[float], Awaitable[R]]) -> R:
    """As `until_reachable`, for asyncio."""
    waiting, bound_s = Waiting(settings.kafka.bootstrap), attempt_s(settings)
    while True:
        try:
            result = await attempt(bound_s)
        except Unreachable as error:
            await asyncio.sleep(waiting.failed(str(error)))
        else:
            waiting.over()
            return result
