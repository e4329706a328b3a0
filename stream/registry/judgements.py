"""Judgements in the registry: the error that each may make, out of a budget of 30 days.

A schedule judges again and again, and each judgement may pass a version that is worse. Each gets an
equal share of the budget while those of the last 30 days leave one, and else none: so all of any 30
days together err with a probability of at most the budget, whatever their dependence (Bonferroni's
inequality).
"""

from __future__ import annotations

from .log import EventLog
from .state import Event, State

MONTH_MS = 30 * 86_400_000


def level_of_judgement(log: EventLog, name: str, *, budget: float, planned: int) -> float:
    """The error that the judgement of a version may make; written to the log before it begins.

    Args:
        budget: of all judgements of 30 days.
        planned: the number of judgements that it is spread over.
    """

    def judged(state: State) -> Event | None:
        if any(one.name == name for one in state.judgements):
            return None  # its run was killed after this, and is resumed
        since_ms = log.now_ms() - MONTH_MS
        spent = sum(one.level for one in state.judgements if one.at_ms > since_ms)
        share = budget / planned
        fits = spent + share <= budget * (1 + 1e-9)  # the sum is rounded
        return log.event("judgement", name=name, level=share if fits else 0.0)

    return next(one.level for one in log.append(judged).judgements if one.name == name)
