"""Where each id's row is, against a dictionary."""

from __future__ import annotations

import random

import numpy as np

from braid.index.segments.id_map import GONE, Last, Places, place_of, split


def test_a_place_is_its_part_and_its_row() -> None:
    for part in (0, 1, 77, 2**31 - 1):
        for row in (0, 1, 2**31, 2**32 - 1):
            place = place_of(part, row)
            assert split(place) == (part, row)
            assert 0 <= place < 2**63
            assert int(np.int64(place)) == place


def test_any_course_is_as_a_dictionary_says() -> None:
    rng = random.Random(3)
    places, expected = Places(capacity=2), dict[str, Last]()
    slots: dict[str, int] = {}
    for number in range(3000):
        ids = [f"r{rng.randrange(900)}" for _ in range(rng.randint(1, 5))]
        if rng.random() < 0.1:
            fresh = sorted({f"x{number}-{n}" for n in range(rng.randint(1, 40))})
            row_N = np.array(rng.sample(range(10_000), len(fresh)), np.int64)
            numbers = np.arange(len(fresh), dtype=np.int64)
            slot_N = places.put_rows(fresh, numbers, -numbers, numbers * 2, (number, row_N))
            for at, id_ in enumerate(fresh):
                expected[id_] = Last(at, -at, 2 * at, place_of(number, int(row_N[at])))
                slots[id_] = int(slot_N[at])
        for id_ in ids:
            place = GONE if rng.random() < 0.3 else place_of(number, rng.randrange(2**32))
            last = Last(rng.randrange(2**31), rng.randrange(2**62), number, place)
            slot = places.put(id_, last)
            assert slots.setdefault(id_, slot) == slot  # for good
            expected[id_] = last
        if rng.random() < 0.2:
            moved = rng.sample(sorted(expected), min(5, len(expected)))
            slot_N = np.array([slots[id_] for id_ in moved], np.int64)
            places.move(slot_N, number, np.arange(len(moved)))
            for row, id_ in enumerate(moved):
                expected[id_] = expected[id_]._replace(place=place_of(number, row))
    assert len(places) == len(expected) > 1024
    assert sorted(slots.values()) == list(range(len(slots)))
    for id_, last in expected.items():
        assert places.slot(id_) == slots[id_]
        assert places.last(slots[id_]) == last
        assert places.place(id_) == last.place
    gone = dict(places.deleted())
    assert gone == {id_: last for id_, last in expected.items() if last.place == GONE}
    assert (places.slot("never"), places.place("never")) == (None, None)
