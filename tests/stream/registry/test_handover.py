"""Handovers: exactly one generation speaks for every record, whatever happens meanwhile."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

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

OLD, NEW = "g0001", "g0002"


def ownership(root: Path, generation: str) -> Ownership:
    return Ownership(Handovers(root), generation=generation, first=OLD)


def both(root: Path, records: list[tuple[int, int]]) -> list[tuple[bool, bool]]:
    old, new = (ownership(root, name).owns(records) for name in (OLD, NEW))
    assert old is not None
    assert new is not None
    return list(zip(old, new, strict=True))


def test_before_any_handover_the_first_speaks(tmp_path: Path) -> None:
    assert both(tmp_path, [(0, 0), (3, 10**9)]) == [(True, False)] * 2


def test_from_the_offset_on_the_next_one_speaks(tmp_path: Path) -> None:
    handover = Handovers(tmp_path).hand_over(OLD, NEW, lambda: {0: 100, 1: 7})
    at = handover.offsets
    assert at[0] >= 100
    assert at[1] >= 7
    records = [(0, at[0] - 1), (0, at[0]), (1, at[1] - 1), (1, at[1])]
    assert both(tmp_path, records) == [(True, False), (False, True)] * 2
    back = Handovers(tmp_path).hand_over(NEW, OLD, lambda: {0: at[0] + 50, 1: at[1]})
    records = [(0, at[0]), (0, back.offsets[0] - 1), (0, back.offsets[0])]
    assert both(tmp_path, records) == [(False, True), (False, True), (True, False)]


def test_an_undecided_proposal_is_waited_for_only_where_it_matters(tmp_path: Path) -> None:
    handovers = Handovers(tmp_path)
    proposal = handovers._propose(OLD, NEW, {0: 10})
    new = ownership(tmp_path, NEW)
    assert new.owns([(0, 9)]) == [False]
    assert new.owns([(0, 9), (0, 10)]) is None
    assert handovers.decide(proposal.number, CONFIRMED) == CONFIRMED
    assert new.owns([(0, 9), (0, 10)]) == [False, True]
    assert handovers.decide(proposal.number, VOID) == CONFIRMED  # there is only one decision


def test_what_is_decided_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker asks before each publication: it lists the folder once and reads what is new."""
    for _ in range(3):
        Handovers(tmp_path).hand_over(OLD, NEW, lambda: {0: 10})
    read: list[str] = []
    listed: list[Path] = []
    read_text, listdir = Path.read_text, os.listdir

    def reading(path: Path) -> str:
        read.append(path.name)
        return read_text(path)

    def listing(path: Path) -> list[str]:
        listed.append(path)
        return listdir(path)

    new = ownership(tmp_path, NEW)
    monkeypatch.setattr(Path, "read_text", reading)
    monkeypatch.setattr(os, "listdir", listing)
    assert new.owns([(0, 100)]) == [True]
    assert (len(read), len(listed)) == (6, 1)
    assert new.owns([(0, 101)]) == [True]
    assert (len(read), len(listed)) == (6, 2)
    Handovers(tmp_path).hand_over(NEW, OLD, lambda: {0: 200})
    del read[:]
    assert new.owns([(0, 300)]) == [False]
    assert read == ["00000004.json", "00000004.decision"]


def test_a_proposer_that_is_gone_holds_nobody_up_for_long(tmp_path: Path) -> None:
    now = 100.0
    handovers = Handovers(tmp_path, clock=lambda: now)
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

    stale = Handovers(tmp_path)._propose(OLD, NEW, {0: 74})
    handovers = Handovers(tmp_path, patience_s=5.0, clock=lambda: now, sleep=sleep)
    handover = handovers.hand_over(OLD, NEW, lambda: {0: 10})
    assert now >= 105.0
    assert handovers.decide(stale.number, CONFIRMED) == VOID
    assert [its.number for its in handovers.confirmed()] == [handover.number] == [2]


def test_a_proposer_that_is_only_slow_is_waited_for(tmp_path: Path) -> None:
    slow = Handovers(tmp_path)
    proposal = slow._propose(OLD, NEW, {0: 74})
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 102:
            slow.decide(proposal.number, CONFIRMED)

    handovers = Handovers(tmp_path, patience_s=5.0, clock=lambda: now, sleep=sleep)
    handovers.hand_over(NEW, OLD, lambda: {0: 80})
    assert now < 105.0
    assert [its.number for its in handovers.confirmed()] == [1, 2]


def test_records_that_come_too_fast_are_said_and_nothing_is_handed_over(tmp_path: Path) -> None:
    handovers = Handovers(tmp_path)
    ends = iter(10**number for number in range(20))
    with pytest.raises(RegistryError, match="in each of 8 tries"):
        handovers.hand_over(OLD, NEW, lambda: {0: next(ends)})
    assert handovers.confirmed() == handovers.undecided() == []


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
    handover = Handovers(tmp_path).hand_over(OLD, NEW, lambda: next(ends))
    assert handover.number == 3
    assert handover.offsets == {0: 10, 1: 11 + 2, 2: 110 + 240}
    assert [its.number for its in Handovers(tmp_path).confirmed()] == [3]


def test_in_a_topic_made_anew_all_records_come_after_a_handover(tmp_path: Path) -> None:
    before = Handovers(tmp_path, topic="first")
    before.hand_over(OLD, NEW, lambda: {0: 1000})
    before._propose(NEW, OLD, {0: 2000})
    anew = Handovers(tmp_path, topic="second", patience_s=0)
    assert Ownership(before, generation=OLD, first=OLD).owns([(0, 999), (0, 1000)]) == [True, False]
    assert Ownership(anew, generation=OLD, first=OLD).owns([(0, 0), (0, 999)]) == [False, False]
    assert Ownership(anew, generation=NEW, first=OLD).owns([(0, 0), (0, 999)]) == [True, True]
    assert anew.undecided() == []
    anew.hand_over(NEW, OLD, lambda: {0: 5})
    assert Ownership(anew, generation=NEW, first=OLD).owns([(0, 4), (0, 5)]) == [True, False]


def test_of_a_partition_that_a_handover_does_not_name_all_records_come_after_it(
    tmp_path: Path,
) -> None:
    handovers = Handovers(tmp_path)
    proposal = handovers._propose(OLD, NEW, {0: 10})
    old = Ownership(handovers, generation=OLD, first=OLD)
    assert old.owns([(1, 0)]) is None
    handovers.decide(proposal.number, CONFIRMED)
    assert old.owns([(1, 0)]) == [False]
    confirmed = handovers.confirmed()
    assert owner_of(confirmed, 1, 0) == NEW
    assert (owned_until(confirmed, OLD, 1), owned_until(confirmed, NEW, 1)) == (0, None)


def test_a_decision_has_the_time_of_its_file(tmp_path: Path) -> None:
    handovers = Handovers(tmp_path / "not" / "yet")
    handovers.hand_over(OLD, NEW, lambda: {0: 10})
    (decision,) = (tmp_path / "not" / "yet").rglob("*.decision")
    os.utime(decision, (1234.5, 1234.5))
    assert handovers.decided_ms(1) == 1_234_500


def test_a_decision_that_is_neither_is_refused(tmp_path: Path) -> None:
    handovers = Handovers(tmp_path)
    handovers.hand_over(OLD, NEW, lambda: {0: 10})
    (tmp_path / "handovers" / "00000001.decision").write_text("perhaps")
    with pytest.raises(RegistryError, match="'perhaps', not confirmed or void"):
        Handovers(tmp_path).confirmed()


def test_a_proposal_that_another_process_has_made_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, handovers = Handovers(tmp_path), Handovers(tmp_path)
    other._propose(NEW, OLD, {0: 5})
    monkeypatch.setattr(handovers, "all", list)  # listed a moment earlier
    with pytest.raises(RegistryError, match="another process makes handover 1"):
        handovers.hand_over(OLD, NEW, lambda: {0: 10})
    assert [proposal.before for proposal in other.undecided()] == [NEW]


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


@pytest.mark.parametrize("content", ["", "[]", '{"number": 1}'])
def test_a_file_that_is_no_handover_is_never_guessed(tmp_path: Path, content: str) -> None:
    handovers = Handovers(tmp_path)
    handovers.hand_over(OLD, NEW, lambda: {0: 1})
    (tmp_path / "handovers" / "00000001.json").write_text(content)
    with pytest.raises(RegistryError, match="no handover"):
        ownership(tmp_path, OLD).owns([(0, 1)])


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
        its, at, rng = ownership(tmp_path, generation), 0, random.Random(generation)
        while not stop.is_set() or at < end:
            batch = range(at, min(end, at + rng.randrange(1, 40)))
            time.sleep(rng.random() * 0.003)  # it is embedded
            owned = its.owns([(0, offset) for offset in batch])
            if owned is None:
                continue
            time.sleep(rng.random() * 0.003)  # it is published
            published[generation] += [o for o, mine in zip(batch, owned, strict=True) if mine]
            at += len(batch)

    threads = [threading.Thread(target=produce)]
    threads += [threading.Thread(target=work, args=[name]) for name in (OLD, NEW)]
    for thread in threads:
        thread.start()
    handovers = Handovers(tmp_path)
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
