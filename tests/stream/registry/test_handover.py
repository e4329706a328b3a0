"""Handovers: exactly one generation speaks for every record, whatever happens meanwhile."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from braid.stream.errors import RegistryError
from braid.stream.registry.handover import (
    CONFIRMED,
    VOID,
    Handover,
    Handovers,
    Ownership,
    owned_until,
    owner_of,
)
from braid.stream.registry.log import EventLog
from braid.stream.registry.store import FolderStore

OLD, NEW = "g0001", "g0002"


def handovers_at(root: Path, **options: Any) -> Handovers:
    return Handovers(EventLog(FolderStore(root)), **options)


def ownership(root: Path, generation: str) -> Ownership:
    return Ownership(handovers_at(root), generation=generation, first=OLD)


def both(root: Path, records: list[tuple[int, int]]) -> list[tuple[bool, bool]]:
    old, new = (ownership(root, name).owns(records) for name in (OLD, NEW))
    assert old is not None
    assert new is not None
    return list(zip(old, new, strict=True))


def test_before_any_handover_the_first_speaks(tmp_path: Path) -> None:
    assert both(tmp_path, [(0, 0), (3, 10**9)]) == [(True, False)] * 2


def test_from_the_offset_on_the_next_one_speaks(tmp_path: Path) -> None:
    handover = handovers_at(tmp_path).hand_over(OLD, NEW, lambda: {0: 100, 1: 7})
    at = handover.offsets
    assert at[0] >= 100
    assert at[1] >= 7
    records = [(0, at[0] - 1), (0, at[0]), (1, at[1] - 1), (1, at[1])]
    assert both(tmp_path, records) == [(True, False), (False, True)] * 2
    back = handovers_at(tmp_path).hand_over(NEW, OLD, lambda: {0: at[0] + 50, 1: at[1]})
    records = [(0, at[0]), (0, back.offsets[0] - 1), (0, back.offsets[0])]
    assert both(tmp_path, records) == [(False, True), (False, True), (True, False)]


def test_an_undecided_proposal_is_waited_for_only_where_it_matters(tmp_path: Path) -> None:
    handovers = handovers_at(tmp_path)
    proposal = handovers._propose(OLD, NEW, {0: 10})
    new = ownership(tmp_path, NEW)
    assert new.owns([(0, 9)]) == [False]
    assert new.owns([(0, 9), (0, 10)]) is None
    assert handovers.decide(proposal.number, CONFIRMED) == CONFIRMED
    assert new.owns([(0, 9), (0, 10)]) == [False, True]
    assert handovers.decide(proposal.number, VOID) == CONFIRMED  # there is only one decision


def test_an_event_is_read_once(tmp_path: Path) -> None:
    """A worker asks before each publication: it reads what is new, and looks for the next event."""
    read: list[str] = []

    class Counting(FolderStore):
        def get(self, key: str) -> bytes | None:
            read.append(key)
            return super().get(key)

    for _ in range(3):
        handovers_at(tmp_path).hand_over(OLD, NEW, lambda: {0: 10})
    new = Ownership(Handovers(EventLog(Counting(tmp_path))), generation=NEW, first=OLD)
    assert new.owns([(0, 100)]) == [True]
    assert read == [f"log/{number:08d}.json" for number in range(1, 8)]
    del read[:]
    assert new.owns([(0, 101)]) == [True]
    assert read == ["log/00000007.json"]
    handovers_at(tmp_path).hand_over(NEW, OLD, lambda: {0: 200})
    del read[:]
    assert new.owns([(0, 300)]) == [False]
    assert read == [f"log/{number:08d}.json" for number in (7, 8, 9)]


def test_a_proposer_that_is_gone_holds_nobody_up_for_long(tmp_path: Path) -> None:
    now = 100.0
    handovers = handovers_at(tmp_path, clock=lambda: now)
    proposal = handovers._propose(OLD, NEW, {0: 10})
    old = Ownership(handovers, generation=OLD, first=OLD)
    assert old.owns([(0, 12)]) is None
    now = 104.9
    assert handovers.void_if_expired(proposal) is False
    assert old.owns([(0, 12)]) is None
    now = 105.0
    assert old.owns([(0, 12)]) == [True]
    assert handovers.decide(proposal.number, CONFIRMED) == VOID


def test_a_proposer_that_is_gone_keeps_nobody_from_handing_over(tmp_path: Path) -> None:
    """No worker reaches its offsets on a quiet topic: who comes next waits, and voids it."""
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    stale = handovers_at(tmp_path)._propose(OLD, NEW, {0: 74})
    handovers = handovers_at(tmp_path, patience_s=5.0, clock=lambda: now, sleep=sleep)
    handover = handovers.hand_over(OLD, NEW, lambda: {0: 10})
    assert now >= 105.0
    assert handovers.decide(stale.number, CONFIRMED) == VOID
    assert [one.number for one in handovers.confirmed()] == [handover.number] == [2]


def test_a_proposer_that_is_only_slow_is_waited_for(tmp_path: Path) -> None:
    slow = handovers_at(tmp_path)
    proposal = slow._propose(OLD, NEW, {0: 74})
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 102:
            slow.decide(proposal.number, CONFIRMED)

    handovers = handovers_at(tmp_path, patience_s=5.0, clock=lambda: now, sleep=sleep)
    handovers.hand_over(NEW, OLD, lambda: {0: 80})
    assert now < 105.0
    assert [one.number for one in handovers.confirmed()] == [1, 2]


def test_records_that_come_too_fast_are_said_and_nothing_is_handed_over(tmp_path: Path) -> None:
    handovers = handovers_at(tmp_path)
    ends = iter(10**number for number in range(20))
    with pytest.raises(RegistryError, match="in each of 8 tries"):
        handovers.hand_over(OLD, NEW, lambda: {0: next(ends)})
    assert (handovers.confirmed(), handovers.undecided()) == ([], None)


def test_a_quiet_partition_goes_over_at_its_very_end(tmp_path: Path) -> None:
    """Records came into the others meanwhile: these get twice as many, or four times a margin."""
    ends = iter(
        [
            {0: 10, 1: 10, 2: 10},
            {0: 10, 1: 11, 2: 40},
            {0: 10, 1: 11, 2: 40},
            {0: 10, 1: 11, 2: 101},
            {0: 10, 1: 11, 2: 110},
            {0: 10, 1: 11, 2: 350},
        ]
    )
    handover = handovers_at(tmp_path).hand_over(OLD, NEW, lambda: next(ends))
    assert handover.number == 3
    assert handover.offsets == {0: 10, 1: 11 + 2, 2: 110 + 240}
    assert [one.number for one in handovers_at(tmp_path).confirmed()] == [3]


def test_in_a_topic_made_anew_all_records_come_after_a_handover(tmp_path: Path) -> None:
    before = handovers_at(tmp_path, topic="first")
    before.hand_over(OLD, NEW, lambda: {0: 1000})
    before._propose(NEW, OLD, {0: 2000})
    anew = handovers_at(tmp_path, topic="second", patience_s=0)
    assert Ownership(before, generation=OLD, first=OLD).owns([(0, 999), (0, 1000)]) == [True, False]
    assert Ownership(anew, generation=OLD, first=OLD).owns([(0, 0), (0, 999)]) == [False, False]
    assert Ownership(anew, generation=NEW, first=OLD).owns([(0, 0), (0, 999)]) == [True, True]
    assert anew.undecided() is None
    anew.hand_over(NEW, OLD, lambda: {0: 5})
    assert Ownership(anew, generation=NEW, first=OLD).owns([(0, 4), (0, 5)]) == [True, False]


def test_of_a_partition_that_a_handover_does_not_name_all_records_come_after_it(
    tmp_path: Path,
) -> None:
    handovers = handovers_at(tmp_path)
    proposal = handovers._propose(OLD, NEW, {0: 10})
    old = Ownership(handovers, generation=OLD, first=OLD)
    assert old.owns([(1, 0)]) is None
    handovers.decide(proposal.number, CONFIRMED)
    assert old.owns([(1, 0)]) == [False]
    confirmed = handovers.confirmed()
    assert owner_of(confirmed, 1, 0) == NEW
    assert (owned_until(confirmed, OLD, 1), owned_until(confirmed, NEW, 1)) == (0, None)


def test_a_decision_has_its_time(tmp_path: Path) -> None:
    now = 1234.5
    handovers = Handovers(EventLog(FolderStore(tmp_path / "not" / "yet"), wall=lambda: now))
    proposal = handovers.hand_over(OLD, NEW, lambda: {0: 10})
    assert proposal.decision is None, "as it was proposed"
    assert [one.decided_ms for one in handovers.confirmed()] == [1_234_500]


def test_a_decision_that_is_neither_is_refused(tmp_path: Path) -> None:
    handovers = handovers_at(tmp_path)
    proposal = handovers._propose(OLD, NEW, {0: 10})
    with pytest.raises(RegistryError, match="'perhaps', not one of confirmed, void"):
        handovers.decide(proposal.number, "perhaps")
    assert handovers.undecided() == proposal


def test_of_two_that_propose_at_once_one_fails(tmp_path: Path) -> None:
    other, handovers = handovers_at(tmp_path), handovers_at(tmp_path)

    def ends() -> dict[int, int]:
        if other.undecided() is None:  # it comes in when this one has looked
            other._propose(NEW, OLD, {0: 5})
        return {0: 10}

    with pytest.raises(RegistryError, match="another process makes handover 1"):
        handovers.hand_over(OLD, NEW, ends)
    left = other.undecided()
    assert left is not None
    assert left.before == NEW


def test_until_where_a_generation_speaks() -> None:
    def handover(before: str, after: str, at: int) -> Handover:
        return Handover(number=1, before=before, after=after, offsets={0: at})

    there = handover(OLD, NEW, 74)
    assert (owned_until([there], OLD, 0), owned_until([there], NEW, 0)) == (74, None)
    assert owned_until([there], "g0003", 0) == 0
    back = handover(NEW, OLD, 100)
    assert [owned_until([there, back], name, 0) for name in (OLD, NEW)] == [None, 100]
    assert [owner_of([there, back], 0, offset) for offset in (73, 74, 100)] == [OLD, NEW, OLD]
    assert owned_until([handover(OLD, NEW, 1)], OLD, 0) == 1
    at_once = handover(NEW, OLD, 74)  # not one record was the other's
    assert [owned_until([there, at_once], name, 0) for name in (OLD, NEW)] == [None, 0]
    rest = handover(OLD, NEW, 10)  # what had not come by then
    assert [owned_until([there, rest], name, 0) for name in (OLD, NEW)] == [10, None]


def test_workers_that_run_while_it_is_handed_over_and_back(tmp_path: Path) -> None:
    """Records arrive all the time; two workers publish in batches, each asking just before."""
    end = 0
    stop = threading.Event()
    published: dict[str, list[int]] = {OLD: [], NEW: []}

    def produce() -> None:
        nonlocal end
        rng = random.Random(1)
        while not stop.is_set():
            end += rng.randrange(1, 4)
            time.sleep(0.0005)

    def work(generation: str) -> None:
        ours, at, rng = ownership(tmp_path, generation), 0, random.Random(generation)
        while not stop.is_set() or at < end:
            batch = range(at, min(end, at + rng.randrange(1, 40)))
            time.sleep(rng.random() * 0.003)  # it is embedded
            owned = ours.owns([(0, offset) for offset in batch])
            if owned is None:
                continue
            time.sleep(rng.random() * 0.003)  # it is published
            published[generation] += [o for o, mine in zip(batch, owned, strict=True) if mine]
            at += len(batch)

    threads = [threading.Thread(target=produce)]
    threads += [threading.Thread(target=work, args=[name]) for name in (OLD, NEW)]
    for thread in threads:
        thread.start()
    handovers = handovers_at(tmp_path)
    for number in range(6):
        time.sleep(0.15)
        before, after = (OLD, NEW) if number % 2 == 0 else (NEW, OLD)
        handovers.hand_over(before, after, lambda: {0: end})
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(published[OLD] + published[NEW]) == list(range(end))
    assert min(map(len, published.values())) > 50
