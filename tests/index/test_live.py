"""The flat store against a dictionary and numpy, over random histories."""

from __future__ import annotations

import random
import tempfile
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.errors import BadQuery
from index.live import LiveStore
from index.scan import FEW_OUT
from index.snapshot import load, save
from index.store import Delete, Upsert

from .oracle import DIM, NAMES, SPACE, Oracle, assert_same, delete, unit, upsert

IDS = [f"r{number}" for number in range(12)]
FEW = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def make(block: int = 8) -> LiveStore:
    return LiveStore(space=SPACE, dim=DIM, block=block)


def put(store: LiveStore, *writes: Upsert | Delete) -> None:
    store.apply(writes, positions={}, progress={})


@st.composite
def write(draw: st.DrawFn, *, partitions: int = 1) -> Upsert | Delete:
    id_ = draw(st.sampled_from(IDS))
    version = draw(st.integers(0, 30))
    partition = draw(st.integers(0, partitions - 1))
    ts = draw(st.integers(0, 5))
    if draw(st.integers(0, 3)) == 0:
        return delete(id_, version, partition=partition, ts=ts)
    by = draw(st.sets(st.sampled_from(NAMES[1:])))
    return upsert(id_, version, partition=partition, ts=ts, by=sorted(by))


def steps(partitions: int) -> st.SearchStrategy[list[list[Upsert | Delete] | None]]:
    """Batches of writes; None is a snapshot and a restart from it."""
    batch = st.lists(write(partitions=partitions), max_size=25)
    return st.lists(st.one_of(batch, batch, batch, st.none()), max_size=8)


@FEW
@given(st.one_of(steps(1), steps(3)), st.integers(1, 9))
def test_any_history_answers_like_the_oracle(
    history: list[list[Upsert | Delete] | None], block: int
) -> None:
    store, oracle = make(block), Oracle()
    with tempfile.TemporaryDirectory() as folder:
        for number, batch in enumerate(history):
            if batch is None:
                info = save(store, Path(folder), generation="g0001")
                if info is not None:
                    before = store
                    store = load(info.path)
                    assert store.positions == before.positions
                    assert store.progress == before.progress
            else:
                oracle.apply(batch)
                store.apply(batch, positions={0: number}, progress={0: number * 2})
                assert store.positions == {**store.positions, 0: number}
            assert_same(store, oracle, seed=number)


@FEW
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_replays_in_any_order_end_the_same(seed: int, partitions: int) -> None:
    """As long as ts does not go back within a partition, order and repeats do not matter."""
    rng = random.Random(seed)
    history: list[Upsert | Delete] = []
    for version in range(40):
        id_, partition = rng.choice(IDS), rng.randrange(partitions)
        ts = version // 3
        history.append(
            delete(id_, version, partition=partition, ts=ts)
            if rng.random() < 0.25
            else upsert(id_, version, partition=partition, ts=ts)
        )
    oracle = Oracle()
    oracle.apply(history)
    replay = history + rng.choices(history, k=20)
    rng.shuffle(replay)
    store = make(4)
    while replay:
        size = rng.randint(1, 9)
        put(store, *replay[:size])
        replay = replay[size:]
    assert_same(store, oracle)


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


def test_compaction_keeps_memory_in_proportion_and_answers_alike() -> None:
    store, oracle = make(8), Oracle()
    rng = random.Random(1)
    for version in range(400):
        batch: list[Upsert | Delete] = [
            upsert(rng.choice(IDS), version * 3 + number) for number in range(3)
        ]
        if version % 7 == 0:
            batch.append(delete(rng.choice(IDS), version * 3 + 2))
        oracle.apply(batch)
        put(store, *batch)
        stats = store.stats()
        assert stats["rows"] <= 2 * len(IDS) + 2 * 8
    assert_same(store, oracle)
    assert len(store._view.blocks) <= 8  # emptied blocks are used again


def test_a_search_goes_on_with_the_view_it_took() -> None:
    """Compaction and deletions leave the rows of an older view as they were."""
    store = make(4)
    put(store, *(upsert(id_, 1) for id_ in IDS))
    before = store._view
    kept = [published.block.rows[row].id for published in before.blocks for row in range(4)]
    for version in range(2, 30):
        put(store, *(upsert(id_, version) for id_ in IDS))
    for published in before.blocks:
        assert published.living() == [0, 1, 2, 3]
        for row in published.living():
            write = published.block.rows[row]
            np.testing.assert_array_equal(write.fused, unit(write.id, 0, 1, "fused"))
    assert kept == IDS


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("queries", [1, 16])
def test_many_rows_that_may_not_be_hits(share: float, queries: int) -> None:
    """Each of the ways to leave rows out finds the same."""
    rows = 4 * FEW_OUT
    store, oracle = make(rows), Oracle()
    batch: list[Upsert | Delete] = [
        upsert(f"n{number}", number, meta={"in": number / rows < share}) for number in range(rows)
    ]
    batch += [delete(f"n{number}", rows) for number in range(0, rows, 100)]
    oracle.apply(batch)
    put(store, *batch)
    queries_BD = np.stack([unit("query", number) for number in range(queries)])
    for k in (1, 10, 2 * rows):
        answers = store.search(queries_BD, k=k, filter=lambda meta: bool(meta["in"]))
        for query_D, hits in zip(queries_BD, answers, strict=True):
            expected = oracle.search(query_D, k=k, filter={"in": True})
            assert [hit.id for hit in hits] == [id_ for id_, _ in expected]
            np.testing.assert_allclose(
                [hit.score for hit in hits], [score for _, score in expected], atol=1e-5
            )


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


def test_without_a_gpu_asking_for_one_is_refused() -> None:
    if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="gpu"):
        LiveStore(space=SPACE, dim=DIM, gpu=True)


def test_a_search_uses_the_threads_that_the_store_was_given() -> None:
    """OpenMP's number is per thread; the search must set it where it runs."""
    store = LiveStore(space=SPACE, dim=DIM, threads=3)
    put(store, upsert("a", 1))
    seen: list[int] = []

    def search() -> None:
        store.search(unit("q")[None], k=1)
        seen.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [3]
