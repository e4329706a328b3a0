"""What the registry knows, as the fold of its events (`braid.stream.registry.log`).

Each kind of event has one function here, which gives the next state or refuses the event:

    claim        a run owns the number of its version
    version      a version is in the object store, with the sha256 of its manifest
    removed      a version is removed from there
    champion     a version serves. Its generation serves; the one before enters its rollback window,
                 and a running canary ends
    generation   the record of a generation: opened, changed or dropped
    handover     a proposal; at most one is undecided
    decision     a proposal is confirmed or void
    canary       a canary began, ended or has a comparison; at most one runs
    judgement    a version is judged, with the error that this may make
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import RegistryError

CONFIRMED, VOID = "confirmed", "void"
GENERATION_STATES = ("building", "serving", "grace", "dropped")
CANARY_STATES = ("running", "stopped", "promoted", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Champion:
    """Which version serves, since when; `seq` only grows.

    Attributes:
        back_to: of a rollback, the number of the promotion that it went back to.
    """

    seq: int
    name: str
    version: int
    space: str
    generation: str
    at_ms: int
    why: str
    back_to: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRecord:
    """One generation, as recorded in the registry.

        building   its group reads `records` from the beginning; it answers only queries that name
                   it
        serving    it is the champion's
        grace      in its rollback window: it served and is still fed, so that a rollback takes
                   seconds
        dropped    its topic and group are deleted

    Attributes:
        until_ms: when its rollback window ends.
        source: the generation whose vectors are mapped by the model's adapter; None: every record
            is embedded.
        drop_missing: flip even if some ids could not be embedded again.
        seq: the champion's number when it was opened; it takes over from that one only.
        why: the reason for its state, for display.

    Raises:
        RegistryError: the state is not one of these.
    """

    generation: str
    model: str
    space: str
    state: str
    until_ms: int | None = None
    source: str | None = None
    drop_missing: bool = False
    seq: int | None = None
    why: str = ""

    def __post_init__(self) -> None:
        _one_of(self.state, GENERATION_STATES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """From `offsets` on (partition -> offset in `records`) `after` owns predictions, not `before`.

    Attributes:
        topic: the id of `records` of these offsets; None: unknown.
        decision: confirmed or void; None: undecided.
        decided_ms: when it was decided, in milliseconds since 1970.
    """

    number: int
    before: str
    after: str
    offsets: Mapping[int, int]
    topic: str | None = None
    decision: str | None = None
    decided_ms: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """One challenger on a share of the live traffic. Raises RegistryError for invalid values."""

    number: int
    model: str  # the challenger
    champion: str  # the version that it is compared with
    seq: int  # the champion's number at the beginning
    share: float  # of the records, in (0, 1]; of those in `partitions`, if there are any
    partitions: tuple[int, ...] = ()  # of `records`; empty: all
    since_ms: int
    state: str = "running"
    until_ms: int | None = None
    why: str = ""  # the reason for the state, for display
    comparison: Mapping[str, Any] | None = None  # `canary_comparison.Comparison`, as JSON

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RegistryError(f"share must be over 0 and at most 1, is {self.share:g}")
        _one_of(self.state, CANARY_STATES)

    def facts(self) -> dict[str, Any]:
        """The facts announced on `models`."""
        facts = asdict(self) | {"name": self.model, "status": self.state}
        return {key: facts[key] for key in ("number", "name", "status", "share", "seq")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """One judgement of a version; `level` is the error that it may make, a probability."""

    name: str
    at_ms: int
    level: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One change: its kind, when it was written, and its fields, as JSON's types."""

    kind: str
    at_ms: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The registry after its first `number` events.

    Attributes:
        champions: every champion that ever was, oldest first.
        generations: by name, in the order of their first event.
        handovers, canaries: by their numbers, from 1.
        claims: the number of a version -> the run that owns it.
        versions: in an object store, a version -> the sha256 of its manifest.
        removed: in an object store, versions that were removed.
        judgements: oldest first, one of each version.
    """

    number: int = 0
    champions: tuple[Champion, ...] = ()
    generations: Mapping[str, GenerationRecord] = field(default_factory=dict)
    handovers: tuple[Handover, ...] = ()
    canaries: tuple[Canary, ...] = ()
    claims: Mapping[int, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    judgements: tuple[Judgement, ...] = ()

    @property
    def champion(self) -> Champion | None:
        """Who serves; None before the first promotion."""
        return self.champions[-1] if self.champions else None

    @property
    def seq(self) -> int:
        """The champion's number; 0 before the first promotion."""
        return len(self.champions)

    @property
    def undecided(self) -> Handover | None:
        """The proposed handover that is neither confirmed nor void, if there is one."""
        last = self.handovers[-1] if self.handovers else None
        return last if last is not None and last.decision is None else None

    @property
    def canary(self) -> Canary | None:
        """The running canary, if there is one."""
        last = self.canaries[-1] if self.canaries else None
        return last if last is not None and last.state == "running" else None


def fold(state: State, event: Event) -> State:
    """The state after one more event.

    Raises:
        RegistryError: the event does not fit the state, or lacks a field.
    """
    try:
        after = KINDS[event.kind](state, dict(event.fields), event.at_ms)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RegistryError(f"event {event.kind!r:.40}: {error!r}") from error
    return replace(after, number=state.number + 1)


def _claim(state: State, fields: dict[str, Any], _: int) -> State:
    number = int(fields["number"])
    _expect(number not in state.claims, f"number {number} is given already")
    return replace(state, claims={**state.claims, number: str(fields["run"])})


def _version(state: State, fields: dict[str, Any], _: int) -> State:
    name = str(fields["name"])
    _expect(name not in state.versions, f"{name} is published already")
    _expect(name not in state.removed, f"{name} was removed")
    return replace(state, versions={**state.versions, name: str(fields["sha256"])})


def _removed(state: State, fields: dict[str, Any], _: int) -> State:
    name = str(fields["name"])
    _expect(name in state.versions, f"no version {name!r:.40} is published")
    _expect(state.champion is None or state.champion.name != name, f"{name} is the champion")
    left = {other: sha256 for other, sha256 in state.versions.items() if other != name}
    return replace(state, versions=left, removed=state.removed | {name})


def _champion(state: State, fields: dict[str, Any], at_ms: int) -> State:
    until_ms = fields.pop("until_ms")
    new, before = Champion(**fields, at_ms=at_ms), state.champion
    _expect(new.seq == state.seq + 1, f"champion number {new.seq} after number {state.seq}")
    records = dict(state.generations)
    if before is not None and before.generation != new.generation:
        for serves, state_, until in ((before, "grace", until_ms), (new, "serving", None)):
            known = records.get(serves.generation) or GenerationRecord(
                generation=serves.generation, model=serves.name, space=serves.space, state=state_
            )
            records[serves.generation] = replace(
                known, model=serves.name, state=state_, until_ms=until, why=new.why
            )
    canaries = state.canaries
    if (canary := state.canary) is not None:
        promoted = new.name == canary.model
        why = f"{new.name} became champion number {new.seq} meanwhile"
        ended = replace(
            canary,
            state="promoted" if promoted else "stopped",
            why=f"champion number {new.seq}" if promoted else why,
            until_ms=at_ms,
        )
        canaries = (*canaries[:-1], ended)
    champions = (*state.champions, new)
    return replace(state, champions=champions, generations=records, canaries=canaries)


def _generation(state: State, fields: dict[str, Any], _: int) -> State:
    record = GenerationRecord(**fields)
    return replace(state, generations={**state.generations, record.generation: record})


def _handover(state: State, fields: dict[str, Any], _: int) -> State:
    offsets = {int(number): int(at) for number, at in fields["offsets"].items()}
    proposal = Handover(**fields | {"offsets": offsets, "decision": None, "decided_ms": None})
    _in_order(proposal.number, len(state.handovers))
    _expect(state.undecided is None, "another handover is undecided")
    return replace(state, handovers=(*state.handovers, proposal))


def _decision(state: State, fields: dict[str, Any], at_ms: int) -> State:
    number, decision = fields["number"], fields["decision"]
    _one_of(decision, (CONFIRMED, VOID))
    undecided = state.undecided
    if undecided is None or undecided.number != number:
        raise RegistryError(f"handover {number} is not undecided")
    decided = replace(undecided, decision=decision, decided_ms=at_ms)
    return replace(state, handovers=(*state.handovers[:-1], decided))


def _canary(state: State, fields: dict[str, Any], _: int) -> State:
    canary = Canary(**fields | {"partitions": tuple(fields["partitions"])})
    canaries = list(state.canaries)
    if 0 < canary.number <= len(canaries):
        canaries[canary.number - 1] = canary
    else:
        _in_order(canary.number, len(canaries))
        _expect(state.canary is None, "another canary runs")
        canaries.append(canary)
    return replace(state, canaries=tuple(canaries))


def _judgement(state: State, fields: dict[str, Any], at_ms: int) -> State:
    judged = Judgement(name=str(fields["name"]), at_ms=at_ms, level=float(fields["level"]))
    known = {judgement.name for judgement in state.judgements}
    _expect(judged.name not in known, f"{judged.name} is judged already")
    _expect(0 <= judged.level <= 1, f"level must be 0 to 1, is {judged.level:g}")
    return replace(state, judgements=(*state.judgements, judged))


KINDS: dict[str, Callable[[State, dict[str, Any], int], State]] = {
    "claim": _claim,
    "version": _version,
    "removed": _removed,
    "champion": _champion,
    "generation": _generation,
    "handover": _handover,
    "decision": _decision,
    "canary": _canary,
    "judgement": _judgement,
}


def _in_order(number: int, count: int) -> None:
    _expect(number == count + 1, f"number {number} after {count}")


def _one_of(value: str, known: tuple[str, ...]) -> None:
    _expect(value in known, f"{value!r:.40}, not one of {', '.join(known)}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RegistryError(otherwise)
