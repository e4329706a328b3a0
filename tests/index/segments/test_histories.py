"""Random histories, compared with a dictionary and numpy after every step."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.index.filters import compile_filter
from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import restore, save
from tests.index.histories import IDS, SMALL, Batch, after, make, put, settle, tuned, write
from tests.index.oracle import Oracle, assert_same, delete, unit, upsert

FEW = settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def steps(partitions: int) -> st.SearchStrategy[list[Batch | str]]:
    batch = st.lists(write(partitions=partitions), max_size=25)
    other = st.sampled_from(["compact", "settle", "save", "restart", "crash", "again"])
    return st.lists(st.one_of(batch, batch, other), max_size=14)


tunings = st.fixed_dictionaries(
    {
        "FEW_ROWS": st.sampled_from([0, 3, 2048]),
        "MANY_QUERIES": st.sampled_from([1, 2, 12]),
        "MOST_WANTED": st.sampled_from([0.0, 0.25, 2.0]),
        "MOST_FETCHED": st.sampled_from([4, 1024]),
        "FEW_OUT": st.sampled_from([0, 4, 256]),
        "SELECT_QUERIES": st.sampled_from([0, 16]),
        "CHUNK": st.sampled_from([3, 8192]),
        "SPARE": st.sampled_from([0, 16]),
        "MORE": st.sampled_from([1, 8]),
    }
)

APPROXIMATE: dict[str, Any] = {"FROM_ROWS": 64, "FEW_ROWS": 3, "MOST_LISTS": 0.9, "SAMPLE": 60}


@dataclass
class Run:
    """One store, its folder, and all that was ever applied to it: positions count the batches."""

    store: LiveStore
    home: Path
    block: int
    threads: int
    applied: list[Batch]

    def step(self, step: Batch | str) -> None:
        if isinstance(step, list):
            self.apply(step)
        elif step == "again":  # an old batch comes once more
            self.apply(self.applied[len(self.applied) // 2] if self.applied else [])
        elif step == "compact":
            maintain(self.store, SMALL)
        elif step == "settle":
            settle(self.store)
        elif step == "save":
            save(self.store, self.home, generation="g0001")
        elif step == "restart":
            save(self.store, self.home, generation="g0001")
            self.restart()
            assert self.reached == len(self.applied)
        else:
            self.restart()  # and what came after the last snapshot is read again
            replayed, self.applied = self.applied[self.reached :], self.applied[: self.reached]
            assert_same(self.store, after(self.applied))
            for batch in replayed:
                self.apply(batch)

    @property
    def reached(self) -> int:
        return self.store.positions.get(0, 0)

    def apply(self, batch: Batch) -> None:
        self.applied.append(batch)
        number = len(self.applied)
        self.store.apply(batch, positions={0: number}, progress={0: number * 2})

    def restart(self) -> None:
        self.store.close()
        restored = restore(self.home, threads=self.threads)
        self.store = restored.store if restored else make(home=self.home, threads=self.threads)
        self.store.block = self.block
        assert self.store.progress.get(0, 0) == 2 * self.reached


@pytest.mark.slow
@FEW
@given(
    st.one_of(steps(1), steps(3)),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([1, 2]),
    tunings,
)
def test_any_history_answers_like_the_oracle(
    given_steps: list[Batch | str], block: int, on_disk: bool, threads: int, tuning: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder, tuned(**tuning):
        home = Path(folder)
        run = Run(
            make(block, home=home if on_disk else None, threads=threads), home, block, threads, []
        )
        for number, step in enumerate(given_steps):
            run.step(step)
            assert_same(run.store, after(run.applied), seed=number, brief=True)
        assert_same(run.store, after(run.applied))
        run.store.close()


@pytest.mark.slow
@FEW
@given(st.integers(0, 10**6), st.integers(1, 3), tunings)
def test_replays_in_any_order_end_the_same(
    seed: int, partitions: int, tuning: dict[str, Any]
) -> None:
    """As long as ts does not go back within a partition, order and repeats do not matter."""
    rng = random.Random(seed)
    history: Batch = []
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
        if rng.random() < 0.5:
            maintain(store, SMALL)
    with tuned(**tuning):
        assert_same(store, oracle)


@pytest.mark.slow
@settings(FEW, max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.3, 0.8]), st.booleans())
def test_with_approximate_indexes_what_is_promised_holds(
    seed: int, recall: float, on_disk: bool
) -> None:
    """Whatever an approximate index leaves out: no wrong row, no wrong score, as many as asked."""
    rng = random.Random(seed)
    policy = Policy(seal_blocks=2, tier=3, most_rows=400)
    with tempfile.TemporaryDirectory() as folder, tuned(**APPROXIMATE):
        home = Path(folder)
        store = make(32, home=home if on_disk else None, recall=recall)
        applied: list[Batch] = []
        for version in range(0, 400, 20):
            batch: Batch = [
                delete(f"r{rng.randrange(300)}", version + number)
                if rng.random() < 0.1
                else upsert(f"r{rng.randrange(300)}", version + number)
                for number in range(20)
            ]
            applied.append(batch)
            put(store, *batch)
            settle(store, policy)
        assert any(one.vectors["fused"].approximate for one in store.segments())
        assert not store.exact
        oracle = after(applied)
        assert_same(store, oracle, exact=True)
        _structure(store, oracle)
        store.apply([], positions={0: 1}, progress={})
        save(store, home, generation="g0001")
        restored = restore(home, recall=recall)
        assert restored is not None
        assert not restored.store.exact
        assert_same(restored.store, oracle, exact=True)
        _structure(restored.store, oracle)


def _structure(store: LiveStore, oracle: Oracle) -> None:
    query_D = unit("query")
    for given_filter in (None, {"even": True}, {"version": {"lt": 40}}):
        keep = None if given_filter is None else compile_filter(given_filter)
        for name in ("fused", "text"):
            truth = dict(oracle.search(query_D, k=10**6, vector=name, filter=given_filter))
            for k in (1, 10, 100, 1000):
                (hits,) = store.search(query_D[None], k=k, vector=name, filter=keep)
                assert len({hit.id for hit in hits}) == len(hits) == min(k, len(truth))
                scores = [hit.score for hit in hits]
                assert scores == sorted(scores, reverse=True)
                np.testing.assert_allclose(scores, [truth[hit.id] for hit in hits], atol=1e-6)
                for hit in hits:
                    assert hit.version == oracle.rows[hit.id].version
