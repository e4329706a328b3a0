"""Waits for a broker that does not answer: exponential backoff, with ever rarer log lines.

A service waits without limit; a command gives up after kafka.broker_timeout_s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import BrokerError, StreamError, Unreachable
from ..settings import Settings
from .client import HOW

log = logging.getLogger(__name__)
R = TypeVar("R")

FIRST_S, LONGEST_S = 0.2, 3.0
FIRST_SAY_EVERY_S, MOST_SAY_EVERY_S = 5.0, 60.0  # the pauses between log lines double
ATTEMPT_S = 5.0  # the bound of one attempt of a service, which is retried


class Waiting:
    """The pauses and log lines of one wait.

    Args:
        address: of the server.
        clock: monotonic seconds.
        server: what it is, and the settings that name its address.
    """

    def __init__(
        self,
        address: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        server: tuple[str, str] = ("Kafka", HOW),
    ) -> None:
        self._clock = clock
        name, how = server
        self._server, self._how = f"{name} at {address}", how
        self.reason: str | None = None
        self._pause_s, self._next = FIRST_S, 0.0
        self._say_every_s, self._say_at = FIRST_SAY_EVERY_S, float("-inf")

    @property
    def due(self) -> bool:
        """Whether the pause after the last failure has passed."""
        return self._clock() >= self._next

    def failed(self, error: StreamError) -> float:
        """Note a failed attempt; returns the seconds until the next one."""
        now = self._clock()
        self.reason = str(error)
        if now >= self._say_at:
            self._say_at = now + self._say_every_s
            self._say_every_s = min(MOST_SAY_EVERY_S, 2 * self._say_every_s)
            reason = error.reason if isinstance(error, BrokerError) else error
            log.warning("waiting for %s %s: %s", self._server, self._how, reason)
        pause_s, self._pause_s = self._pause_s, min(LONGEST_S, 2 * self._pause_s)
        self._next = now + pause_s
        return pause_s

    def over(self) -> None:
        """Note a successful attempt."""
        if self.reason is not None:
            log.info("%s answers again", self._server)
        self.reason = None
        self._pause_s, self._next = FIRST_S, 0.0
        self._say_every_s, self._say_at = FIRST_SAY_EVERY_S, float("-inf")


def where(settings: Settings) -> str:
    """The broker's address, and the settings that name it."""
    return f"{settings.kafka.bootstrap} {HOW}"


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
            time.sleep(waiting.failed(error))
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
            await asyncio.sleep(waiting.failed(error))
        else:
            waiting.over()
            return result
