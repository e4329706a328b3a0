"""Damage to any file of a snapshot or segment is detected, and never changes an answer.

Two snapshots share a segment; the newer refers to another one, too, and each has growing rows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from braid.index.errors import SnapshotError
from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import load, restore, save, segments_folder
from tests.index import damage
from tests.index.histories import Batch, after, make, put, settle, tuned
from tests.index.oracle import Oracle, assert_same, delete, upsert
from tests.index.segments.test_histories import APPROXIMATE

POLICY = Policy(seal_blocks=2, tier=9, most_dead=0.9)
OLD, NEW = "00000001", "00000002"
OF_SEGMENT = (
    "segment.json",
    "strings.msgpack",
    "numbers.npz",
    "meta.bin",
    "fused.npy",
    "text.npy",
    "image.npy",
)
OF_SNAPSHOT = (
    "manifest.json",
    "facts.json",
    "rest.msgpack",
    *(f"growing/{name}" for name in OF_SEGMENT),
)


@dataclass(frozen=True)
class Home:
    """A snapshot folder and what its two snapshots hold; segments by name."""

    path: Path
    old: Oracle
    new: Oracle
    shared: str
    own: str

    def copy(self, to: Path) -> Home:
        shutil.copytree(self.path, to)
        return Home(to, self.old, self.new, self.shared, self.own)

    def files(self) -> list[Path]:
        """All whose damage must be found."""
        segments = segments_folder(self.path)
        return [
            *(self.path / NEW / name for name in OF_SNAPSHOT),
            *(segments / self.own / name for name in OF_SEGMENT),
            *(segments / self.shared / name for name in OF_SEGMENT),
        ]

    def twin(self, file: Path) -> Path:
        """The file of the same name that belongs elsewhere."""
        others = {NEW: OLD, self.own: self.shared, self.shared: self.own}
        parts = file.relative_to(self.path).parts
        return self.path.joinpath(*(others.get(part, part) for part in parts))

    def check(self, file: Path) -> None:
        """Restore after damage to this file, without a wrong answer."""
        what = str(file.relative_to(self.path))
        with pytest.raises(SnapshotError):
            load(self.path / NEW)
        restored = restore(self.path)
        if self.shared in file.parts:
            assert restored is None, what
            assert not list(segments_folder(self.path).iterdir()), what
        else:
            assert restored is not None, what
            assert restored.store.positions == {0: 1}, what
            assert restored.facts == {"of": 1}, what
            assert_same(restored.store, self.old, brief=True)
            left = {path.name for path in segments_folder(self.path).iterdir()}
            assert left == {self.shared}, what


def batches() -> list[Batch]:
    first: Batch = [upsert(f"a{number}", number, by=["text"]) for number in range(5)]
    first += [upsert("a5", 5, by=["image"]), delete("a1", 6), upsert("bare", 7, by=[])]
    second: Batch = [upsert(f"b{number}", 10 + number) for number in range(6)]
    second += [delete("a2", 20), upsert("a3", 21), delete("bare", 22)]
    return [first, second]


def growing(store: LiveStore, number: int) -> Batch:
    batch: Batch = [upsert(f"g{number}", 30 + number), upsert("last", 40 + number, by=["text"])]
    put(store, *batch)
    return batch


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = tmp_path_factory.mktemp("damage") / "home"
    store = make(3, home=home)
    applied: list[Batch] = []
    names: list[set[str]] = []
    oracles: list[Oracle] = []
    for number, batch in enumerate(batches(), start=1):
        put(store, *batch)
        settle(store, POLICY)
        applied += [batch, growing(store, number)]
        store.apply([], positions={0: number}, progress={})
        save(store, home, generation="g1", facts={"of": number})
        names.append({segment.name for segment in store.segments()})
        oracles.append(after(applied))
    (shared,), (own,) = names[0], names[1] - names[0]
    made = Home(home, oracles[0], oracles[1], shared, own)
    there = sorted(path for path in home.rglob("*") if path.is_file())
    watched = {*made.files(), *(made.twin(file) for file in made.files())}
    assert there == sorted(watched)  # no file that nothing looks after
    return made


def test_the_undamaged_is_restored_as_it_was(template: Home, tmp_path: Path) -> None:
    home = template.copy(tmp_path / "home")
    assert_same(load(home.path / OLD).store, home.old)
    restored = restore(home.path)
    assert restored is not None
    assert restored.facts == {"of": 2}
    assert_same(restored.store, home.new)


@pytest.mark.slow
@pytest.mark.parametrize("harm", damage.ALL, ids=lambda harm: harm.__name__)
def test_damage_in_any_file_is_found_and_the_previous_snapshot_used(
    template: Home, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    for number, file in enumerate(template.files()):
        home = template.copy(tmp_path / str(number))
        at = home.path / file.relative_to(template.path)
        harm(at)
        home.check(at)
        shutil.rmtree(home.path)


@pytest.mark.slow
def test_a_whole_file_of_elsewhere_is_found(template: Home, tmp_path: Path) -> None:
    for number, file in enumerate(template.files()):
        home = template.copy(tmp_path / str(number))
        at = home.path / file.relative_to(template.path)
        before = at.read_bytes()
        shutil.copy(home.twin(at), at)
        assert at.read_bytes() != before, file
        home.check(at)


def test_a_whole_folder_of_elsewhere_or_none_is_found(template: Home, tmp_path: Path) -> None:
    segments = segments_folder(Path())
    folders = [Path(NEW) / "growing", segments / template.own, segments / template.shared]
    for number, folder in enumerate(folders):
        for lost in (True, False):
            home = template.copy(tmp_path / f"{number}-{lost}")
            at = home.path / folder
            shutil.rmtree(at)
            if not lost:
                shutil.copytree(template.twin(template.path / folder), at)
            home.check(at)


def test_a_segment_that_cannot_be_read_is_damage(
    template: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that answers with an error; whoever reads."""
    home = template.copy(tmp_path / "home")
    broken = segments_folder(home.path) / home.own / "fused.npy"
    file_digest = hashlib.file_digest

    def digest(file: object, name: str) -> object:
        if getattr(file, "name", "") == str(broken):
            raise OSError(5, "Input/output error")
        return file_digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", digest)
    home.check(broken)


def test_a_segment_lost_while_its_store_lives_is_written_again(
    template: Home, tmp_path: Path
) -> None:
    home = template.copy(tmp_path / "home")
    restored = restore(home.path)
    assert restored is not None
    shutil.rmtree(segments_folder(home.path) / home.shared)
    restored.store.apply([], positions={0: 3}, progress={})
    assert save(restored.store, home.path, generation="g1") is not None
    again = restore(home.path)
    assert again is not None
    assert again.store.positions == {0: 3}
    assert_same(again.store, home.new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm", [damage.torn, damage.flipped, damage.emptied, damage.missing], ids=lambda h: h.__name__
)
def test_a_damaged_cache_is_built_anew_from_the_vectors(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with tuned(**APPROXIMATE):
        store = make(64, home=tmp_path, recall=0.3)
        batch: Batch = [upsert(f"r{number}", number) for number in range(260)]
        put(store, *batch)
        maintain(store, Policy())
        store.apply([], positions={0: 1}, progress={})
        (segment,) = store.segments()
        assert segment.vectors["fused"].approximate
        assert segment.folder is not None
        save(store, tmp_path, generation="g1")
        harm(segment.folder / "fused.faiss")
        restored = restore(tmp_path, recall=0.3)
        assert restored is not None
        assert "built anew" in caplog.text
        assert not restored.store.exact
        assert_same(restored.store, after([batch]), exact=True)
        # The next compaction rewrites the segment, so that no later start has to.
        assert maintain(restored.store, Policy())
        assert not maintain(restored.store, Policy())
        assert_same(restored.store, after([batch]), exact=True)
        restored.store.apply([], positions={0: 2}, progress={})
        assert save(restored.store, tmp_path, generation="g1") is not None
        caplog.clear()
        later = restore(tmp_path, recall=0.3)
        assert later is not None
        assert "built anew" not in caplog.text
        assert not later.store.exact
        assert not maintain(later.store, Policy())
        assert_same(later.store, after([batch]), exact=True)
        exact = restore(tmp_path)  # and who wants none needs none
        assert exact is not None
        assert exact.store.exact
        assert_same(exact.store, after([batch]))


def test_an_index_of_too_low_a_recall_is_not_used(tmp_path: Path) -> None:
    with tuned(**APPROXIMATE):
        store = make(64, home=tmp_path, recall=0.05)
        put(store, *(upsert(f"r{number}", number) for number in range(260)))
        maintain(store, Policy())
        store.apply([], positions={0: 1}, progress={})
        save(store, tmp_path, generation="g1")
        (low,) = store.stats()["segments"][:1]
        restored = restore(tmp_path, recall=0.9)
        assert restored is not None
        described = [one for one in restored.store.stats()["segments"] if one["kind"] != "growing"]
        assert low["recall"] < 0.9
        assert all(one.get("recall", 1) >= 0.9 for one in described)


def test_the_manifest_says_what_the_snapshot_stands_on(template: Home) -> None:
    manifest = json.loads((template.path / NEW / "manifest.json").read_bytes())
    assert {one["name"] for one in manifest["segments"]} == {template.shared, template.own}
