"""What an experiment tracker is told of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class TrackerRefused(Exception):
    """A tracker refuses a call; the same call would be refused again."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a tracker is told when a run begins.

    Attributes:
        run, version: the run's id, and the name of the version that it writes.
        parameters: the configuration and the options, by dotted names.
    """

    run: str
    version: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a tracker is told when a run ends.

    Attributes:
        state: FINISHED, FAILED or KILLED.
        tags: what is known of the version, and the verdict in words.
        figures: the measures on the validation split and the judge's, by path.
        card: the model card, as Markdown; empty: there is no version.
    """

    state: str
    tags: Mapping[str, str]
    figures: Mapping[str, float]
    card: str = ""


class Tracker(Protocol):
    """One run in one tracker. A call may be repeated; any error but TrackerRefused may pass."""

    def figures(self, at_ms: int, step: int, figures: Mapping[str, float]) -> None:
        """Figures of one step."""

    def end(self, result: Result) -> None:
        """The last call."""
