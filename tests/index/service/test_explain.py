"""`explain`: scores by modality, and the cut-off from what unrelated records score."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from braid.index.client import Client
from braid.index.segments.live_store import LiveStore
from braid.index.service.explain import LEAST, SAMPLE, UnrelatedScores, cutoff_of
from braid.index.store import Array, Row, Upsert
from tests.index.conftest import Node
from tests.index.oracle import DIM, SPACE, unit


def store_of(vectors: list[Array], *, start: int = 0) -> LiveStore:
    store = LiveStore(space=SPACE, dim=DIM, block=64)
    add(store, vectors, start=start)
    return store


def add(store: LiveStore, vectors: list[Array], *, start: int) -> None:
    writes = [
        Upsert(
            id=f"r{number}",
            partition=0,
            version=number,
            ts=1,
            model="m",
            fused=vector_D,
            by={"text": vector_D} if number % 2 else {},
            meta={},
        )
        for number, vector_D in enumerate(vectors, start)
    ]
    end = start + len(vectors)
    store.apply(writes, positions={0: end}, progress={0: end})


def around(centre_D: Array, count: int, spread: float, seed: int) -> list[Array]:
    """Unit vectors around a centre."""
    noise_ND = np.random.default_rng(seed).normal(0, spread, (count, DIM))
    vectors_ND = centre_D + noise_ND
    unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return list(unit_ND.astype(np.float32))


def test_the_cut_off_is_what_the_best_of_chance_scores_reaches() -> None:
    rng = np.random.default_rng(0)
    bests, cutoffs = [], []
    for _ in range(200):
        scores = rng.normal(0.1, 0.05, 1000).astype(np.float32)
        bests.append(float(scores.max()))
        cutoffs.append(cutoff_of(scores, len(scores)))
    above = np.mean([best > cut for best, cut in zip(bests, cutoffs, strict=True) if cut])
    assert above < 0.25
    assert np.mean(bests) == pytest.approx(np.mean([cut for cut in cutoffs if cut]), abs=0.03)
    assert cutoff_of(np.array([0.9, 0.1] * 50, np.float32), 100) is None  # half of them match


def test_matches_are_above_it_and_others_below() -> None:
    query_D = unit("what is searched")
    others = around(unit("something else"), 200, 0.15, seed=0)
    matches = around(query_D, 5, 0.02, seed=1)
    store = store_of([*others, *matches])
    cut = UnrelatedScores().cutoff(store, "fused", query_D)
    assert cut is not None
    assert max(float(vector_D @ query_D) for vector_D in others) < cut
    assert min(float(vector_D @ query_D) for vector_D in matches) > cut


def test_too_few_records_have_none() -> None:
    query_D = unit("q")
    vectors = around(unit("x"), 2 * LEAST - 2, 0.2, seed=0)
    unrelated = UnrelatedScores()
    store = store_of(vectors)
    assert unrelated.cutoff(store, "fused", query_D) is not None
    assert unrelated.cutoff(store, "text", query_D) is None  # half of them
    assert unrelated.cutoff(store, "audio", query_D) is None
    add(store, vectors[:8], start=len(vectors))
    assert unrelated.cutoff(store, "text", query_D) is not None  # a tenth more: a new sample


def test_the_records_are_those_that_have_the_vector() -> None:
    """Of a store of 4000, half of them with a text, the best of 2000 texts is expected."""
    query_D = unit("q")
    store = store_of(around(unit("x"), 4000, 0.2, seed=0))
    texts_SD = np.stack(
        [row.vectors["text"] for row in store.sample(SAMPLE) if "text" in row.vectors]
    )
    expected = cutoff_of(texts_SD @ query_D, 4000 * len(texts_SD) / SAMPLE)
    assert 450 < len(texts_SD) < 550
    assert UnrelatedScores().cutoff(store, "text", query_D) == pytest.approx(expected, abs=1e-6)


def test_a_store_in_the_place_of_another_has_its_own_sample() -> None:
    """Python gives a new object the identity of one that is gone."""
    query_D = unit("q")
    unrelated = UnrelatedScores()
    for seed in range(20):
        store = store_of(around(unit("x"), 40, 0.3, seed=seed))
        fresh = UnrelatedScores().cutoff(store, "fused", query_D)
        assert unrelated.cutoff(store, "fused", query_D) == fresh
        del store
    gc.collect()
    assert len(unrelated._slots) == 0


def test_nobody_waits_for_a_sample_while_there_is_one_before_it() -> None:
    query_D = unit("q")
    drawing, go_on = threading.Event(), threading.Event()

    class Slow(LiveStore):
        slow = False

        def sample(self, limit: int, *, seed: int = 0) -> list[Row]:
            if self.slow:
                drawing.set()
                assert go_on.wait(30)
            return super().sample(limit, seed=seed)

    now = [0.0]
    unrelated = UnrelatedScores(clock=lambda: now[0])
    store, other = (
        Slow(space=SPACE, dim=DIM, block=64),
        store_of(around(unit("y"), 40, 0.2, seed=1)),
    )
    add(store, around(unit("x"), 100, 0.2, seed=0), start=0)
    before = unrelated.cutoff(store, "fused", query_D)
    store.slow, now[0] = True, 60.0
    with ThreadPoolExecutor(3) as pool:
        try:
            first = pool.submit(unrelated.cutoff, store, "fused", query_D)
            assert drawing.wait(30)
            second = pool.submit(unrelated.cutoff, store, "fused", query_D)
            third = pool.submit(unrelated.cutoff, other, "fused", query_D)
            assert second.result(30) == before
            assert third.result(30) is not None
        finally:
            go_on.set()
        assert first.result(30) == before  # the same records


def test_a_sample_is_kept_for_a_while() -> None:
    now = [0.0]
    query_D = unit("q")
    unrelated = UnrelatedScores(clock=lambda: now[0])
    store = store_of(around(unit("x"), 100, 0.2, seed=0))
    before = unrelated.cutoff(store, "fused", query_D)
    add(store, [-query_D], start=100)  # the lowest
    assert unrelated.cutoff(store, "fused", query_D) == pytest.approx(before, abs=0.005)
    now[0] = 60.0
    after = unrelated.cutoff(store, "fused", query_D)
    assert after is not None
    assert before is not None
    assert abs(after - before) > 0.02


def test_only_who_asks_gets_an_explanation(node: Node, client: Client) -> None:
    plain = client.search(text="a red bird", k=3)
    assert "cutoff" not in plain.model_fields_set
    assert all("scores" not in hit.model_fields_set for hit in plain.hits)
    answer = client.search(text="a red bird", k=3, explain=True)
    query_D = unit("a red bird", None, None)
    for hit in answer.hits:
        by = node.oracle.rows[hit.id].by
        assert hit.scores == pytest.approx(
            {name: float(vector_D @ query_D) for name, vector_D in by.items()}, abs=1e-6
        )
        assert hit.scores is not None
        assert hit.matched == max(hit.scores, key=hit.scores.__getitem__)
    scores = np.array([row.fused @ query_D for row in node.oracle.rows.values()], np.float32)
    assert len(scores) >= LEAST
    assert answer.cutoff == pytest.approx(cutoff_of(scores, len(scores)), abs=1e-5)
