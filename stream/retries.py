"""Exponential backoff, by what was tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

FIRST_S = 5.0  # as often as the registry is looked at anyway
LONGEST_S = 300.0

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why something failed, and how long it is left alone after that."""

    reason: str
    pause_s: float
    until: float

    def __str__(self) -> str:
        return f"{self.reason} (tried again {self.pause_s:g} s later)"


class Retries(Generic[T]):
    """Failures, by what was tried. Used by one thread.

    Args:
        clock: monotonic seconds.
        first_s: the first pause.
        longest_s: the longest one.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        first_s: float = FIRST_S,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._clock = clock
        self._first_s, self._longest_s = first_s, longest_s
        self._failures: dict[T, Failure] = {}

    def failed(self, what: T, reason: str) -> Failure:
        """It failed now. Each pause is twice as long as the one before, unless it went well for
        longer than the longest in between."""
        now, before = self._clock(), self._failures.get(what)
        pause_s = self._first_s
        if before is not None and now < before.until + self._longest_s:
            pause_s = min(self._longest_s, 2 * before.pause_s)
        failure = Failure(reason=reason, pause_s=pause_s, until=now + pause_s)
        self._failures[what] = failure
        return failure

    def pausing(self, what: T) -> Failure | None:
        """Its last failure, while it is to be left alone."""
        failure = self._failures.get(what)
        return failure if failure is not None and self._clock() < failure.until else None

    def keep(self, current: Collection[T]) -> None:
        """Forget what is tried no more."""
        self._failures = {
            what: failure for what, failure in self._failures.items() if what in current
        }
