"""The worker's half of drift: what it made of its records is tallied, and said every few seconds.

The other half, which adds up what all workers say, is in `braid.stream.monitoring.drift`.
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
    """How often to say it: a hundred times a window, so that a window's edge is sharp, but not more
    than once a second, so that it costs nothing, and not less than every ten."""
    return min(max(window_s / PARTS, LEAST_S), MOST_S)


class Tallies:
    """What was made of records since it was last said, by model version."""

    def __init__(self, topics: OutputTopics, *, window_s: float) -> None:
        self._topics = topics
        self._every_s = every_s(window_s)
        self._by_model: dict[str, Tally] = {}
        self._due = float("-inf")

    def add(self, model: str, embeddings: Sequence[Embedding]) -> None:
        """Count a batch."""
        self._by_model.setdefault(model, Tally()).add_all(embeddings)

    def take(self, now: float) -> list[Output]:
        """What is to be published, if it is time; it is forgotten here.

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
        """Of records in flight that are dropped: whoever reads them again tallies them again.

        What was committed since the last message goes with them. A window lacks a second of one
        worker then, at a rebalance: it is a sample either way.
        """
        self._by_model.clear()
