"""Pauses after failures: they grow, have a longest, and begin anew after what went well."""

from __future__ import annotations

from braid.stream.retries import FIRST_S, LONGEST_S, Retries


def test_pauses_grow_until_it_goes_well() -> None:
    now = 0.0
    retries = Retries[str](lambda: now)
    pauses = []
    for _ in range(9):
        failure = retries.failed("it", "a reason")
        pauses.append(failure.pause_s)
        assert retries.pausing("it") == failure
        assert retries.pausing("another") is None
        now = failure.until
        assert retries.pausing("it") is None
    assert pauses[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert pauses[-1] == LONGEST_S
    assert str(failure) == f"a reason (tried again {LONGEST_S:g} s later)"
    now += LONGEST_S  # it went well for so long
    assert retries.failed("it", "anew").pause_s == FIRST_S


def test_what_is_tried_no_more_is_forgotten() -> None:
    retries = Retries[str](lambda: 0.0)
    retries.failed("gone", "x")
    retries.failed("kept", "y")
    retries.keep(["kept"])
    assert retries.pausing("gone") is None
    assert retries.pausing("kept") is not None
