"""The id map against a dictionary."""

from __future__ import annotations

import random

import numpy as np

from braid.index.segments.id_map import TOMBSTONE, IdMap, LastWrite, place_of, split


def test_a_place_is_its_part_and_its_row() -> None:
    for part in (0, 1, 77, 2**31 - 1):
        for row in (0, 1, 2**31, 2**32 - 1):
            place = place_of(part, row)
            assert split(place) == (part, row)
            assert 0 <= place < 2**63
            assert int(np.int64(place)) == place
            assert place > TOMBSTONE


def test_any_course_is_as_a_dictionary_says() -> None:
    rng = random.Random(3)
    id_map, expected = IdMap(capacity=2), dict[str, LastWrite]()
    slots: dict[str, int] = {}
    for number in range(3000):
        ids = [f"r{rng.randrange(900)}" for _ in range(rng.randint(1, 5))]
        if rng.random() < 0.1:
            fresh = sorted({f"x{number}-{n}" for n in range(rng.randint(1, 40))})
            row_N = np.array(rng.sample(range(10_000), len(fresh)), np.int64)
            numbers = np.arange(len(fresh), dtype=np.int64)
            slot_N = id_map.put_rows(fresh, numbers, -numbers, numbers * 2, (number, row_N))
            for at, id_ in enumerate(fresh):
                expected[id_] = LastWrite(at, -at, 2 * at, place_of(number, int(row_N[at])))
                slots[id_] = int(slot_N[at])
        for id_ in ids:
            place = TOMBSTONE if rng.random() < 0.3 else place_of(number, rng.randrange(2**32))
            last = LastWrite(rng.randrange(2**31), rng.randrange(2**62), number, place)
            slot = id_map.put(id_, last)
            assert slots.setdefault(id_, slot) == slot  # for good
            assert id_map.last(slot) == last
            expected[id_] = last
        if rng.random() < 0.2:
            moved = rng.sample(sorted(expected), min(5, len(expected)))
            slot_N = np.array([slots[id_] for id_ in moved], np.int64)
            id_map.move(slot_N, number, np.arange(len(moved)))
            for row, id_ in enumerate(moved):
                expected[id_] = expected[id_]._replace(place=place_of(number, row))
    assert len(id_map) == len(expected) > 1024
    assert sorted(slots.values()) == list(range(len(slots)))
    for id_, last in expected.items():
        assert id_map.slot(id_) == slots[id_]
        assert id_map.last(slots[id_]) == last
        assert id_map.place(id_) == last.place
    gone = dict(id_map.deleted())
    assert gone == {id_: last for id_, last in expected.items() if last.place == TOMBSTONE}
    assert (id_map.slot("never"), id_map.place("never")) == (None, None)
