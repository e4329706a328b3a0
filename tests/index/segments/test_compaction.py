"""Compaction: due steps, the number of segments, and a failing disk."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from braid.index.segments import compaction, snapshot, writer
from braid.index.segments.compaction import Compactor, Policy, maintain
from braid.index.segments.growing import Block
from braid.index.segments.live_store import LiveStore
from braid.index.segments.sealed import Segment
from braid.index.segments.snapshot import restore, save, segments_folder
from tests.index.histories import Batch, after, make, put, settle
from tests.index.oracle import DIM, SPACE, Oracle, assert_same, delete, unit, upsert

TIERS = Policy(seal_blocks=2, tier=3, most_rows=100, most_dead=0.4)


def sizes(store: LiveStore) -> list[int]:
    return sorted(
        part.count for part in store.view.parts.values() if isinstance(part.rows, Segment)
    )


def blocks(store: LiveStore) -> list[int]:
    return [part.count for part in store.view.parts.values() if isinstance(part.rows, Block)]


def fill(store: LiveStore, first: int, count: int) -> Batch:
    batch: Batch = [upsert(f"n{number}", number) for number in range(first, first + count)]
    put(store, *batch)
    return batch


def test_blocks_are_sealed_when_enough_are_full() -> None:
    store = make(4)
    fill(store, 0, 7)
    assert not maintain(store, TIERS)
    fill(store, 7, 1)
    assert maintain(store, TIERS)
    assert (sizes(store), blocks(store)) == ([8], [])
    fill(store, 8, 10)
    assert maintain(store, TIERS)
    assert (sizes(store), blocks(store)) == ([8, 8], [2])  # the one being filled stays
    fill(store, 18, 1)
    assert blocks(store) == [3]
    assert not maintain(store, TIERS)


def test_segments_of_a_size_are_merged_and_none_grows_too_large() -> None:
    store = make(4)
    seen: set[int] = set()
    for first in range(0, 800, 8):
        fill(store, first, 8)
        settle(store, TIERS)
        seen |= set(sizes(store))
        assert max(sizes(store)) <= TIERS.most_rows
        tiers = [compaction._tier(rows, TIERS.tier) for rows in sizes(store) if rows < 34]
        assert all(tiers.count(tier) < TIERS.tier for tier in tiers)
    assert {8, 24, 72} <= seen
    # At most 2 of each small tier, and large ones, of which no three fit together.
    assert len(sizes(store)) <= 800 / 34 + 2 * 3
    assert sum(sizes(store)) == 800


def test_many_full_blocks_do_not_become_one_segment_that_is_too_large() -> None:
    """As after a rebuild that was faster than compaction."""
    store = make(4)
    batch = fill(store, 0, 402)
    settle(store, TIERS)
    assert max(sizes(store)) <= TIERS.most_rows
    assert sum(sizes(store)) + sum(blocks(store)) == 402
    assert sum(blocks(store)) < 2 * 4 + 4
    assert_same(store, after([batch]), brief=True)


def test_rows_are_copied_a_logarithm_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = 0
    write = writer.write

    def counted(name: str, parts: list, recipe: object) -> Segment:
        nonlocal copied
        copied += sum(len(rows) for _, rows in parts)
        return write(name, parts, recipe)  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "write", counted)
    store = make(4)
    policy = Policy(seal_blocks=2, tier=4, most_rows=10**6)
    for first in range(0, 2048, 8):
        fill(store, first, 8)
        settle(store, policy)
    assert 2048 < copied <= 2048 * 6  # sealed once; 8, 32, 128, 512, 2048


def test_a_segment_with_many_dead_rows_is_written_anew_and_an_empty_one_goes() -> None:
    store = make(5)
    batch = fill(store, 0, 20)
    settle(store, Policy(seal_blocks=4))
    gone: Batch = [delete(f"n{number}", 100) for number in range(8)]
    put(store, *gone)
    assert not maintain(store, TIERS)  # 8 of 20 are not more than 0.4
    gone.append(delete("n8", 100))
    put(store, gone[-1])
    assert maintain(store, TIERS)
    assert sizes(store) == [11]
    assert_same(store, after([batch, gone]), brief=True)
    rest: Batch = [delete(f"n{number}", 100) for number in range(9, 20)]
    put(store, *rest)
    assert maintain(store, TIERS)
    assert (store.view.parts, len(store)) == ({}, 0)
    put(store, upsert("n3", 50), upsert("n4", 101))  # the dead stay dead, and may come back later
    assert (store.get("n3"), len(store)) == (None, 1)


def test_only_blocks_that_are_full_may_be_replaced() -> None:
    store = make(4)
    fill(store, 0, 6)
    with pytest.raises(AssertionError, match="lost"):
        compaction.replace(store, list(store.view.parts.values()))
    assert len(store) == 6


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may be longer than some hundred bytes: a real error of a real write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fails_leaves_the_view_and_later_all_is_made_up_for(tmp_path: Path) -> None:
    store = make(4, home=tmp_path)
    batch = fill(store, 0, 16)
    before = store.view
    for _ in range(2):
        with full_disk(), pytest.raises(OSError, match="File too large") as caught:
            maintain(store, TIERS)
        assert caught.value.errno == errno.EFBIG
        assert store.view is before
        assert store.being_written is None
        assert list(segments_folder(tmp_path).iterdir()) == []
    more: Batch = [upsert("n3", 50), delete("n4", 50)]
    put(store, *more)
    oracle = after([batch, more])
    assert_same(store, oracle, brief=True)
    assert settle(store, TIERS)
    assert_same(store, oracle, brief=True)


def test_a_sync_that_fails_at_any_time_leaves_the_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    left = 0

    def failing(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    store = make(4, home=tmp_path)
    batch = fill(store, 0, 16)
    before = store.view
    for works in range(100):
        left = works
        try:
            maintain(store, TIERS)
        except OSError:
            assert store.view is before
            assert list(segments_folder(tmp_path).iterdir()) == []
        else:
            break
    assert 5 < works < 50
    left = 1000
    assert_same(store, after([batch]), brief=True)


def test_the_thread_goes_on_until_it_is_stopped(tmp_path: Path) -> None:
    store, oracle = make(4, home=tmp_path), Oracle()
    keeper = Compactor(store, policy=TIERS, every_s=0.001)
    keeper.start()
    for first in range(0, 200, 8):
        oracle.apply(fill(store, first, 8))
    waited = threading.Event()
    while len(blocks(store)) > 2:
        waited.wait(0.01)  # pytest's timeout is what ends a thread that does nothing
    keeper.stop()
    assert keeper.error is None
    assert_same(store, oracle, brief=True)


def test_what_ends_the_thread_is_handed_over(tmp_path: Path) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(name)

    store = LiveStore(space=SPACE, dim=DIM, block=4, failpoint=broken)
    batch = fill(store, 0, 8)
    keeper = Compactor(store, policy=TIERS)
    keeper.start()
    keeper._thread.join()
    assert isinstance(keeper.error, RuntimeError)
    assert_same(store, after([batch]), brief=True)


def test_a_full_disk_does_not_end_the_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried = threading.Event()

    def failing(name: str) -> None:
        if name == "segment-vectors":
            tried.set()
            raise OSError(errno.ENOSPC, "No space left on device")

    store = LiveStore(
        space=SPACE, dim=DIM, block=4, folder=tmp_path / "segments", failpoint=failing
    )
    batch = fill(store, 0, 8)
    keeper = Compactor(store, policy=TIERS)
    keeper.start()
    assert tried.wait(60)
    keeper.stop()
    assert keeper.error is None
    assert "No space left" in caplog.text
    assert_same(store, after([batch]), brief=True)


def test_a_snapshot_beside_upkeep_never_sweeps_what_is_in_use(tmp_path: Path) -> None:
    """At each point of sealing: what is being written, and what has just been published."""
    seen: list[str] = []

    def beside(name: str) -> None:
        if threading.current_thread().name != "saving":
            seen.append(name)
            thread = threading.Thread(target=saving, name="saving")
            thread.start()
            thread.join()

    def saving() -> None:
        store.apply([], positions={0: store.positions.get(0, 0) + 1}, progress={})
        assert save(store, tmp_path, generation="g1") is not None

    store = make(2, home=tmp_path)
    store.recipe = type(store.recipe)(dim=DIM, folder=segments_folder(tmp_path), failpoint=beside)
    oracle = Oracle()
    for first in range(0, 40, 4):
        oracle.apply(fill(store, first, 4))
        settle(store, TIERS)
        for segment in store.segments():
            assert segment.folder is not None
            assert len(list(segment.folder.iterdir())) == 7, segment.name
    assert set(seen) == {
        f"segment-{step}" for step in ("begin", "vectors", "files", "sealed", "publish")
    }
    last = threading.Thread(target=saving, name="saving")
    last.start()
    last.join()
    again = restore(tmp_path)
    assert again is not None
    assert_same(again.store, oracle, brief=True)


def test_a_segment_published_while_a_snapshot_sweeps_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question what is in use and the removal."""
    store = make(2, home=tmp_path)
    fill(store, 0, 4)
    in_use = snapshot._in_use

    def moved(store: LiveStore) -> set[str]:
        result = in_use(store)
        fill(store, 4, 4)
        assert maintain(store, Policy(seal_blocks=2))
        return result

    monkeypatch.setattr(snapshot, "_in_use", moved)
    store.apply([], positions={0: 1}, progress={})
    save(store, tmp_path, generation="g1")
    assert store.segments()
    for segment in store.segments():
        assert segment.folder is not None
        assert (segment.folder / "segment.json").exists()


def test_vectors_asked_for_are_held_in_int8_by_the_next_step() -> None:
    store = make(4)
    fill(store, 0, 8)
    settle(store, TIERS)
    (segment,) = store.segments()
    assert segment.vectors["fused"].int8 is not None
    assert segment.vectors["text"].int8 is None
    store.search(unit("q")[None], k=3, vector="text")
    maintain(store, TIERS)
    assert segment.vectors["text"].int8 is not None
    assert segment.vectors["image"].int8 is None
    assert np.array_equal(segment.vectors["text"].raw_ND[0], unit("n0", 0, 0, "text"))
