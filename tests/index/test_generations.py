"""Generations: the alias is durable, and the serving one cannot be dropped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from braid.index.generations import ALIAS, GenerationError, Generations


def opened(folder: Path, *names: str, first: str = "g0001") -> Generations[str]:
    generations: Generations[str] = Generations(folder, first=first)
    for name in names:
        generations.add(name, f"store of {name}")
    return generations


def test_the_first_serves_until_a_flip_and_the_flip_is_kept(tmp_path: Path) -> None:
    generations = opened(tmp_path, "g0001", "g0002")
    assert generations.serving == "store of g0001"
    assert generations.alias.seq == 0
    generations.flip("g0002")
    assert generations.serving == "store of g0002"
    again = opened(tmp_path, "g0001", "g0002")
    assert again.serving == "store of g0002"
    assert again.alias.seq == 1
    again.flip("g0001")
    assert opened(tmp_path, "g0001").serving == "store of g0001"


def test_only_an_open_generation_can_serve(tmp_path: Path) -> None:
    generations = opened(tmp_path, "g0001")
    with pytest.raises(GenerationError, match="'g0002' is open; there are: g0001"):
        generations.flip("g0002")
    assert generations.alias.name == "g0001"
    assert not (tmp_path / ALIAS).exists()
    generations.add("g0002", "two")
    generations.flip("g0002")
    with pytest.raises(GenerationError, match="g0002"):
        opened(tmp_path, "g0001").serving  # noqa: B018
    with pytest.raises(GenerationError, match="open already"):
        generations.add("g0001", "again")


@pytest.mark.parametrize("name", ["", "g1", "../g0001", "g00001", "serving.json"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    generations = opened(tmp_path)
    for call in (lambda: generations.add(name, "x"), lambda: generations.folder(name)):
        with pytest.raises(GenerationError, match="a generation is called"):
            call()


def test_dropping_removes_the_files_but_never_of_what_serves(tmp_path: Path) -> None:
    generations = opened(tmp_path, "g0001", "g0002")
    for name in generations.names:
        generations.folder(name).mkdir()
        (generations.folder(name) / "file").touch()
    with pytest.raises(GenerationError, match="serves: flip"):
        generations.drop("g0001")
    assert (tmp_path / "g0001" / "file").exists()
    assert generations.drop("g0002") == "store of g0002"
    assert generations.kept() == generations.names == ["g0001"]
    with pytest.raises(GenerationError, match="to drop"):
        generations.drop("g0002")
    (tmp_path / "g0003").mkdir()  # of an earlier process, not open
    assert generations.drop("g0003") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g0001"]


def test_half_a_dropped_generation_is_swept_and_never_found(tmp_path: Path) -> None:
    (tmp_path / "g0002.dropped").mkdir(parents=True)
    generations = opened(tmp_path, "g0001")
    assert generations.kept() == []
    generations.sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_the_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations = opened(tmp_path, "g0001", "g0002", "g0003")
    generations.flip("g0002")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            generations.flip("g0003")
    assert generations.alias.name == "g0002"
    assert opened(tmp_path, "g0002").alias.name == "g0002"


def test_a_damaged_alias_is_never_guessed(tmp_path: Path) -> None:
    opened(tmp_path, "g0001", "g0002").flip("g0002")
    data = (tmp_path / ALIAS).read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        (tmp_path / ALIAS).write_bytes(changed)
        with pytest.raises(GenerationError, match="damaged"):
            opened(tmp_path)
