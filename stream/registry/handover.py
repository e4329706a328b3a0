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
   proposal waits, and so does the next proposer; after a timeout they void it. The decision is an
   exclusive create, so there is only one.

Offsets are valid in one topic only: a handover has the id of `records`. If the topic was recreated,
all records come after the handover.

    models/handovers/00000001.json       the proposal
    models/handovers/00000001.decision   confirmed or void
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from braid.index.files import created

from ..errors import RegistryError

log = logging.getLogger(__name__)

CONFIRMED, VOID = "confirmed", "void"
FOLDER = "handovers"
MARGIN = 2  # factor of the records that came during the previous try; at least 4 times its margin
TRIES = 8
PATIENCE_S = 5.0
LOOK_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """From `offsets` on (partition -> offset in `records`) `after` owns predictions, not `before`.

    Attributes:
        topic: the id of `records` of these offsets; None: unknown.
    """

    number: int
    before: str
    after: str
    offsets: Mapping[int, int]
    topic: str | None = None


class Handovers:
    """The handovers below a registry's folder, shared by all processes.

    Args:
        topic: the present id of `records`; offsets of a handover with another id are 0. None:
            unknown, all offsets are valid.
        patience_s: the timeout of an undecided proposal, after which it is void.
        clock: monotonic seconds.
        sleep: as time.sleep.
    """

    def __init__(
        self,
        root: Path,
        *,
        topic: str | None = None,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder, self._topic = root / FOLDER, topic
        self._patience_s, self._clock, self._sleep = patience_s, clock, sleep
        self._read: dict[int, Handover] = {}
        self._decided: dict[int, str] = {}
        self._since: dict[int, float] = {}

    def all(self) -> list[tuple[Handover, str | None]]:
        """All proposals, oldest first, with their decisions. Reads only new files, since files
        never change."""
        # Listed each time: the folder's mtime may be too coarse to show a new file.
        try:
            names = set(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        proposals = []
        for name in sorted(name for name in names if name.endswith(".json")):
            number = int(name.removesuffix(".json"))
            decided = f"{number:08d}.decision" in names
            proposals.append((self._handover(number), self._decision(number) if decided else None))
        return proposals

    def confirmed(self) -> list[Handover]:
        """Confirmed handovers, oldest first."""
        return [handover for handover, decision in self.all() if decision == CONFIRMED]

    def undecided(self) -> list[Handover]:
        return [proposal for proposal, decision in self.all() if decision is None]

    def decided_ms(self, number: int) -> float:
        """When it was decided, in milliseconds since 1970."""
        return 1000 * (self._folder / f"{number:08d}.decision").stat().st_mtime

    def decide(self, number: int, decision: str) -> str:
        """Confirm or void a proposal; returns the decision, which may be another process's."""
        with contextlib.suppress(FileExistsError):
            self._create(self._folder / f"{number:08d}.decision", decision)
        return self._decision(number) or decision

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
            while left := self.undecided():
                if not all(self.void_if_expired(other) for other in left):
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
        number = 1 + max((other.number for other, _ in self.all()), default=0)
        proposal = Handover(
            number=number, before=before, after=after, offsets=dict(offsets), topic=self._topic
        )
        try:
            self._create(self._folder / f"{number:08d}.json", json.dumps(asdict(proposal)))
        except FileExistsError:
            raise RegistryError(f"another process makes handover {number}; look again") from None
        return proposal

    def _handover(self, number: int) -> Handover:
        if number not in self._read:
            path = self._folder / f"{number:08d}.json"
            try:
                plain = json.loads(path.read_text())
                offsets = {int(n): int(at) for n, at in plain["offsets"].items()}
                topic = plain.get("topic")
                if None not in (topic, self._topic) and topic != self._topic:
                    offsets = dict.fromkeys(offsets, 0)
                self._read[number] = Handover(**plain | {"offsets": offsets})
            except (OSError, ValueError, TypeError, LookupError) as error:
                raise RegistryError(f"{path} is no handover: {error}") from error
        return self._read[number]

    def _decision(self, number: int) -> str | None:
        if number not in self._decided:
            path = self._folder / f"{number:08d}.decision"
            try:
                decision = path.read_text()
            except FileNotFoundError:
                return None
            if decision not in (CONFIRMED, VOID):
                raise RegistryError(f"{path} says {decision!r:.40}, not {CONFIRMED} or {VOID}")
            self._decided[number] = decision
        return self._decided[number]

    def _create(self, target: Path, content: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        created(target, content.encode())


class Ownership:
    """Which records one generation owns: whose predictions and dead letters its worker publishes.

    Args:
        generation: of the worker.
        first: the owner before any handover.
    """

    def __init__(self, handovers: Handovers, *, generation: str, first: str) -> None:
        self._handovers = handovers
        self._generation, self._first = generation, first

    def owns(self, records: Sequence[tuple[int, int]]) -> list[bool] | None:
        """Whether each record (partition, offset) is owned; None: undecided, call again.

        Call it after the records were read and before their outputs are published.
        """
        known = self._handovers.all()
        for proposal, decision in known:
            if decision is None and any(
                offset >= proposal.offsets.get(number, 0) for number, offset in records
            ):
                if not self._handovers.void_if_expired(proposal):
                    return None
                known = self._handovers.all()
        confirmed = [handover for handover, decision in known if decision == CONFIRMED]
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
