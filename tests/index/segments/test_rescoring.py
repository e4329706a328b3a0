"""Exact rescoring: no candidate is pruned that may outscore a hit that an answer marks proven."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.growing import Block
from braid.index.segments.live_store import LiveStore
from braid.index.segments.rescoring import merge
from braid.index.segments.scan import Candidates
from braid.index.segments.view import Part
from braid.index.store import Upsert


def upsert(id: str, *values: float) -> Upsert:
    vector_D = np.array(values, np.float32)
    return Upsert(id=id, partition=0, version=0, ts=0, model="m", fused=vector_D)


def part(number: int, *rows: Upsert) -> Part:
    block = Block(len(rows))
    for row, write in enumerate(rows):
        block.write(row, write, slot=row)
    return Part(number, block, len(rows), np.ones(len(rows), np.bool_), len(rows))


def candidates(scores: list[float], *, off: float) -> Candidates:
    """All rows of a part by these quick scores, which differ by up to `off` from the true ones."""
    return Candidates(
        score_BK=np.array([scores], np.float32),
        row_BK=np.arange(len(scores))[None],
        above_B=np.array([-np.inf], np.float32),
        off_B=np.array([off], np.float32),
    )


def test_the_kth_score_is_lowered_by_its_error_before_it_prunes() -> None:
    """b may score 0.85 at most, less than a's quick score; but a's true score may be 0.5."""
    parts = [
        (part(0, upsert("a", 0.6)), candidates([1.0], off=0.5)),
        (part(1, upsert("b", 0.8)), candidates([0.8], off=0.05)),
    ]
    (answer,) = merge(np.ones((1, 1), np.float32), "fused", 1, parts)
    assert answer.proven
    assert [(hit[0].number, hit[1]) for hit in answer.hits] == [(1, 0)]
    assert np.isclose(answer.hits[0][2], 0.8)


def test_a_candidate_below_the_lowered_kth_score_is_not_scored_again() -> None:
    """c may score 0.4 at most, below the 0.5 that a has at least: its vector is not read."""
    rows = part(0, upsert("a", 0.6), upsert("c", 9.0))
    (answer,) = merge(
        np.ones((1, 1), np.float32), "fused", 1, [(rows, candidates([1.0, -0.1], off=0.5))]
    )
    assert [hit[1] for hit in answer.hits] == [0]


def test_an_answer_is_proven_if_no_other_row_may_score_higher() -> None:
    rows = part(0, upsert("a", 0.5), upsert("b", 0.25))
    for above, proven in ((0.25, True), (0.26, False)):
        kept = replace(candidates([0.5, 0.25], off=0.0), above_B=np.array([above], np.float32))
        (answer,) = merge(np.ones((1, 1), np.float32), "fused", 2, [(rows, kept)])
        assert answer.proven is proven


def test_no_hit_is_pruned_among_many_candidates_without_an_error() -> None:
    """The k-th hit may score exactly as high as at least k rows score."""
    for seed in range(10):
        value_N = np.random.default_rng(seed).permutation(60).astype(np.float32)
        rows = part(0, *(upsert(f"r{n}", float(value)) for n, value in enumerate(value_N)))
        kept = [(rows, candidates(value_N.tolist(), off=0.0))]
        (answer,) = merge(np.ones((1, 1), np.float32), "fused", 10, kept)
        assert [score for _, _, score in answer.hits] == list(range(59, 49, -1))


def test_rounding_to_8_bits_that_swaps_two_rows_does_not_swap_the_hits() -> None:
    """Both rows lose as much as a row can: a is rounded up, b, which is the nearer one, down.

    Row c, the longest, makes the steps 2^-7. The 8-bit score of a is above that of b by more than
    the largest error of one score, but by less than the errors of both together.
    """
    step, bit = 2.0**-7, 2.0**-14
    a = 0.5 + step / 2 + bit  # to 0.5 + step
    b = 0.5 + step / 2 - bit  # to 0.5
    c = -127 * step
    store = LiveStore(space="s", dim=2, block=3)
    rows = [upsert("a", a, a), upsert("b", b, b + step), upsert("c", c, c)]
    store.apply(rows, positions={}, progress={})
    assert maintain(store, Policy(seal_blocks=1))
    ((hit,),) = store.search(np.ones((1, 2), np.float32), k=1)
    assert hit.id == "b"
    assert hit.score == 2 * b + step
