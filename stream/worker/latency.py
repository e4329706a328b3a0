"""Keeps the time from a record's poll to its publication within a target.

A record waits for the batches ahead of it, its own one, and two transactions: the open one and its
own. With STAGES batches in flight, each of which may take S seconds on the device, it is published
within the target T if

    S = share (T - 2 P) / STAGES

P being the measured seconds of a transaction. Batches hold as many records as take S seconds by the
measured times of earlier ones (`braid.stream.worker.bisection.CallCost`), and at most STAGES
batches are read ahead, so that a load beyond the machine waits in Kafka. `share` corrects what the
formula leaves out: it is cut while the measured p99 is beyond the target and grows while there is
room, as Clipper's batch sizes do (Crankshaw et al. 2017, arXiv 1612.03079, section 4.3).
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

STAGES = 4  # two batches on the device, one that is collected, one whose outputs are published
FEWEST = 4  # records in a batch, however short the target: one alone costs nearly as much
CUT, GROWTH = 0.8, 1.1  # of the share
LEAST, MOST = 0.125, 2.0  # of the share
ROOM = 0.7  # of the target: below it batches may grow
ENOUGH = 50  # records that a p99 is taken of
WINDOW_S = 60.0  # of the p99 that is reported
HOLD_S = 5.0  # a target is missed when it has been for so long
REPORT_S = 60.0  # between two reports
FADES = 0.8  # what an earlier transaction counts with each new one


class LatencyTarget:
    """The sizes and waits of micro-batches, from what was measured. Used by the worker's loop.

    Args:
        target_s: p99 of the seconds from poll to publication.
        clock: monotonic seconds.
    """

    def __init__(self, target_s: float, *, clock: Callable[[], float]) -> None:
        self.target_s = target_s
        self._clock = clock
        self._share = 1.0
        self._publish_s = 0.0
        self._new: list[NDArray[np.float64]] = []  # latencies since the share was looked at
        self._looked_at = clock()
        self._window: deque[tuple[float, NDArray[np.float64]]] = deque()
        self._missed_since, self._reported_at = math.inf, -math.inf

    @property
    def batch_s(self) -> float:
        """Seconds that one micro-batch may take on the device."""
        return self._share * max(0.0, self.target_s - 2 * self._publish_s) / STAGES

    def records(self, seconds: Callable[[int], float], most: int) -> int:
        """How many records a micro-batch may hold.

        Args:
            seconds: what a batch of so many takes on the device.
            most: the limit of the settings.
        """
        fitting = bisect_right(range(1, most + 1), self.batch_s, key=seconds)
        return min(most, max(FEWEST, fitting))

    def wait_s(self, *, busy: bool) -> float:
        """How long the oldest record of a micro-batch waits for others: not at all while the device
        is idle."""
        return self.batch_s if busy else 0.0

    def published(self, polled: Sequence[float], seconds: float) -> None:
        """A transaction with records polled at these times was committed after `seconds`."""
        now = self._clock()
        self._publish_s = (
            FADES * self._publish_s + (1 - FADES) * seconds if self._publish_s else seconds
        )
        latencies = now - np.asarray(polled)
        self._window.append((now, latencies))
        self._new.append(latencies)
        count = sum(len(some) for some in self._new)
        if count < ENOUGH or now - self._looked_at < self.target_s:
            return
        p99 = float(np.quantile(np.concatenate(self._new), 0.99))
        if p99 > self.target_s:
            self._share = max(LEAST, CUT * self._share)
        elif p99 < ROOM * self.target_s:
            self._share = min(MOST, GROWTH * self._share)
        self._new, self._looked_at = [], now

    def p99_s(self) -> float | None:
        """Of the records published in the last WINDOW_S seconds; None: there are none."""
        now = self._clock()
        while self._window and now - self._window[0][0] > WINDOW_S:
            self._window.popleft()
        if not self._window:
            return None
        return float(np.quantile(np.concatenate([some for _, some in self._window]), 0.99))

    def missed(self, waiting: int, record_s: float) -> str | None:
        """Why the target has been missed for HOLD_S seconds; None: it is kept. Called regularly.

        What waits in Kafka counts, too: once polled, it is published in time.

        Args:
            waiting: records in Kafka that are not polled.
            record_s: seconds that one takes in a micro-batch.
        """
        now, p99_s, behind_s = self._clock(), self.p99_s() or 0.0, waiting * record_s
        if p99_s + behind_s <= self.target_s:
            self._missed_since = math.inf
        elif self._missed_since == math.inf:
            self._missed_since = now
        if now - self._missed_since < HOLD_S:
            return None
        return (
            f"the p99 of the last {WINDOW_S:g} s is {1000 * p99_s:.0f} ms, and {waiting} records "
            f"wait in Kafka, {behind_s:.1f} s of work"
        )

    def report(self, why: str | None, *, generation: str) -> None:
        """Log that the target is missed, every REPORT_S seconds at most."""
        if why is not None and self._clock() - self._reported_at >= REPORT_S:
            self._reported_at = self._clock()
            log.warning(
                "%s: batch.latency_ms = %g is missed: %s", generation, 1000 * self.target_s, why
            )
