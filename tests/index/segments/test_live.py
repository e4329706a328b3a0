"""The local store: versions, deletions, offsets, compaction, bad input."""

from __future__ import annotations

import random
import sys
import threading

import numpy as np
import pytest

from braid.index.errors import BadQuery
from braid.index.segments import live_store
from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.growing import Block
from braid.index.segments.live_store import LiveStore
from braid.index.segments.sealed import Segment
from braid.index.store import Upsert
from tests.index.histories import IDS, SMALL, Batch, make, put, settle
from tests.index.oracle import DIM, SPACE, Oracle, assert_same, delete, unit, upsert


def test_an_older_write_never_wins_and_a_repeated_one_changes_nothing() -> None:
    store = make()
    put(store, upsert("a", 5))
    rows = store.stats()["rows"]
    put(store, upsert("a", 4), upsert("a", 5, model="m-2"), delete("a", 5), delete("a", 3))
    row = store.get("a")
    assert row is not None
    assert (row.version, row.model) == (5, "m-1")
    assert store.stats()["rows"] == rows
    assert store.stats()["ignored"] == 4


def test_a_deletion_is_remembered_and_a_later_write_comes_back() -> None:
    store = make()
    put(store, upsert("a", 1), delete("a", 3), upsert("a", 2))
    assert store.get("a") is None
    assert len(store) == 0
    put(store, delete("never seen", 7), upsert("never seen", 6))
    assert store.get("never seen") is None
    put(store, upsert("a", 4))
    assert [hit.id for hit in store.search(unit("q")[None], k=5)[0]] == ["a"]


def test_in_a_second_partition_the_later_ts_wins_and_it_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = make()
    put(store, upsert("a", 100, partition=0, ts=50), upsert("a", 3, partition=1, ts=60))
    row = store.get("a")
    assert row is not None
    assert (row.partition, row.version) == (1, 3)
    put(store, upsert("a", 101, partition=0, ts=55), delete("a", 102, partition=0, ts=59))
    assert store.get("a") == row
    assert store.stats()["second_partition"] == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "partition" in caplog.text


def test_offsets_only_move_forward() -> None:
    store = make()
    store.apply([], positions={0: 10, 1: 4}, progress={0: 7})
    store.apply([], positions={0: 9, 2: 1}, progress={0: 6, 1: 2})
    assert store.positions == {0: 10, 1: 4, 2: 1}
    assert store.progress == {0: 7, 1: 2}


@pytest.mark.parametrize(
    "wrong",
    [
        {"fused": np.ones(DIM + 1, np.float32)},
        {"fused": np.full(DIM, np.nan, np.float32)},
        {"by": {"text": np.ones((1, DIM), np.float32)}},
        {"by": {"text": np.full(DIM, np.inf, np.float32)}},
        {"by": {"../text": unit("x")}},
        {"by": {"fused": unit("x")}},
    ],
)
def test_a_wrong_vector_is_refused_and_nothing_of_its_batch_is_applied(
    wrong: dict[str, object],
) -> None:
    store = make()
    good = upsert("a", 1)
    fields = {name: getattr(good, name) for name in ("partition", "ts", "model", "fused")}
    bad = Upsert(**{**fields, "id": "b", "version": 2, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="b:"):
        store.apply([good, bad], positions={0: 5}, progress={0: 5})
    assert len(store) == 0
    assert store.positions == store.progress == {}


def test_an_edit_that_fails_half_way_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks inside apply, the store goes on as if it had not been called."""
    store, oracle = make(4), Oracle()
    first = [upsert(id_, 1, by=["text"]) for id_ in IDS[:6]]
    oracle.apply(first)
    put(store, *first)

    fails = upsert("r2", 3)
    object.__setattr__(fails, "by", {"audio": unit("x"), "text": "not an array"})
    monkeypatch.setattr(store, "_check", lambda write: None)
    half = [upsert(id_, 2, by=["image"]) for id_ in IDS[:8]]
    with pytest.raises(AttributeError):
        store.apply([*half, delete("r0", 3), fails], positions={0: 9}, progress={})
    assert_same(store, oracle)
    assert store.positions == {}
    # Into the rows that the failed edit had filled.
    later = [upsert(id_, 5, by=["audio"]) for id_ in IDS[6:10]]
    oracle.apply(later)
    put(store, *later)
    assert_same(store, oracle)


@pytest.mark.parametrize("wrong", [{"ts": 2**63}, {"version": -(2**63) - 1}, {"partition": 2**31}])
def test_a_number_too_large_is_refused_and_nothing_of_its_batch_is_applied(
    wrong: dict[str, int],
) -> None:
    store = make()
    given = {"version": 1, "partition": 0, "ts": 1, **wrong}
    for write in (upsert("b", **given), delete("b", **given)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="b: "):
            put(store, upsert("a", 1), write)
        assert (len(store), store.get("a"), store.get("b")) == (0, None, None)


@pytest.mark.slow
def test_upkeep_keeps_memory_in_proportion_and_answers_alike() -> None:
    store, oracle = make(8), Oracle()
    rng = random.Random(1)
    for version in range(400):
        batch: Batch = [upsert(rng.choice(IDS), version * 3 + number) for number in range(3)]
        if version % 7 == 0:
            batch.append(delete(rng.choice(IDS), version * 3 + 2))
        oracle.apply(batch)
        put(store, *batch)
        settle(store)
        stats = store.stats()
        # Two blocks that fill up, and segments of which at most 0.3 are dead.
        assert stats["rows"] <= len(IDS) / (1 - SMALL.most_dead) + 2 * 8
        assert len(stats["segments"]) <= 6
    assert_same(store, oracle)


def test_a_search_goes_on_with_the_view_it_took() -> None:
    """Writes, sealing and merging leave the parts of an older view as they were."""
    store = make(4)
    put(store, *(upsert(id_, 1) for id_ in IDS))
    before = store.view
    for version in range(2, 30):
        put(store, *(upsert(id_, version) for id_ in IDS))
        maintain(store, SMALL)
    assert any(isinstance(part.rows, Segment) for part in store.view.parts.values())
    assert before.alive == before.count == len(IDS)
    kept = [(part, row) for part in before.parts.values() for row in part.living().tolist()]
    assert [part.rows.id(row) for part, row in kept] == IDS
    for part, row in kept:
        assert isinstance(part.rows, Block)
        write = part.rows.record(row)
        np.testing.assert_array_equal(write.fused, unit(write.id, 0, 1, "fused"))


def test_a_segment_that_dies_meanwhile_stays_as_an_older_view_saw_it() -> None:
    store = make(2)
    put(store, *(upsert(id_, 1) for id_ in IDS))
    settle(store)
    before = store.view
    assert all(isinstance(part.rows, Segment) for part in before.parts.values())
    put(store, *(delete(id_, 2) for id_ in IDS))
    assert settle(store)
    assert (len(store), store.stats()["rows"]) == (0, 0)
    assert before.alive == before.count == len(IDS)
    result = {
        part.rows.id(row): part.rows.record(row)
        for part in before.parts.values()
        for row in part.living().tolist()
    }
    assert set(result) == set(IDS)
    for id_, write in result.items():
        np.testing.assert_array_equal(write.fused, unit(id_, 0, 1, "fused"))


def test_rows_that_die_while_a_segment_is_written_are_dead_in_it() -> None:
    """Upserted, deleted, and written anew: each between the copy and its publication."""
    oracle = Oracle()
    batch: Batch = [upsert(id_, 1) for id_ in IDS]
    later: Batch = [upsert("r1", 5), delete("r2", 5), delete("r3", 5), upsert("r3", 6)]

    def meanwhile(name: str) -> None:
        if name == "segment-publish" and len(oracle.last) and oracle.last["r1"].version == 1:
            oracle.apply(later)
            put(store, *later)

    store = LiveStore(space=SPACE, dim=DIM, block=2, failpoint=meanwhile)
    oracle.apply(batch)
    put(store, *batch)
    assert maintain(store, Policy(seal_blocks=2, most_dead=0.9))
    assert oracle.rows["r1"].version == 5
    assert store.stats()["dead"] == 3
    assert_same(store, oracle)
    settle(store)
    assert_same(store, oracle)


@pytest.mark.slow
def test_get_finds_a_row_while_it_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 30 rows is there all the time, in ever new segments."""
    # by looking again, not by waiting for the writer
    monkeypatch.setattr(live_store, "LOOKS", 10**9)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns in the middle of everything
    store = make(3)
    ids = [f"r{number}" for number in range(30)]
    put(store, *(upsert(id_, 0) for id_ in ids))
    done = threading.Event()
    failures: list[BaseException] = []
    looks = 0

    def look() -> None:
        nonlocal looks
        try:
            while not done.is_set():
                for id_ in ids:
                    reached = store.progress.get(0, 0)
                    row = store.get(id_)
                    assert row is not None, id_
                    assert row.version >= reached
                    np.testing.assert_array_equal(
                        row.vectors["fused"], unit(id_, 0, row.version, "fused")
                    )
                    looks += 1
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    moved = 0
    try:
        for version in range(1, 60):
            store.apply([upsert(id_, version) for id_ in ids], positions={}, progress={0: version})
            moved += settle(store)
    finally:
        sys.setswitchinterval(before)
        done.set()
        thread.join()
    assert not failures, failures[0]
    assert looks > 100
    assert moved > 50


def test_a_sample_is_of_living_rows_each_once() -> None:
    store, oracle = make(3), Oracle()
    batch: Batch = [upsert(id_, 1) for id_ in IDS]
    batch += [delete("r0", 2), upsert("r1", 2), upsert("r2", 3)]
    oracle.apply(batch)
    put(store, *batch)
    for _ in range(2):
        rows = store.sample(5, seed=3)
        assert len({row.id for row in rows}) == len(rows) == 5
        assert {row.id: row.version for row in rows}.items() <= {
            id_: write.version for id_, write in oracle.rows.items()
        }.items()
        everything = store.sample(100)
        assert sorted(row.id for row in everything) == sorted(oracle.rows)
        settle(store)
    assert len({tuple(row.id for row in store.sample(5, seed=s)) for s in range(8)}) > 1


def test_equal_scores_come_in_the_order_of_their_ids() -> None:
    store = make()
    same = unit("one")
    for id_ in ("c", "a", "b"):
        put(store, Upsert(id=id_, partition=0, version=1, ts=1, model="m", fused=same))
    assert [hit.id for hit in store.search(same[None], k=3)[0]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("queries", "k", "field"),
    [
        (np.ones((1, DIM - 1), np.float32), 1, "vector"),
        (np.ones(DIM, np.float32), 1, "vector"),
        (np.full((1, DIM), np.nan, np.float32), 1, "vector"),
        (np.ones((1, DIM), np.float32), 0, "k"),
    ],
)
def test_a_bad_query_is_refused(queries: np.ndarray, k: int, field: str) -> None:
    with pytest.raises(BadQuery) as caught:
        make().search(queries, k=k)
    assert caught.value.field == field


def test_an_empty_store_and_no_queries_have_no_hits() -> None:
    store = make()
    assert store.search(unit("q")[None], k=3) == [[]]
    put(store, upsert("a", 1, by=["text"]))
    assert store.search(unit("q")[None], k=3, vector="audio") == [[]]
    assert store.search(np.zeros((0, DIM), np.float32), k=3) == []
