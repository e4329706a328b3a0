"""Order of writes before a power cut: content is fsynced before the name that refers to it.

SIGKILL cannot test this: the kernel writes a killed process's data, fsynced or not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import save
from tests.index.histories import make, put
from tests.index.oracle import upsert
from tests.index.segments.test_snapshot import filled, saved

Step = tuple[str, str]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Step]:
    """Syncs (of a file with its size, of a folder with 0), renames, new folders and removals."""
    steps: list[Step] = []
    fsync, rename, mkdir, rmtree = os.fsync, Path.rename, Path.mkdir, shutil.rmtree

    def named(path: Path) -> str:
        return str(path.relative_to(tmp_path.parent))

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        # What a buffer still holds does not reach the disk: nothing may come after its sync.
        size = os.fstat(descriptor).st_size if path.is_file() else 0
        steps.append(("sync", f"{named(path)}:{size}"))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        steps.append(("rename", f"{named(path)} {named(target)}"))
        return rename(path, target)

    def made(path: Path, *args: object, **options: object) -> None:
        if not path.exists():
            steps.append(("mkdir", named(path)))
        mkdir(path, *args, **options)  # type: ignore[arg-type]

    def removed(path: Path, **options: object) -> None:
        if Path(path).exists():
            steps.append(("remove", named(Path(path))))
        rmtree(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "mkdir", made)
    monkeypatch.setattr(shutil, "rmtree", removed)
    return steps


def sizes(folder: Path, *, named: str, last: str) -> tuple[set[str], str]:
    """What must be synced of a folder's files before, and as the last of them."""
    all_ = {
        f"{named}/{file.name}:{file.stat().st_size}" for file in folder.iterdir() if file.is_file()
    }
    (vouching,) = (one for one in all_ if one.startswith(f"{named}/{last}:"))
    return all_ - {vouching}, vouching


def test_a_segment_is_whole_on_disk_before_its_manifest_and_named_before_it_is_used(
    tmp_path: Path, done: list[Step]
) -> None:
    in_view: list[int] = []

    def failpoint(name: str) -> None:
        done.append(("point", name))
        in_view.append(len(store.segments()))

    store = LiveStore(
        space="s-test", dim=8, block=4, folder=tmp_path / "segments", failpoint=failpoint
    )
    put(store, *(upsert(f"r{number}", 1) for number in range(8)))
    assert maintain(store, Policy(seal_blocks=2))
    (segment,) = store.segments()
    assert segment.folder is not None
    name = f"{tmp_path.name}/segments/{segment.name}"
    files, manifest = sizes(segment.folder, named=name, last="segment.json")
    assert len(files) == 6
    synced = [name for step, name in done if step == "sync"]
    assert set(synced[: len(files)]) == files
    assert synced[len(files) :] == [manifest, f"{name}:0", f"{tmp_path.name}/segments:0"]
    assert done[-2:] == [("point", "segment-sealed"), ("point", "segment-publish")]
    assert set(in_view) == {0}


def test_files_then_their_folder_then_the_rename_then_the_parent(
    tmp_path: Path, done: list[Step]
) -> None:
    path = saved(filled(1, home=tmp_path)[0], tmp_path)
    (at,) = [number for number, (step, _) in enumerate(done) if step == "rename"]
    temporary = done[at][1].split()[0]
    assert done[at][1] == f"{temporary} {tmp_path.name}/00000001"
    began = done.index(("mkdir", temporary))
    growing, vouches = sizes(path / "growing", named=f"{temporary}/growing", last="segment.json")
    files, manifest = sizes(path, named=temporary, last="manifest.json")
    of_growing = [*growing, vouches, f"{temporary}/growing:0", f"{temporary}:0"]
    synced = [name for step, name in done[began:at] if step == "sync"]
    assert set(synced[: len(growing)]) == growing
    assert synced[len(growing) : len(of_growing)] == of_growing[len(growing) :]
    assert set(synced[len(of_growing) : -2]) == files
    assert synced[-2:] == [manifest, f"{temporary}:0"]  # it vouches for the others
    assert done[at + 1 :] == [("sync", f"{tmp_path.name}:0")]


def test_facts_alone_are_replaced_in_one_step(tmp_path: Path, done: list[Step]) -> None:
    store, _ = filled(1)
    path = saved(store, tmp_path)
    done.clear()
    assert save(store, tmp_path, generation="g0001", facts={"later": 1}) is None
    name = f"{tmp_path.name}/00000001"
    size = (path / "facts.json").stat().st_size
    temporary = done[0][1].rpartition(":")[0]
    assert temporary.startswith(f"{name}/.facts.json.")  # no reader looks there
    assert done == [
        ("sync", f"{temporary}:{size}"),
        ("rename", f"{temporary} {name}/facts.json"),
        ("sync", f"{name}:0"),
    ]


def test_old_snapshots_and_segments_go_only_when_the_new_one_is_safe(
    tmp_path: Path, done: list[Step]
) -> None:
    store = make(2, home=tmp_path)
    gone: list[str] = []
    for version in (1, 2, 3):
        done.clear()
        store.apply(
            [upsert(f"r{number}", version) for number in range(6)],
            positions={0: version},
            progress={},
        )
        while maintain(store, Policy(seal_blocks=1)):
            pass
        gone = [one.name for one in store.segments()] if version == 1 else gone
        save(store, tmp_path, generation="g0001")
    removed = [name for step, name in done if step == "remove"]
    assert f"{tmp_path.name}/00000001" in removed
    assert {f"{tmp_path.name}/segments/{name}" for name in gone} <= set(removed)
    last_sync = max(number for number, (step, _) in enumerate(done) if step == "sync")
    assert done[last_sync] == ("sync", f"{tmp_path.name}:0")
    first_removed = min(number for number, (step, _) in enumerate(done) if step == "remove")
    assert last_sync < first_removed


def test_a_removal_never_comes_before_what_replaces_it(tmp_path: Path, done: list[Step]) -> None:
    """The names that a new snapshot stands on are in their folder, synced, before its rename."""
    store = make(2, home=tmp_path)
    order: Callable[[str], int] = lambda wanted: [name for _, name in done].index(wanted)  # noqa: E731
    put(store, *(upsert(f"r{number}", 1) for number in range(4)))
    while maintain(store, Policy(seal_blocks=1)):
        pass
    path = saved(store, tmp_path)
    (rename,) = [number for number, (step, _) in enumerate(done) if step == "rename"]
    for segment in store.segments():
        assert order(f"{tmp_path.name}/segments/{segment.name}:0") < rename
    assert order(f"{tmp_path.name}/segments:0") < rename
    assert path.name == "00000001"
