"""Snapshots: after any failure of disk or process, a complete one is restored."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from braid.index.errors import SnapshotError
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import KEEP, load, restore, save, segments_folder
from tests.index.damage import flipped
from tests.index.histories import Batch, make, settle
from tests.index.oracle import DIM, SPACE, Oracle, assert_same, delete, upsert

FIRST = ("segment.json", "strings.msgpack", "numbers.npz", "meta.bin", "fused.npy", "image.npy")
GROWING = [f"growing/{name}" for name in (*FIRST, "text.npy")]
FILES = ["facts.json", "manifest.json", "rest.msgpack", *GROWING]


def filled(version: int, *, count: int = 6, home: Path | None = None) -> tuple[LiveStore, Oracle]:
    """A store whose offsets and rows all say `version`, with one deletion and one bare row.

    Args:
        home: seal in blocks of two below this folder; the last row keeps growing.
    """
    store, oracle = LiveStore(space=SPACE, dim=DIM), Oracle()
    if home is not None:
        store = make(2, home=home)
    batch: Batch = [upsert(f"r{number}", version, partition=number % 2) for number in range(count)]
    batch += [upsert("bare", version, by=[]), delete("gone", version)]
    oracle.apply(batch)
    store.apply(batch, positions={0: version, 1: version}, progress={0: version, 1: version})
    settle(store)
    return store, oracle


def saved(store: LiveStore, folder: Path) -> Path:
    info = save(store, folder, generation="g0001")
    assert info is not None
    return info.path


def restored(folder: Path) -> LiveStore:
    result = restore(folder)
    assert result is not None
    return result.store


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path) -> None:
    store, oracle = filled(3)
    info = save(store, tmp_path / "deep" / "folder", generation="g0001")
    assert info is not None
    assert info.records == 7
    assert info.nbytes == sum((info.path / file).stat().st_size for file in files(info.path))
    assert files(info.path) == sorted(FILES)
    again = restored(tmp_path / "deep" / "folder")
    assert_same(again, oracle)
    assert (again.space, again.dim) == (SPACE, DIM)
    assert (again.positions, again.progress) == (store.positions, store.progress)
    again.apply([upsert("gone", 2), upsert("gone", 1)], positions={}, progress={})
    assert again.get("gone") is None  # the deletion is remembered


def test_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    store, _ = filled(3)
    saved(store, tmp_path)
    assert save(store, tmp_path, generation="g0001") is None
    store.apply([], positions={0: 4}, progress={})
    saved(store, tmp_path)
    other, _ = filled(4)
    other.apply([], positions={0: 4, 1: 3}, progress={})
    saved(other, tmp_path)
    assert names(tmp_path) == ["00000002", "00000003", "segments"]
    assert KEEP == 2


def test_an_empty_store_and_only_deletions_survive(tmp_path: Path) -> None:
    store = LiveStore(space=SPACE, dim=DIM)
    saved(store, tmp_path)
    assert len(restored(tmp_path)) == 0
    store.apply([delete("a", 5)], positions={0: 6}, progress={0: 6})
    saved(store, tmp_path)
    again = restored(tmp_path)
    again.apply([upsert("a", 4)], positions={}, progress={})
    assert len(again) == 0
    assert restored(tmp_path).positions == {0: 6}


def test_no_snapshot_is_none(tmp_path: Path) -> None:
    assert restore(tmp_path) is None
    assert restore(tmp_path / "not there") is None


def test_snapshots_are_told_by_number_and_other_names_left_alone(tmp_path: Path) -> None:
    store, _ = filled(1)
    path = saved(store, tmp_path)
    path.rename(tmp_path / "99999999")
    (tmp_path / "notes").mkdir()
    (tmp_path / "²²²²²²²²").mkdir()  # digits to str.isdigit, no number to int
    store.apply([], positions={0: 2}, progress={})
    assert saved(store, tmp_path).name == "100000000"
    assert restored(tmp_path).positions[0] == 2
    assert names(tmp_path) == ["100000000", "99999999", "notes", "segments", "²²²²²²²²"]


def test_any_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    """It holds the offsets: a wrong one would skip records without a sound."""
    path = saved(filled(1)[0], tmp_path)
    data = (path / "manifest.json").read_bytes()
    for position in range(len(data)):
        bit = 1 << position % 8
        changed = bytearray(data)
        changed[position] ^= bit
        (path / "manifest.json").write_bytes(changed)
        with pytest.raises(SnapshotError):
            load(path)
    (path / "manifest.json").write_bytes(data)
    load(path)


@pytest.mark.parametrize("content", [b"[]", b"1", b"null", b"{}", b'{"sha256": 1}', b"\xff"])
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, content: bytes) -> None:
    path = saved(filled(1)[0], tmp_path)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(SnapshotError):
        load(path)
    assert restore(tmp_path) is None


def test_a_damaged_one_neither_counts_as_kept_nor_stays(tmp_path: Path) -> None:
    saved(filled(1)[0], tmp_path)
    flipped(saved(filled(2)[0], tmp_path) / "growing/fused.npy")
    store = restored(tmp_path)
    assert names(tmp_path) == ["00000001", "00000002.damaged", "segments"]
    # The replay brings it to where the damaged one was: it must be written all the same.
    newer, oracle = filled(2)
    batch = list(oracle.last.values())
    store.apply(batch, positions=newer.positions, progress=newer.progress)
    path = saved(store, tmp_path)
    assert_same(load(path).store, oracle)
    flipped(path / "growing/fused.npy")
    assert names(tmp_path) == ["00000001", "00000002", "segments"]
    assert restored(tmp_path).positions == {0: 1, 1: 1}


def test_both_damaged_is_none(tmp_path: Path) -> None:
    for version in (1, 2):
        flipped(saved(filled(version)[0], tmp_path) / "rest.msgpack")
    assert restore(tmp_path) is None


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(filled(1)[0], tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SnapshotError, match="No space left"):
            save(filled(2)[0], tmp_path, generation="g0001")
    assert names(tmp_path) == ["00000001", "segments"]
    assert restored(tmp_path).positions[0] == 1
    saved(filled(3)[0], tmp_path)
    assert restored(tmp_path).positions[0] == 3


def test_meta_that_cannot_be_packed_is_a_snapshot_error(tmp_path: Path) -> None:
    for wrong in (object(), 2**64):
        store, _ = filled(1)
        store.apply([upsert("x", 9, meta={"a": wrong})], positions={0: 9}, progress={})
        with pytest.raises(SnapshotError):
            save(store, tmp_path, generation="g0001")
        assert names(tmp_path) == ["segments"]


class Stop(BaseException):
    """Stands for SIGKILL: nothing that runs afterwards may be relied on."""


@pytest.mark.slow
def test_a_stop_before_any_step_of_saving_leaves_a_whole_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_done = 0
    stop_at = 0

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **options: object) -> object:
            nonlocal steps_done
            steps_done += 1
            if steps_done == stop_at:
                raise Stop
            return call(*args, **options)

        return step

    saved(filled(1)[0], tmp_path)
    saved(filled(2)[0], tmp_path)
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    reached = 2
    for stop in range(1, 200):
        steps_done, stop_at = 0, stop
        version = 2 + stop
        try:
            saved(filled(version, home=tmp_path)[0], tmp_path)
        except Stop:
            stop_at = 0
            again = restored(tmp_path)
            assert again.positions[0] in (reached, version)
            assert_same(again, filled(again.positions[0])[1])
            reached = again.positions[0]
            assert not list(tmp_path.glob("*.damaged"))
        else:
            break
    assert 20 < stop < 200
    stop_at = 0
    store, _ = filled(1000, home=tmp_path)
    saved(store, tmp_path)
    assert len(names(tmp_path)) == 3
    used = {
        given["name"]
        for path in tmp_path.glob("0*")
        for given in json.loads((path / "manifest.json").read_bytes())["segments"]
    }
    assert {path.name for path in segments_folder(tmp_path).iterdir()} == used
    assert {segment.name for segment in store.segments()} < used


SAVER = """
import sys
from pathlib import Path
from braid.index.segments.snapshot import save
from tests.index.segments.test_snapshot import filled
version = int(sys.argv[2])
while True:
    version += 1
    home = Path(sys.argv[1])
    save(filled(version, count=60, home=home)[0], home, generation="g0001")
    print(version, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_while_it_saves_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    rng = random.Random(5)
    version = 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path), str(version)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline(), "the child did not start"
            time.sleep(rng.uniform(0, 0.1))
        finally:
            child.kill()
            printed = child.communicate()[0].split()
        output = int(printed[-1]) if printed else version + 1
        store = restored(tmp_path)
        assert not list(tmp_path.glob("*.damaged"))  # the newest was whole
        assert store.positions[0] in (output, output + 1)
        assert_same(store, filled(store.positions[0], count=60)[1])
        version = store.positions[0]
