"""The Milvus store against the oracle, on Milvus Lite."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.index.errors import BadQuery, StoreError
from braid.index.filters import compile_filter
from braid.index.milvus.rows import HEADER, MAX_ID_BYTES
from braid.index.milvus.store import MilvusStore
from braid.index.store import Delete, Upsert, rows_of
from tests.index.histories import write
from tests.index.lite import fresh, opened, put
from tests.index.oracle import DIM, SPACE, Oracle, assert_same, delete, unit, upsert

IDS = [f"r{number}" for number in range(8)] + ['a"b\\', "c'd\n", "%_ [é]", "id in [\x00]"]
FEW = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with opened(tmp_path_factory.mktemp("milvus") / "lite.db") as opened_client:
        yield opened_client


@pytest.fixture
def store(client: Any) -> MilvusStore:
    return fresh(client)


def steps(partitions: int) -> st.SearchStrategy[list[list[Upsert | Delete] | None]]:
    """Batches of writes; None is another process that opens the collection."""
    batch = st.lists(write(ids=IDS, partitions=partitions), max_size=15)
    return st.lists(st.one_of(batch, batch, batch, st.none()), min_size=1, max_size=4)


@pytest.mark.slow
@FEW
@given(st.one_of(steps(1), steps(3)))
def test_any_history_answers_like_the_oracle(
    client: Any, history: list[list[Upsert | Delete] | None]
) -> None:
    store, oracle = fresh(client), Oracle()
    for number, batch in enumerate(history):
        if batch is None:
            before = store
            store = MilvusStore(client, before.collection)
            assert store.positions == before.positions
            assert store.progress == before.progress
        else:
            oracle.apply(batch)
            store.apply(batch, positions={0: number}, progress={0: number * 2})
            assert store.positions == {0: number}
    assert_same(store, oracle)


class Crashing:
    """A client whose connection breaks before one of its upserts."""

    def __init__(self, client: Any, at: int) -> None:
        self._client, self._left = client, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def upsert(self, *args: Any, **options: Any) -> Any:
        from pymilvus.exceptions import MilvusException

        self._left -= 1
        if self._left < 0:
            raise MilvusException(message="the connection broke")
        return self._client.upsert(*args, **options)


@pytest.mark.slow
def test_a_crash_before_any_of_the_writes_is_repaired_by_reading_on(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is several messages and the offsets; the process dies before each in turn."""
    monkeypatch.setattr("braid.index.milvus.store.MESSAGE_BYTES", 2500)
    rng = random.Random(1)
    log: list[Upsert | Delete] = []
    for version in range(60):
        id_ = rng.choice(IDS)
        log.append(delete(id_, version) if rng.random() < 0.2 else upsert(id_, version))
    oracle = Oracle()
    oracle.apply(log)
    for at in range(100):
        store = fresh(client)
        store.apply(log[:30], positions={0: 30}, progress={0: 30})
        dying = MilvusStore(Crashing(client, at), store.collection)
        try:
            dying.apply(log[30:50], positions={0: 50}, progress={0: 50})
        except StoreError:
            assert dying.positions == {0: 30}
        else:
            break
        again = MilvusStore(client, store.collection)
        assert again.positions == again.progress == {0: 30}
        again.apply(log[30:], positions={0: 60}, progress={0: 60})
        assert (again.stats()["ignored"] > 0) is (at > 0)  # some rows were there already
        assert_same(again, oracle)
        assert MilvusStore(client, store.collection).positions == {0: 60}
    assert at >= 4


def test_rows_are_written_before_the_offsets(client: Any) -> None:
    """Who reads the offsets in Milvus finds there what they promise."""
    store = fresh(client)
    written: list[list[str]] = []

    class Seen(Crashing):
        def upsert(self, name: str, rows: list[dict[str, Any]], **options: Any) -> Any:
            written.append([row["id"] for row in rows])
            return super().upsert(name, rows, **options)

    seen = MilvusStore(Seen(client, 9), store.collection)
    seen.apply([upsert("a", 1), delete("b", 2)], positions={0: 3}, progress={0: 3})
    assert written == [["a", "b"], [HEADER]]
    seen.apply([upsert("a", 1)], positions={0: 3}, progress={0: 2})  # nothing new, nothing written
    assert len(written) == 2


def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    oracle = Oracle()
    with opened(tmp_path / "lite.db") as client:
        store = fresh(client, "kept_")
        batch: list[Upsert | Delete] = [
            *(upsert(id_, number) for number, id_ in enumerate(IDS)),
            delete("r1", 90),
        ]
        oracle.apply(batch)
        store.note({"topic": {"id": "x"}})
        store.apply(batch, positions={0: 91, 3: 7}, progress={0: 40})
    with opened(tmp_path / "lite.db") as client:
        store = fresh(client, "kept_")
        assert store.positions == {0: 91, 3: 7}
        assert store.facts == {"topic": {"id": "x"}}
        assert store.progress == {0: 40}
        late = [upsert("r1", 89), upsert("r2", 91)]
        oracle.apply(late)
        put(store, *late)
        assert_same(store, oracle)


def test_an_older_write_never_wins_and_a_repeated_one_changes_nothing(store: MilvusStore) -> None:
    put(store, upsert("a", 5))
    put(store, upsert("a", 4), upsert("a", 5, model="m-2"), delete("a", 5), delete("a", 3))
    row = store.get("a")
    assert row is not None
    assert (row.version, row.model) == (5, "m-1")
    assert store.stats()["ignored"] == 4


def test_many_records_are_read_together(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.index.milvus.store.LOOK_UP", 5)
    put(store, *(upsert(id_, 1) for id_ in IDS), delete(IDS[0], 2))
    asked = 0
    look_up = store._query

    def counted(condition: str, fields: list[str]) -> list[dict[str, Any]]:
        nonlocal asked
        asked += 1
        return look_up(condition, fields)

    monkeypatch.setattr(store, "_query", counted)
    rows = rows_of(store, [*IDS, "none", "half\ud800"])
    assert set(rows) == set(IDS[1:])
    assert asked == 3
    assert [rows[id_].vectors["text"].tolist() for id_ in IDS[1:]] == [
        unit(id_, 0, 1, "text").tolist() for id_ in IDS[1:]
    ]


@pytest.mark.slow
def test_a_sample_is_steady_and_in_the_end_everything(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.index.milvus.sample.AT_ONCE", 40)
    store = fresh(client)
    assert store.sample(5) == []
    ids = {f"s{number}" for number in range(400)}
    put(store, *(upsert(id_, 1) for id_ in sorted(ids)))

    def sampled(limit: int, seed: int = 0) -> set[str]:
        rows = store.sample(limit, seed=seed)
        result = {row.id for row in rows}
        assert len(result) == len(rows) == min(limit, len(store))
        return result

    first = sampled(100)
    assert sampled(100) == first != sampled(100, seed=1)
    assert sampled(60) < first
    assert sampled(0) == set()
    for seed in range(5):
        assert sampled(1000, seed) == ids
    gone = sorted(first)[:10]
    put(store, *(delete(id_, 2) for id_ in gone))
    assert len(sampled(100) & first) == 90
    assert sampled(1000) == ids - set(gone)
    assert store.ids() == ids - set(gone)


def test_a_deletion_is_remembered_and_a_later_write_comes_back(store: MilvusStore) -> None:
    put(store, upsert("a", 1), delete("a", 3), upsert("a", 2))
    put(store, delete("never seen", 7))
    put(store, upsert("never seen", 6))
    assert store.get("a") is None
    assert store.get("never seen") is None
    stats = store.stats()
    assert (stats["records"], stats["rows"], stats["dead"]) == (0, 2, 2)
    put(store, upsert("a", 4))
    assert [hit.id for hit in store.search(unit("q")[None], k=5)[0]] == ["a"]


def test_in_a_second_partition_the_later_ts_wins_and_it_is_counted(
    store: MilvusStore, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, upsert("a", 100, partition=0, ts=50))
    put(store, upsert("a", 3, partition=1, ts=60))
    row = store.get("a")
    assert row is not None
    assert (row.partition, row.version) == (1, 3)
    put(store, upsert("a", 101, partition=0, ts=55), delete("a", 102, partition=0, ts=59))
    again = store.get("a")
    assert again is not None
    assert (again.partition, again.version) == (1, 3)
    assert store.stats()["second_partition"] == 3
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "partition" in warned[0].getMessage()


def test_offsets_only_move_forward(store: MilvusStore) -> None:
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
        {"by": {"smell": unit("x")}},
        {"by": {"fused": unit("x")}},
        {"model": "m" * 257},
        {"meta": {"b": object()}},
        {"meta": {"b": "\x01" * 50_000}},
        {"id": "b:" + "b" * MAX_ID_BYTES},
    ],
)
def test_a_wrong_write_is_refused_and_nothing_of_its_batch_is_applied(
    store: MilvusStore, wrong: dict[str, object]
) -> None:
    good = upsert("a", 1)
    fields = {name: getattr(good, name) for name in ("partition", "ts", "model", "fused")}
    bad = Upsert(**{**fields, "id": "b", "version": 2, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="b:"):
        store.apply([good, bad], positions={0: 5}, progress={0: 5})
    assert len(store) == 0
    assert MilvusStore(store._client, store.collection).positions == store.positions == {}


@pytest.mark.parametrize("id_", [HEADER, "half\ud800"])
def test_what_cannot_be_an_id_is_refused(store: MilvusStore, id_: str) -> None:
    with pytest.raises(ValueError):
        put(store, delete(id_, 1))
    assert store.get(id_) is None
    assert store.space == SPACE


def test_meta_comes_back_as_it_was(store: MilvusStore) -> None:
    metas: list[dict[str, Any]] = [
        {"n": 1, "f": 1.0, "t": True, "none": None, "list": [1, 1.0, None, "x"], "": "é☃\x00\n"},
        {"int64": 2**63 - 1, "least": -(2**63), "tiny": 5e-324, "deep": {"a": [{}]}, "zero": -0.0},
        {"beyond": 2**64 - 1},
        {"control": "\x01" * 16_000, "nan": float("inf")},
        {"many": list(range(5000))},
    ]
    put(store, *(upsert(str(number), 1, meta=meta) for number, meta in enumerate(metas)))
    for number, meta in enumerate(metas):
        row = store.get(str(number))
        assert row is not None
        assert repr(row.meta) == repr(meta)  # 1, 1.0 and true are equal, but not the same
        wanted = compile_filter({next(iter(meta)): {"exists": True}})
        (hits,) = store.search(unit("q")[None], k=9, filter=wanted)
        assert [hit.meta for hit in hits] == [meta]


def test_equal_scores_come_in_the_order_of_their_ids(store: MilvusStore) -> None:
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
        (np.ones((1, DIM), np.float32), 16_385, "k"),
    ],
)
def test_a_bad_query_is_refused(
    store: MilvusStore, queries: np.ndarray, k: int, field: str
) -> None:
    with pytest.raises(BadQuery) as caught:
        store.search(queries, k=k)
    assert caught.value.field == field


def test_an_empty_store_and_no_queries_have_no_hits(store: MilvusStore) -> None:
    assert store.search(unit("q")[None], k=3) == [[]]
    put(store, upsert("a", 1, by=["text"]))
    for vector in ("audio", "smell", "alive == true or text"):
        assert store.search(unit("q")[None], k=3, vector=vector) == [[]]
    assert store.search(np.zeros((0, DIM), np.float32), k=3) == []
    assert store.search(np.zeros((0, DIM), np.float32), k=3, filter=compile_filter({"a": 1})) == []


@pytest.mark.slow
def test_where_milvus_finds_too_much_the_search_looks_further(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range over a name that the expression cannot hold: only the kind is asked of Milvus."""
    monkeypatch.setattr("braid.index.milvus.store.MOST_WITH_META", 64)
    monkeypatch.setattr("braid.index.milvus.store.LOOK_UP", 50)
    store, oracle = fresh(client), Oracle()
    rows = 300
    batch = [upsert(f"n{number}", number, by=[], meta={"[n]": number}) for number in range(rows)]
    oracle.apply(batch)
    put(store, *batch)
    queries_BD = np.stack([unit("query", number) for number in range(3)])
    for least in (rows - 5, rows // 2):
        given = {"[n]": {"gte": least}}
        for k in (1, 20):
            answers = store.search(queries_BD, k=k, filter=compile_filter(given))
            for query_D, hits in zip(queries_BD, answers, strict=True):
                expected = oracle.search(query_D, k=k, filter=given)
                assert [hit.id for hit in hits] == [id_ for id_, _ in expected]


def test_what_cannot_be_answered_exactly_is_refused(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.index.milvus.store.MOST_K", 20)
    monkeypatch.setattr("braid.index.milvus.store.MOST_WITH_META", 10)
    put(store, *(upsert(f"n{number}", number, meta={"[n]": number}) for number in range(40)))
    nobody = compile_filter({"[n]": {"gt": 39}})
    with pytest.raises(BadQuery, match=r"filter.*20 nearest"):
        store.search(unit("q")[None], k=3, filter=nobody)


def test_a_cleared_store_is_empty_and_forgets_even_deletions(store: MilvusStore) -> None:
    store.apply([upsert("a", 5), delete("b", 6)], positions={0: 7}, progress={0: 7})
    store.note({"topic": "t"})
    store.clear()
    reopened = MilvusStore(store._client, store.collection)
    for cleared in (store, reopened):
        assert cleared.stats()["rows"] == 0
        assert cleared.positions == cleared.progress == {}
        assert cleared.facts == {}
    put(store, upsert("a", 1), upsert("b", 1))
    assert len(store) == 2


def test_a_sample_stays_the_same_as_far_as_it_lives(client: Any) -> None:
    store = fresh(client)
    assert store.sample(5) == []
    store.apply([upsert(f"r{n}", n) for n in range(40)], positions={0: 40}, progress={0: 40})
    first = {row.id for row in store.sample(10)}
    assert len(first) == 10
    assert {row.id for row in store.sample(10, seed=1)} != first
    gone = sorted(first)[0]
    store.apply([delete(gone, 99)], positions={0: 41}, progress={0: 41})
    assert {row.id for row in store.sample(10)} > first - {gone}
    rows = store.sample(100)
    assert {row.id for row in rows} == {f"r{n}" for n in range(40)} - {gone}
    for row in rows:
        assert row.vectors.keys() == store.get_many([row.id])[row.id].vectors.keys()
    assert set(store.get_many(["r1", "nobody", gone, "\ud800"])) == {"r1"} - {gone}
