"""The splits: by the id alone, for good, and in their shares."""

from __future__ import annotations

from collections import Counter

from braid.encoders.training.splits import split

IDS = [f"r{number}" for number in range(10_000)]


def test_the_split_of_an_id_never_changes() -> None:
    """Another split would train the next version on what the last one was judged by."""
    by_id = {"r1": "train", "r2": "validation", "r13": "judge"}
    assert {id_: split(id_) for id_ in by_id} == by_id


def test_splits_have_their_shares() -> None:
    shares = Counter(map(split, IDS))
    assert set(shares) == {"train", "validation", "judge"}
    assert 7_850 < shares["train"] < 8_150
    assert 900 < shares["validation"] < 1_100


def test_without_a_judge_its_records_are_trained_on_and_nothing_else_moves() -> None:
    for id_ in IDS[:1000]:
        named = split(id_)
        assert split(id_, judge=False) == ("train" if named == "judge" else named)
