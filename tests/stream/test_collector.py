"""Garbage collection while a process starts, and afterwards."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from braid.stream.collector import ALLOCATIONS, collect_as_usual, collect_rarely


@functools.cache
def usual() -> tuple[int, int, int]:
    """As Python sets it in a process that has not imported anything."""
    said = subprocess.check_output([sys.executable, "-c", "import gc; print(*gc.get_threshold())"])
    first, second, third = map(int, said.split())
    return first, second, third


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()  # of an earlier test of this process, perhaps
    gc.set_threshold(*usual())
    yield
    gc.set_threshold(*before)


def test_a_process_that_starts_collects_rarely_and_then_as_python_does() -> None:
    frozen = gc.get_freeze_count()
    collect_rarely()
    assert gc.get_threshold()[0] == ALLOCATIONS
    loaded: list[list[int]] = [[] for _ in range(10_000)]
    collect_as_usual()
    assert gc.get_threshold() == usual()
    assert gc.get_freeze_count() > frozen + len(loaded), "they are not looked at again"


def test_garbage_is_still_collected() -> None:
    collect_as_usual()

    class Node:
        pass

    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    del node
    assert gc.collect() > 0
