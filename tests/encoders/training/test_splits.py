"""The splits: by the id alone, for good, and in their shares."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from braid.encoders.model.learnt import Learnt
from braid.encoders.training.splits import (
    Splits,
    common,
    marks_of,
    records_of,
    split,
    unlearnt_records,
)
from braid.encoders.types import Sample

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


def test_the_records_of_a_split_are_the_last_of_each_id_in_order() -> None:
    samples = [Sample(id=f"r{n}", text=text) for text in ("old", "new") for n in range(60, 0, -1)]
    judged = records_of(samples, "judge")
    assert [one.id for one in judged] == sorted(
        f"r{n}" for n in range(1, 61) if split(f"r{n}") == "judge"
    )
    assert {one.text for one in judged} == {"new"}
    few = records_of(samples, "judge", most=2)
    assert len(few) == 2
    assert {one.id for one in few} < {one.id for one in judged}
    assert [one.id for one in few] == sorted(one.id for one in few)
    assert records_of(samples[::-1], "judge", most=2) != few  # the old ones of the same ids
    assert [one.id for one in records_of(samples[::-1], "judge", most=2)] == [one.id for one in few]


def spread(*records: Sample, others: int = 198) -> Splits:
    """The splits of records among others: among 200 a content of two is just not common."""
    return Splits.among(marks_of([*records, *(Sample(id=f"o{n}") for n in range(others))]))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"text": "A red bird!"}, {"text": "a  red\nBIRD"}),
        ({"image": b"picture", "text": "a bird"}, {"image": b"picture", "text": "a hen"}),
        ({"audio": b"sound"}, {"audio": b"sound"}),
        ({"group": "speaker 7"}, {"group": "speaker 7", "text": "another"}),
    ],
    ids=["caption", "picture", "sound", "group"],
)
def test_records_of_equal_content_are_in_one_split(
    left: dict[str, Any], right: dict[str, Any]
) -> None:
    assert split("r13") == "judge"
    assert split("r1") == "train"
    splits = spread(Sample(id="r13", **left), Sample(id="r1", **right))
    assert splits.of["r13"] == splits.of["r1"] == "train"  # where its first id belongs
    apart = spread(Sample(id="r13", **left), Sample(id="r1", text="other"))
    assert (apart.of["r13"], apart.of["r1"]) == ("judge", "train")


def test_a_third_record_connects_two() -> None:
    ends = Sample(id="r1", text="one"), Sample(id="r13", image=b"picture")
    assert spread(*ends).of["r13"] == "judge"
    assert spread(*ends, Sample(id="z", text="one", image=b"picture")).of["r13"] == "train"


def test_what_many_records_have_in_common_groups_none_but_a_group_does() -> None:
    """Ten captions for a thousand records: each would be a class that one split has alone."""
    digits = [Sample(id=f"r{n}", text=f"digit {n % 10}") for n in range(1000)]
    assert Splits.among(marks_of(digits)).of == {one.id: split(one.id) for one in digits}
    speakers = [Sample(id=f"r{n}", group=f"speaker {n % 10}") for n in range(1000)]
    splits = Splits.among(marks_of(speakers)).of
    assert len({(one.group, splits[one.id]) for one in speakers}) == 10


def test_a_hundredth_of_the_records_is_not_common_yet() -> None:
    assert [common(n) for n in (0, 99, 199, 200, 1000)] == [1, 1, 1, 2, 10]


def test_a_hash_has_eight_bytes() -> None:
    keys = Splits.among(marks_of(Sample(id=id_) for id_ in IDS[:100])).keys.values()
    assert max(key for (key,) in keys) > 2**63


def test_the_splits_do_not_depend_on_the_order() -> None:
    made = [Sample(id=f"r{n}", text=f"t{n // 3}", image=b"%d" % (n % 150)) for n in range(300)]
    assert Splits.among(marks_of(made)).of == Splits.among(marks_of(made[::-1])).of


def test_what_was_learnt_is_left_out_by_id_by_group_and_by_content() -> None:
    held = [f"r{n}" for n in range(2000) if split(f"r{n}") == "judge"][:5]
    made = [
        Sample(id=held[0], text="seen before"),  # its content was learnt under another id
        Sample(id=held[1], text="changed since"),  # learnt with another text
        Sample(id=held[2], group="g"),
        Sample(id=held[3], text="new"),
        *(Sample(id=f"o{n}", text=f"o{n}") for n in range(300) if split(f"o{n}") == "train"),
    ]
    before = spread(
        Sample(id="old", text="Seen, before"), Sample(id=held[1]), Sample(id="x", group="g")
    )
    learnt = Learnt.of(key for id_ in ("old", held[1], "x") for key in before.keys[id_])
    kept, left_out = unlearnt_records(made, [Learnt(), learnt])
    assert [one.id for one in kept] == [held[3]]
    assert left_out == 3
