"""The order of a snapshot's writes, for a power cut: what the disk holds before a name says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .test_snapshot import FILES, filled, saved


def test_files_then_their_folder_then_the_rename_then_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process cannot show this: its writes survive it, synced or not."""
    done: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        # What a buffer still holds does not reach the disk: nothing may come after its sync.
        done.append(
            ("sync", f"{path.name}:{os.fstat(descriptor).st_size if path.is_file() else 0}")
        )
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", path.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    path = saved(filled(1)[0], tmp_path)

    (at,) = [number for number, (step, _) in enumerate(done) if step == "rename"]
    temporary = done[at][1]
    sizes = {f"{name}:{(path / name).stat().st_size}" for name in FILES}
    assert {name for _, name in done[: at - 1]} == sizes
    assert done[at - 2][1].startswith("manifest.json:")  # it vouches for the others
    assert done[at - 1] == ("sync", f"{temporary}:0")
    assert done[at + 1 :] == [("sync", f"{tmp_path.name}:0")]


def test_old_snapshots_go_only_when_the_new_one_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        saved(filled(version)[0], tmp_path)
    done: list[str] = []

    def noted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **options: object) -> object:
            done.append(name)
            return call(*args, **options)

        return step

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
    monkeypatch.setattr(shutil, "rmtree", noted("remove", shutil.rmtree))
    saved(filled(3)[0], tmp_path)
    assert done[-2:] == ["sync", "remove"]
    assert done.count("remove") == 1
