"""Output statistics of the worker, published every few seconds for drift detection.

`braid.stream.monitoring.drift` aggregates the tallies of all workers.
"""

from __future__ import annotations

from collections.abc import Sequence

from braid.encoders.output_statistics import Tally
from braid.encoders.types import Embedding

from ..kafka.client import Output
from .outputs import OutputTopics

PARTS = 100
LEAST_S, MOST_S = 1.0, 10.0


def every_s(window_s: float) -> float:
    """The interval between tallies: a hundredth of a window, so that window edges are sharp, but
    between 1 and 10 s."""
    return min(max(window_s / PARTS, LEAST_S), MOST_S)


class Tallies:
    """Output statistics since the last message, by model version."""

    def __init__(self, topics: OutputTopics, *, window_s: float) -> None:
        self._topics = topics
        self._every_s = every_s(window_s)
        self._by_model: dict[str, Tally] = {}
        self._due = float("-inf")

    def add(self, model: str, embeddings: Sequence[Embedding]) -> None:
        """Count a batch."""
        self._by_model.setdefault(model, Tally()).add_all(embeddings)

    def take(self, now: float) -> list[Output]:
        """The messages to publish, if they are due; resets the statistics.

        Args:
            now: monotonic seconds.
        """
        if now < self._due or not self._by_model:
            return []
        self._due = now + self._every_s
        outputs = [self._topics.tallied(model, tally) for model, tally in self._by_model.items()]
        self._by_model.clear()
        return outputs

    def forget(self) -> None:
        """Reset the statistics: records in flight were dropped and are counted when read again.

        Committed records since the last message are lost from the statistics, about a second of
        one worker at a rebalance.
        """
        self._by_model.clear()
