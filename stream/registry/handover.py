"""Handovers: the offsets from which on another generation publishes the predictions.

Two groups read the same `records`, one for each generation, and exactly one of them publishes a
record's prediction or dead letter. A handover gives, for each partition, the first offset that the
next generation owns. It has two steps, because a worker that does not know of it must not be past
that offset:

1. *propose*: the end offsets of `records` are written down, then the ends are read again. If none
   has passed its offset, no record beyond it existed when the proposal became readable, so every
   worker reads the proposal before it publishes such a record.
2. *decide*: confirmed in that case, else void; then the next proposal has a margin for the
   partitions that received records meanwhile. A worker that reaches an offset of an undecided
   proposal waits, and so does the next proposer; after a timeout they void it.

Both steps are events of the registry's log, which holds one undecided proposal at most, and one
decision of each. Offsets are valid in one topic only: a handover has the id of `records`. If the
topic was recreated, all records come after the handover.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..errors import RegistryAway, RegistryError
from .log import EventLog
from .state import CONFIRMED as CONFIRMED
from .state import VOID as VOID
from .state import Event, State
from .state import Handover as Handover

log = logging.getLogger(__name__)

MARGIN = 2  # factor of the records that came during the previous try; at least 4 times its margin
TRIES = 8
PATIENCE_S = 5.0
LOOK_S = 0.05


class Handovers:
    """The handovers in a registry's log, shared by all processes.

    Args:
        topic: the present id of `records`; offsets of a handover with another id are 0. None:
            unknown, all offsets are valid.
        patience_s: the timeout of an undecided proposal, after which it is void.
        clock: monotonic seconds.
        sleep: as time.sleep.
    """

    def __init__(
        self,
        registry_log: EventLog,
        *,
        topic: str | None = None,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._log, self._topic = registry_log, topic
        self._patience_s, self._clock, self._sleep = patience_s, clock, sleep
        self._since: dict[int, float] = {}

    def all(self) -> list[Handover]:
        """All proposals, oldest first, with their decisions."""
        return [self._in_topic(handover) for handover in self._log.state().handovers]

    def confirmed(self) -> list[Handover]:
        """Confirmed handovers, oldest first."""
        return [handover for handover in self.all() if handover.decision == CONFIRMED]

    def undecided(self) -> Handover | None:
        """The proposal that waits for its decision, if there is one."""
        undecided = self._log.state().undecided
        return None if undecided is None else self._in_topic(undecided)

    def decide(self, number: int, decision: str) -> str:
        """Confirm or void a proposal; returns the decision, which may be another process's."""

        def decided(state: State) -> Event | None:
            if state.handovers[number - 1].decision is not None:
                return None
            return self._log.event("decision", number=number, decision=decision)

        return self._log.append(decided).handovers[number - 1].decision or decision

    def void_if_expired(self, proposal: Handover) -> bool:
        """Void an undecided proposal after its timeout; returns whether it did.

        Safe at any moment: a slow proposer finds its proposal void and makes another.
        """
        since = self._since.setdefault(proposal.number, self._clock())
        if self._clock() - since < self._patience_s:
            return False
        log.warning("handover %d was never decided: void", proposal.number)
        self.decide(proposal.number, VOID)
        return True

    def hand_over(self, before: str, after: str, ends: Callable[[], Mapping[int, int]]) -> Handover:
        """Hand predictions over from `before` to `after`; confirmed on return.

        Args:
            ends: reads the end offsets of `records`. A partition without new records meanwhile is
                handed over at its end.

        Raises:
            RegistryError: another process proposes at the same moment, or records arrive faster
                than offsets can be written down.
        """
        margins: dict[int, int] = {}
        for _ in range(TRIES):
            while (other := self.undecided()) is not None:
                if not self.void_if_expired(other):
                    self._sleep(LOOK_S)
            began = ends()
            offsets = {number: end + margins.get(number, 0) for number, end in began.items()}
            proposal = self._propose(before, after, offsets)
            passed = {n: end - began[n] for n, end in ends().items() if end > offsets[n]}
            if self.decide(proposal.number, VOID if passed else CONFIRMED) == CONFIRMED:
                log.info("predictions go from %s to %s at %s", before, after, dict(offsets))
                return proposal
            for number, came in passed.items():
                margins[number] = max(4 * margins.get(number, 0), MARGIN * came)
        raise RegistryError(
            f"predictions cannot go from {before} to {after}: in each of {TRIES} tries records "
            f"came faster than offsets could be written down ({max(passed.values(), default=0)} "
            "into one partition at last)"
        )

    def _propose(self, before: str, after: str, offsets: Mapping[int, int]) -> Handover:
        def proposed(state: State) -> Event:
            if (other := state.undecided) is not None:
                raise RegistryError(
                    f"another process makes handover {other.number} at the same moment; look again"
                )
            return self._log.event(
                "handover",
                number=len(state.handovers) + 1,
                before=before,
                after=after,
                offsets=dict(offsets),
                topic=self._topic,
            )

        return self._log.append(proposed).handovers[-1]

    def _in_topic(self, handover: Handover) -> Handover:
        if None in (handover.topic, self._topic) or handover.topic == self._topic:
            return handover
        return replace(handover, offsets=dict.fromkeys(handover.offsets, 0))


class Ownership:
    """Which records one generation owns: whose predictions and dead letters its worker publishes.

    Args:
        generation: of the worker.
        first: the owner before any handover.
    """

    def __init__(self, handovers: Handovers, *, generation: str, first: str) -> None:
        self._handovers = handovers
        self._generation, self._first = generation, first
        self._away = False

    def owns(self, records: Sequence[tuple[int, int]]) -> list[bool] | None:
        """Whether each record (partition, offset) is owned; None: undecided, call again.

        Call it after the records were read and before their outputs are published. It is undecided,
        too, while the registry's object store is away: a proposal may be there that it hides.
        """
        try:
            return self._owned(records)
        except RegistryAway as error:
            if not self._away:
                log.warning("nothing is published until the registry answers: %s", error)
            self._away = True
            return None

    def _owned(self, records: Sequence[tuple[int, int]]) -> list[bool] | None:
        known = self._handovers.all()
        self._away = False
        if known and known[-1].decision is None:
            proposal = known[-1]
            reached = any(offset >= proposal.offsets.get(number, 0) for number, offset in records)
            if reached and not self._handovers.void_if_expired(proposal):
                return None
            known = self._handovers.all() if reached else known
        confirmed = [handover for handover in known if handover.decision == CONFIRMED]
        if not confirmed:
            return [self._first == self._generation] * len(records)
        return [owner_of(confirmed, *record) == self._generation for record in records]


def owner_of(confirmed: Sequence[Handover], partition: int, offset: int) -> str:
    """The generation that owns a record; `confirmed`: all confirmed handovers, at least one."""
    owner = confirmed[0].before
    for handover in confirmed:
        if offset >= handover.offsets.get(partition, 0):
            owner = handover.after
    return owner


def owned_until(confirmed: Sequence[Handover], generation: str, partition: int) -> int | None:
    """The offset from which on a generation owns no record; None: there is none."""
    starts = sorted({0, *(handover.offsets.get(partition, 0) for handover in confirmed)})
    for start, end in reversed(list(zip(starts, [*starts[1:], None], strict=True))):
        if owner_of(confirmed, partition, start) == generation:
            return end
    return 0
