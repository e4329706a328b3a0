"""A model of the registry, and histories of two writers to play on it and on the real one.

The model is one process that does one thing after another. A history's step has a writer that
begins an operation and, in some steps, another writer whose whole operation comes in between: after
the first has read the log, before it writes. Both must end as the model says, and leave the same
registry.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from braid.stream.errors import RegistryError
from braid.stream.registry.canaries import Canaries
from braid.stream.registry.generations import GenerationRecord, GenerationRecords
from braid.stream.registry.handover import CONFIRMED, VOID, Handovers
from braid.stream.registry.store import Store
from braid.stream.registry.versions import Registry

SAME, OTHER = ("tiny-0001", "tiny-0002"), "tiny-0003"  # of one space, and of another one
OPERATIONS = (
    "promote-1",
    "promote-2",
    "open",
    "flip",
    "drop",
    "propose",
    "confirm",
    "void",
    "canary",
    "end-canary",
    "claim",
)
UNTIL_MS = 10**15
REFUSED = "refused"


@dataclass
class Model:
    """What is true of the registry, kept as plainly as can be."""

    champions: list[tuple[str, str]] = field(default_factory=list)  # version, generation
    generations: dict[str, str] = field(default_factory=dict)  # name -> state
    handovers: list[str | None] = field(default_factory=list)  # decisions
    canaries: list[list[Any]] = field(default_factory=list)  # version, state, champion's number
    claims: int = 0

    def apply(self, operation: str, seen: Model) -> str:
        """Do an operation of a writer that saw `seen` when it began; returns how it ended."""
        kind, _, number = operation.partition("-")
        serving = self.champions[-1][1] if self.champions else None
        moved = len(self.champions) != len(seen.champions)
        if kind == "promote":
            name = SAME[int(number) - 1]
            if moved or (serving is not None and seen.champions[-1][0] == OTHER):
                return REFUSED
            self._serve(name, seen.champions[-1][1] if seen.champions else "g0001")
        elif kind == "open":
            if not seen.champions or "building" in self.generations.values():
                return REFUSED
            opened = f"g{1 + max(int(name[1:]) for name in [*seen.generations, 'g0001']):04d}"
            if opened in self.generations:
                return REFUSED
            self.generations[opened] = "building"
        elif kind == "flip":
            fed = [
                name for name, state in seen.generations.items() if state in ("building", "grace")
            ]
            if not fed or moved or self.generations[fed[-1]] == "dropped":
                return REFUSED
            to = fed[-1]
            self._serve(SAME[0] if to == "g0001" else OTHER, to)
        elif kind == "drop":
            left = [name for name, state in seen.generations.items() if state != "serving"]
            if not left or (
                self.generations[left[-1]] != seen.generations[left[-1]]
                and self.generations[left[-1]] != "dropped"
            ):
                return REFUSED
            self.generations[left[-1]] = "dropped"
        elif kind == "propose":
            if self.handovers and self.handovers[-1] is None:
                return REFUSED
            self.handovers.append(None)
        elif kind in ("confirm", "void"):
            if not seen.handovers:
                return REFUSED
            at = len(seen.handovers) - 1
            self.handovers[at] = self.handovers[at] or {"confirm": CONFIRMED, "void": VOID}[kind]
            return str(self.handovers[at])
        elif operation == "canary":
            if not seen.champions or moved or seen.champions[-1][0] == SAME[1] or self._running:
                return REFUSED
            self.canaries.append([SAME[1], "running", len(self.champions)])
        elif kind == "end":
            if not seen.canaries:
                return REFUSED
            self.canaries[len(seen.canaries) - 1][1] = "stopped"
        elif kind == "claim":
            self.claims += 1
        return "done"

    @property
    def _running(self) -> bool:
        return bool(self.canaries) and self.canaries[-1][1] == "running"

    def _serve(self, name: str, generation: str) -> None:
        before = self.champions[-1][1] if self.champions else generation
        self.champions.append((name, generation))
        if before != generation:
            self.generations[before], self.generations[generation] = "grace", "serving"
        if self._running:
            self.canaries[-1][1] = "promoted" if name == self.canaries[-1][0] else "stopped"


def operate(registry: Registry, operation: str) -> str:
    """Do an operation on the real registry; returns how it ended."""
    try:
        return _operate(registry, operation)
    except RegistryError:
        return REFUSED


def _operate(registry: Registry, operation: str) -> str:
    log, champion = registry.log, registry.champion()
    records, handovers, canaries = GenerationRecords(log), Handovers(log), Canaries(log)
    kind, _, number = operation.partition("-")
    if kind == "promote":
        generation = champion.generation if champion else "g0001"
        registry.promote(SAME[int(number) - 1], generation=generation)
    elif kind == "open":
        if champion is None:
            return REFUSED
        name = records.next(serving=champion.generation)
        space = registry.manifest(OTHER).space
        opened = GenerationRecord(generation=name, model=OTHER, space=space, state="building")
        records.open(opened)
    elif kind == "flip":
        fed = [record for record in in_order(registry) if record.state in ("building", "grace")]
        if not fed:
            return REFUSED
        name, to = (SAME[0] if fed[-1].generation == "g0001" else OTHER), fed[-1].generation
        registry.promote(name, generation=to, until_ms=UNTIL_MS)
    elif kind == "drop":
        left = [record for record in in_order(registry) if record.state != "serving"]
        if not left:
            return REFUSED
        records.change(left[-1], state="dropped", until_ms=None, why="dropped")
    elif kind == "propose":
        handovers._propose("g0001", "g0002", {n: n for n in range(12)})
    elif kind in ("confirm", "void"):
        known = handovers.all()
        if not known:
            return REFUSED
        return handovers.decide(len(known), CONFIRMED if kind == "confirm" else VOID)
    elif operation == "canary":
        canaries.begin(registry, SAME[1], share=0.5)
    elif kind == "end":
        last = canaries.last()
        if last is None:
            return REFUSED
        canaries.end(last, "stopped", why="by hand")
    elif kind == "claim":
        registry.claim("run")
    return "done"


def in_order(registry: Registry) -> list[GenerationRecord]:
    """Generations in the order of their first event, as the model has them."""
    return list(registry.log.state().generations.values())


def observed(registry: Registry) -> Model:
    """What the real registry says."""
    state = registry.log.state()
    return Model(
        champions=[(one.name, one.generation) for one in state.champions],
        generations={one.generation: one.state for one in state.generations.values()},
        handovers=[one.decision for one in state.handovers],
        canaries=[[one.model, one.state, one.seq] for one in state.canaries],
        claims=len(state.claims),
    )


class Killed(BaseException):
    """The writer's process ends."""


@dataclass(frozen=True)
class Step:
    """An operation, another writer's that comes in between, and when the first writer is killed.

    Attributes:
        killed: before its event is written, or after.
    """

    operation: str
    meanwhile: str | None = None
    killed: str | None = None


def drawn(rng: random.Random, steps: int = 10) -> list[Step]:
    """A random history that begins with a promotion."""

    def one() -> str:
        return rng.choice(OPERATIONS)

    return [Step("promote-1")] + [
        Step(
            one(),
            one() if rng.random() < 0.4 else None,
            rng.choice(["before", "after"]) if rng.random() < 0.2 else None,
        )
        for _ in range(steps)
    ]


class Interrupted:
    """A writer's store: before the next creation `meanwhile` is called, and the writer killed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.meanwhile: Callable[[], object] | None = None
        self.killed: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def create(self, key: str, content: bytes) -> None:
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            meanwhile()
        if self.killed == "before":
            raise Killed
        self._store.create(key, content)
        if self.killed == "after":
            raise Killed


def play(history: Sequence[Step], opened: Callable[[], Registry]) -> Model:
    """Play a history on a registry that two writers have open; returns the model after it.

    Args:
        opened: opens the registry, as a process does at its start.
    """
    model, first, second = Model(), opened(), opened()
    for step in history:
        seen, ended = copy.deepcopy(model), list[str]()
        store = Interrupted(first.log.store)
        first.log.store, store.killed = store, step.killed
        if step.meanwhile is not None:
            store.meanwhile = _later(second, step.meanwhile, ended)
        try:
            outcome = operate(first, step.operation)
        except Killed:
            outcome, first = "killed", opened()
        else:
            first.log.store = store._store
        if ended:  # else the first writer had nothing to write, and the other did not begin
            assert step.meanwhile is not None
            assert ended == [model.apply(step.meanwhile, seen)], step
        if outcome == "killed":
            assert step.killed == "before" or model.apply(step.operation, seen) != REFUSED, step
        else:
            assert outcome == model.apply(step.operation, seen), step
        assert observed(first) == observed(second) == model, step
    return model


def _later(registry: Registry, operation: str, ended: list[str]) -> Callable[[], None]:
    return lambda: ended.append(operate(registry, operation))
