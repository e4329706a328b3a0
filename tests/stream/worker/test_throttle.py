"""The pace of a generation that is built: it rests while others have something to do."""

from __future__ import annotations

from braid.stream.worker.source import MAX_REST_S, Throttle


def test_it_rests_in_proportion_while_others_are_busy() -> None:
    busy = True
    throttle = Throttle(0.25, lambda: busy)
    assert throttle.ready(0.0)
    throttle.worked(0.1, now=1.0)
    assert not throttle.ready(1.29)
    assert throttle.ready(1.31)
    throttle.worked(100.0, now=2.0)
    assert not throttle.ready(2.0 + MAX_REST_S - 0.01)
    assert throttle.ready(2.0 + MAX_REST_S)


def test_with_nothing_else_to_do_it_never_rests() -> None:
    throttle = Throttle(0.1, lambda: False)
    throttle.worked(1.0, now=0.0)
    assert throttle.ready(0.0)
    full = Throttle(1.0, lambda: True)
    full.worked(1.0, now=0.0)
    assert full.ready(0.0)
