"""Concurrent searches, writes and compaction: every answer is consistent with one moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytest

from braid.index.filters import Exists
from braid.index.segments.compaction import maintain
from braid.index.segments.live_store import LiveStore
from braid.index.store import Delete, Upsert
from tests.index.histories import SMALL
from tests.index.oracle import DIM, SPACE, delete, unit, upsert

IDS = [f"r{number}" for number in range(40)]
DELETED = set(IDS[::2])
BATCHES = 250
READERS = 3


@pytest.fixture(autouse=True)
def impatient_switching() -> Iterator[None]:
    """Threads take turns much more often than they would, so that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def batch(number: int) -> list[Upsert | Delete]:
    """Batch n replaces every record by version n; an odd one deletes every second record."""
    return [
        delete(id_, number) if number % 2 and id_ in DELETED else upsert(id_, number) for id_ in IDS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_search_sees_a_whole_batch_or_none_and_right_scores(threads: int) -> None:
    store = LiveStore(space=SPACE, dim=DIM, block=16, threads=threads)
    written = threading.Event()
    failures: list[BaseException] = []
    steps = [0]
    searches = [0] * READERS

    def write() -> None:
        number = -1
        while number < BATCHES or (steps[0] <= 10 and not written.is_set()) or number % 2 == 0:
            number += 1
            store.apply(batch(number), positions={0: number + 1}, progress={0: number + 1})

    def read(reader: int) -> None:
        name = ("fused", "text", "image")[reader]
        query_D = unit("query", reader)
        while not written.is_set():
            reached = store.progress.get(0, 0)
            (hits,) = store.search(query_D[None], k=len(IDS) + 5, vector=name)
            if hits:
                versions = {hit.version for hit in hits}
                assert len(versions) == 1, versions
                (version,) = versions
                assert version >= reached - 1
                expected = set(IDS) - DELETED if version % 2 else set(IDS)
                assert {hit.id for hit in hits} == expected
                assert len(hits) == len(expected)
            for hit in hits:
                score = float(unit(hit.id, 0, hit.version, name) @ query_D)
                assert abs(hit.score - score) < 1e-5
                assert hit.meta["version"] == hit.version
            row = store.get(IDS[1])
            if row is not None:
                assert row.version >= reached - 1
                for held, vector_D in row.vectors.items():
                    np.testing.assert_array_equal(vector_D, unit(row.id, 0, row.version, held))
            stats = store.stats()
            assert stats["records"] in (0, len(IDS), len(IDS) - len(DELETED))
            searches[reader] += 1

    readers = [partial(read, number) for number in range(READERS)]
    run_all(store, [write], readers, written, failures, steps)
    assert not failures, failures[0]
    assert all(searches), searches
    assert steps[0] > 10
    store.close()
    assert len(store) == len(IDS) - len(DELETED)


def test_a_filtered_search_while_rows_are_moved_by_upkeep() -> None:
    """Batches that change a few rows each; what a filter admits is always of one batch."""
    store = LiveStore(space=SPACE, dim=DIM, block=8)
    store.apply([upsert(id_, 0) for id_ in IDS], positions={}, progress={})
    written = threading.Event()
    failures: list[BaseException] = []
    steps = [0]

    def write() -> None:
        number = 0
        while number < 400 or (steps[0] <= 10 and not written.is_set()):
            number += 1
            first, second = IDS[number % 40], IDS[(number * 7 + 1) % 40]
            pair = [upsert(id_, number, meta={"pair": number}) for id_ in {first, second}]
            store.apply(pair, positions={}, progress={})

    def read() -> None:
        while not written.is_set():
            (hits,) = store.search(unit("q")[None], k=50, filter=Exists("pair", True))
            newest = max((hit.version for hit in hits), default=0)
            pair = {IDS[newest % 40], IDS[(newest * 7 + 1) % 40]}
            if newest:
                assert {hit.id for hit in hits if hit.version == newest} == pair
            assert len({hit.id for hit in hits}) == len(hits)

    run_all(store, [write], [read, read], written, failures, steps)
    assert not failures, failures[0]
    assert steps[0] > 10


def run_all(
    store: LiveStore,
    writers: Sequence[Callable[[], None]],
    readers: Sequence[Callable[[], None]],
    written: threading.Event,
    failures: list[BaseException],
    steps: list[int],
) -> None:
    """Run all functions and compaction; `written` is set after the writers end or one fails.

    `steps` counts compaction steps.
    """

    def compact() -> None:
        while not written.is_set():
            steps[0] += maintain(store, SMALL)

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - reported by the test
            failures.append(error)
            written.set()

    readers = [*readers, compact]
    threads = [threading.Thread(target=guarded, args=[work]) for work in (*readers, *writers)]
    for thread in threads:
        thread.start()
    for thread in threads[len(readers) :]:
        thread.join()
    written.set()
    for thread in threads:
        thread.join()
