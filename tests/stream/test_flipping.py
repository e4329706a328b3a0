"""A generation that was built takes over from the champion it was begun under, and no other."""

from __future__ import annotations

import time

import pytest

from stream.errors import RegistryError
from stream.flipping import drop, flip, overtaken, predict, promote, rollback
from stream.handover import Handovers
from stream.models import Champion, Registry
from stream.rollout import Rollout, Rollouts
from tests.stream.conftest import three_versions
from tests.stream.harness import Deployment

pytestmark = pytest.mark.kafka

FIRST, SAME, OTHER = "tiny-0001", "tiny-0002", "tiny-0003"


def speaks(registry: Registry) -> list[tuple[str, str]]:
    """Every handover in force."""
    return [(its.before, its.after) for its in Handovers(registry.root).confirmed()]


def test_who_was_promoted_meanwhile_is_not_replaced_unasked(deployment: Deployment) -> None:
    settings = deployment.settings
    registry = three_versions(settings.models_dir)
    promote(settings, registry, FIRST)
    begun = promote(settings, registry, OTHER)
    assert isinstance(begun, Rollout)
    assert (begun.generation, begun.seq) == ("g0002", 1)
    assert overtaken(registry, begun) is None

    promote(settings, registry, SAME)
    said = overtaken(registry, begun)
    assert said is not None
    assert "number 2 (tiny-0002) was promoted since" in said

    def take_over(rollout: Rollout) -> Champion:
        now_ms = 1000 * time.time()
        return flip(
            settings, registry, rollout.generation, rollout.model, why="built", now_ms=now_ms,
            after=rollout.seq,
        )  # fmt: skip

    with pytest.raises(RegistryError, match=r"number 2 \(tiny-0002\) was promoted since"):
        take_over(begun)
    assert speaks(registry) == []

    again = promote(settings, registry, OTHER)  # asked for once more: it goes on
    assert isinstance(again, Rollout)
    assert (again.generation, again.state, again.seq) == ("g0002", "building", 2)
    flipped = take_over(again)
    assert (flipped.name, flipped.generation, flipped.seq) == (OTHER, "g0002", 3)
    assert speaks(registry) == [("g0001", "g0002")]
    assert overtaken(registry, again) is None  # it did take over
    with pytest.raises(RegistryError, match=r"number 3 \(tiny-0003\) was promoted since"):
        take_over(again)  # a second node comes too late, and nothing goes back
    assert speaks(registry) == [("g0001", "g0002")]
    back = rollback(settings, registry)
    assert (back.name, back.generation) == (SAME, "g0001")
    assert speaks(registry) == [("g0001", "g0002"), ("g0002", "g0001")]


def test_predictions_never_stay_with_a_generation_that_is_dropped(deployment: Deployment) -> None:
    """Whoever made the flip died between the handover and the promotion."""
    settings = deployment.settings
    registry = three_versions(settings.models_dir)
    promote(settings, registry, FIRST)
    begun = promote(settings, registry, OTHER)
    assert isinstance(begun, Rollout)
    predict(settings, registry, "g0001", "g0002")
    predict(settings, registry, "g0001", "g0002")  # it is so already
    assert speaks(registry) == [("g0001", "g0002")]
    drop(settings, registry, begun, why="dropped by hand")
    assert speaks(registry) == [("g0001", "g0002"), ("g0002", "g0001")]
    dropped = Rollouts(registry.root).get("g0002")
    assert dropped is not None
    assert dropped.state == "dropped"
