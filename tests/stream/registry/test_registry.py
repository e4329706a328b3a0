"""The registry: versions, the champion, and what may not become it."""

from __future__ import annotations

import os
import threading

import pytest

from braid.stream.errors import RegistryError
from braid.stream.registry.versions import Champion, Registry


@pytest.fixture
def registry(three_versions: Registry) -> Registry:
    return three_versions


@pytest.mark.slow
def test_promotions_count_up_and_a_rollback_is_a_new_number(registry: Registry) -> None:
    assert registry.names() == ["tiny-0001", "tiny-0002", "tiny-0003"]
    assert registry.champion() is None
    assert registry.promote("tiny-0001", generation="g0001").seq == 1
    assert registry.promote(registry.resolve("2"), generation="g0001").seq == 2
    earlier = registry.earlier()
    assert (earlier.seq, earlier.name) == (1, "tiny-0001")
    back = registry.promote(earlier.name, generation="g0001", why="rolled back")
    assert (back.seq, back.name) == (3, "tiny-0001")
    assert registry.champion() == back
    assert [champion.name for champion in registry.history()] == [
        "tiny-0001",
        "tiny-0002",
        "tiny-0001",
    ]


def test_rollbacks_walk_back_through_what_was_promoted(registry: Registry) -> None:
    """What was rolled back from is no target, whether reached by a promotion or a rollback."""
    one, two = "tiny-0001", "tiny-0002"
    for name in (one, two, one, two, two):
        registry.promote(name, generation="g0001")

    def rolled_back() -> tuple[str, int | None]:
        earlier = registry.earlier()
        back = registry.promote(earlier.name, generation="g0001", back_to=earlier.seq)
        return back.name, back.back_to

    assert rolled_back() == (one, 3)
    assert rolled_back() == (two, 2)
    assert registry.promote(one, generation="g0001").seq == 8
    assert rolled_back() == (two, 2)  # what served before that promotion
    assert rolled_back() == (one, 1)
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.earlier()


def test_what_may_not_become_champion(registry: Registry) -> None:
    registry.promote("tiny-0001", generation="g0001")
    with pytest.raises(RegistryError, match="new generation"):
        registry.promote("tiny-0003", generation="g0001")
    with pytest.raises(RegistryError, match="no version '7'; there are: tiny-0001"):
        registry.resolve("7")
    weights = registry.path("tiny-0002") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(RegistryError, match="damaged"):
        registry.promote("tiny-0002", generation="g0001")
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.earlier()
    assert registry.champion() == registry.history()[0]


def test_of_two_that_promote_at_once_one_fails(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("tiny-0001", generation="g0001")
    both = threading.Barrier(2)
    link = os.link

    def together(*args: object, **kwargs: object) -> None:
        both.wait(10)
        link(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", together)
    won: list[Champion] = []
    lost: list[RegistryError] = []

    def promote(name: str) -> None:
        try:
            won.append(registry.promote(name, generation="g0001"))
        except RegistryError as error:
            lost.append(error)

    threads = [
        threading.Thread(target=promote, args=(name,)) for name in ("tiny-0001", "tiny-0002")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == len(lost) == 1
    assert "number 2" in str(lost[0])
    assert registry.champion() == won[0]
    leftovers = [file.name for file in (registry.root / "log").iterdir()]
    assert sorted(leftovers) == ["00000001.json", "00000002.json"]
