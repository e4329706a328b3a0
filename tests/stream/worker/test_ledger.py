"""The ledger against a plain model, over random histories."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.stream.worker.offsets import OffsetLedger, Run, Ticket

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), st.integers(0, 2), st.integers(1, 4)),  # partition, step
        st.tuples(st.just("finish"), st.integers(0, 200), st.just(0)),  # which open ticket
        st.tuples(st.just("commit"), st.just(0), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 2), st.just(0)),
    ),
    max_size=200,
)


@given(ACTIONS)
def test_any_history_commits_exactly_the_unbroken_run(history: list[tuple[str, int, int]]) -> None:
    ledger = OffsetLedger[int]()
    open_: dict[int, list[Ticket[int]]] = {0: [], 1: [], 2: []}
    ahead = {0: 0, 1: 0, 2: 0}  # the next offset that each partition will give
    committed = {0: 0, 1: 0, 2: 0}
    orphans: list[Ticket[int]] = []
    for action, first, second in history:
        if action == "receive":
            offset = ahead[first] + second - 1
            open_[first].append(ledger.receive(first, offset, nbytes=10))
            ahead[first] = offset + 1
        elif action == "finish":
            unfinished = [t for ts in open_.values() for t in ts if not t.done]
            unfinished += [t for t in orphans if not t.done]
            if unfinished:
                ticket = unfinished[first % len(unfinished)]
                ticket.finish(ticket.offset)
        elif action == "drop":
            orphans += open_[first]
            assert ledger.drop([first]) == len(open_[first])
            open_[first] = []
            ahead[first] = committed[first]  # read again from the committed offset
        else:
            runs = {run.partition: run for run in ledger.ready()}
            for partition, tickets in open_.items():
                prefix = []
                for ticket in tickets:
                    if not ticket.done:
                        break
                    prefix.append(ticket)
                if not prefix:
                    assert partition not in runs
                    continue
                assert runs[partition].results == [ticket.offset for ticket in prefix]
                assert runs[partition].next_offset == prefix[-1].offset + 1
                assert runs[partition].next_offset > committed[partition]
                committed[partition] = runs[partition].next_offset
                del tickets[: len(prefix)]
            ledger.committed(runs.values())
        assert len(ledger) == sum(len(tickets) for tickets in open_.values())
        assert ledger.nbytes == 10 * len(ledger)


def test_a_gap_holds_back_what_is_finished_behind_it() -> None:
    ledger = OffsetLedger[str]()
    first, second, third = (ledger.receive(0, offset) for offset in (5, 6, 9))
    second.finish("b")
    third.finish("c")
    assert ledger.ready() == []
    first.finish("a")
    (run,) = ledger.ready()
    assert run.results == ["a", "b", "c"]
    assert run.next_offset == 10


def test_a_dropped_ticket_finishes_without_effect() -> None:
    ledger = OffsetLedger[str]()
    old = ledger.receive(0, 5)
    ledger.drop()
    again = ledger.receive(0, 5)
    old.finish("from before the rebalance")
    assert ledger.ready() == []
    again.finish("now")
    assert [run.results for run in ledger.ready()] == [["now"]]


def test_offsets_must_strictly_increase() -> None:
    ledger = OffsetLedger[str]()
    ledger.receive(0, 5)
    with pytest.raises(AssertionError, match="went back"):
        ledger.receive(0, 5)
    with pytest.raises(AssertionError, match="went back from 0 to -1"):
        ledger.receive(1, -1)


def test_a_ticket_finishes_once() -> None:
    ticket = OffsetLedger[str]().receive(0, 5)
    ticket.finish("a")
    with pytest.raises(AssertionError, match="offset 5 of partition 0 finished twice"):
        ticket.finish("a")


def test_only_the_oldest_tickets_of_a_partition_are_committed() -> None:
    ledger = OffsetLedger[str]()
    first, second = ledger.receive(0, 5), ledger.receive(0, 6)
    second.finish("b")
    with pytest.raises(AssertionError, match="not the partition's head"):
        ledger.committed([Run(0, (second,))])
    assert not first.done


def test_drop_returns_the_number_of_tickets_of_all_partitions() -> None:
    ledger = OffsetLedger[str]()
    for partition, count in ((0, 3), (1, 2)):
        for offset in range(count):
            ledger.receive(partition, offset, nbytes=10)
    assert ledger.drop([0, 7]) == 3
    ledger.receive(0, 0)
    assert (ledger.nbytes, len(ledger)) == (20, 3)
    assert ledger.drop() == 3
    assert (ledger.nbytes, len(ledger)) == (0, 0)


def test_a_record_without_outputs_counts_for_the_offset_only() -> None:
    ledger = OffsetLedger[str]()
    for offset, result in ((5, "a"), (6, None)):
        ledger.receive(0, offset).finish(result)  # type: ignore[arg-type]
    (run,) = ledger.ready()
    assert (run.results, run.next_offset) == (["a"], 7)
    assert ledger.nbytes == Ticket[str](0, 5).nbytes == 0  # unless the caller gives a size


@pytest.mark.parametrize("commits", [True, False])
def test_what_is_held_later_is_given_back_with_the_rest(commits: bool) -> None:
    ledger = OffsetLedger[int]()
    first, second = (ledger.receive(0, offset, nbytes=10) for offset in (0, 1))
    ledger.hold(first, 5)
    ledger.hold(second, 2)
    assert ledger.nbytes == 27
    first.finish(0)
    if commits:
        ledger.committed(ledger.ready())
        assert ledger.nbytes == 12
    ledger.drop()
    assert ledger.nbytes == 0


def test_a_dropped_record_is_not_counted_again() -> None:
    """Its preparation ends afterwards."""
    ledger = OffsetLedger[str]()
    gone, stays = ledger.receive(0, 5, 10), ledger.receive(1, 5, 10)
    ledger.drop([0])
    ledger.hold(gone, 1000)
    ledger.hold(stays, 100)
    assert (ledger.nbytes, gone.dropped, stays.dropped) == (110, True, False)
