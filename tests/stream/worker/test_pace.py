"""The pace of a generation that is built: it rests while others have something to do."""

from __future__ import annotations

from braid.stream.worker.pace import MOST_REST_S, Pace


def test_it_rests_in_proportion_while_others_are_busy() -> None:
    busy = True
    pace = Pace(0.25, lambda: busy)
    assert pace.may_go_on(0.0)
    pace.worked(0.1, now=1.0)
    assert not pace.may_go_on(1.29)
    assert pace.may_go_on(1.31)
    pace.worked(100.0, now=2.0)
    assert not pace.may_go_on(2.0 + MOST_REST_S - 0.01)
    assert pace.may_go_on(2.0 + MOST_REST_S)


def test_with_nothing_else_to_do_it_never_rests() -> None:
    pace = Pace(0.1, lambda: False)
    pace.worked(1.0, now=0.0)
    assert pace.may_go_on(0.0)
    full = Pace(1.0, lambda: True)
    full.worked(1.0, now=0.0)
    assert full.may_go_on(0.0)
