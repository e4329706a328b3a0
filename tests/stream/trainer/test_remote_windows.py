"""Training windows in an object store: a trainer with an empty disk repeats a run on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from braid.encoders.errors import TrainingError
from braid.stream.errors import ConfigError, RegistryAway, RegistryError, WindowError
from braid.stream.registry.object_store import ObjectStore
from braid.stream.registry.versions import Registry, object_store_of
from braid.stream.settings import Settings
from braid.stream.trainer.job import Job, lead
from braid.stream.trainer.options import Options
from braid.stream.trainer.remote_windows import remote_windows_of
from braid.stream.trainer.runs import Run, Runs, runs_of
from braid.stream.trainer.window import Window
from tests.object_storage import BUCKET, CUT, PASS, Proxy, S3Server
from tests.stream.trainers import read, tell

pytestmark = [pytest.mark.s3, pytest.mark.slow]


@pytest.fixture
def settings(proxy: Proxy, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        model={
            "registry": f"s3://{BUCKET}/{tmp_path.name}",
            "registry_options": proxy.options,
        },
        refresh={"upload_windows": True, "windows_kept": 2},
    )


def store_of(settings: Settings) -> ObjectStore:
    store = object_store_of(settings)
    assert store is not None
    return store


def begun(settings: Settings, repeat: Run | None = None) -> Run:
    """A run with its window, uploaded."""
    runs = runs_of(settings)
    run = runs.begin(Registry(settings.models_dir), None, {}, parent=None, repeat=repeat)
    if repeat is None:
        read(settings, runs.folder(run.id), None)
    runs.upload(run, keep=settings.refresh.windows_kept)
    return runs.write(replace(run, state="done"))


def remote(settings: Settings) -> list[str]:
    return sorted({key.split("/")[1] for key in store_of(settings).keys("windows/")})


def test_a_window_goes_from_one_home_to_another(settings: Settings, tmp_path: Path) -> None:
    run = begun(settings)
    other = runs_of(settings.replace(home=tmp_path / "other"))
    found = other.resolve(run.name)
    assert (found.id, found.window_of) == (run.id, run.id)
    window = other.whole_window(found.window_of)
    window.check()
    assert window.provenance() == runs_of(settings).whole_window(run.id).provenance()
    assert other.all() == [], "the run is the other trainer's"
    assert [path.name for path in other.root.iterdir()] == [run.id], "no draft is left"
    with pytest.raises(RegistryError, match="no run 'braid-0009'"):
        other.resolve("braid-0009")
    with pytest.raises(WindowError, match="has no window of run 2020"):
        other.whole_window("2020")


def test_a_repeated_run_trains_on_the_window_of_another_machine(
    settings: Settings, tmp_path: Path
) -> None:
    """Nothing of `records` is read, and the run's own window is not copied once more."""
    first = begun(settings)
    seen: list[Window] = []

    def stop(job: Job, run: Run, window: Window) -> Any:
        window.check()
        seen.append(window)
        raise OSError("far enough")

    def nothing(*_: object) -> Any:
        raise AssertionError("the window must not be read again")

    job = Job(
        settings=settings.replace(home=tmp_path / "other"),
        options=Options(preset="tiny", window=first.name),
        read=nothing,
        tell=tell,
    )
    with pytest.raises(OSError, match="far enough"):
        lead(job, stop)
    assert seen[0].folder.name == first.id
    second = job.runs.all()[-1]
    assert store_of(settings).keys(f"windows/{second.id}/") == [f"windows/{second.id}/run.json"]


def test_a_run_that_failed_leaves_no_copy(settings: Settings) -> None:
    def fail(job: Job, run: Run, window: Window) -> Any:
        assert remote(settings) == [run.id], "it is there before the training"
        raise TrainingError("loss nan")

    job = Job(settings=settings, options=Options(preset="tiny"), read=read, tell=tell)
    with pytest.raises(TrainingError):
        lead(job, fail)
    assert remote(settings) == []


def test_the_newest_windows_are_kept_with_those_that_they_repeat(settings: Settings) -> None:
    first, second, third = (begun(settings) for _ in range(3))
    assert remote(settings) == [second.id, third.id]
    again = begun(settings, repeat=second)
    assert remote(settings) == [second.id, third.id, again.id], "the last one repeats it"
    fourth = begun(settings)
    assert remote(settings) == [second.id, again.id, fourth.id]
    old = begun(settings, repeat=first)  # whose copy was removed, and the folder is here
    assert first.id in remote(settings)
    assert remote_windows_of(settings).run(old.name)["window_of"] == first.id  # type: ignore[union-attr, index]
    runs_of(settings).remove(old.id)
    assert old.id not in remote(settings)


def test_a_torn_upload_is_continued_and_a_damaged_copy_refused(
    settings: Settings, proxy: Proxy, s3: S3Server, tmp_path: Path
) -> None:
    torn: list[str] = []

    def fate(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("window.json") and not torn:
            torn.append(path)
            return CUT
        return PASS

    proxy.fate = fate
    run = begun(settings)
    assert torn
    proxy.seen.clear()
    runs_of(settings).upload(run, keep=2)
    assert [method for method, _ in proxy.seen if method == "PUT"] == [], "nothing is sent again"

    shard = sorted((s3.folder / "data" / BUCKET).rglob(f"{run.id}/shards/*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    other = runs_of(settings.replace(home=tmp_path / "other"))
    with pytest.raises(WindowError, match=rf"{shard.name} in s3://\S+ is damaged"):
        other.whole_window(run.id)
    assert list(other.root.iterdir()) == []
    with proxy.away(), pytest.raises(RegistryAway):
        other.whole_window(run.id)


def test_a_download_that_was_killed_is_swept(settings: Settings, tmp_path: Path) -> None:
    runs = runs_of(settings)
    draft = runs.root / ".2026-1f6c.0123abcd.tmp"
    (draft / "shards").mkdir(parents=True)
    runs.sweep(Registry(tmp_path), keep=2)
    assert not draft.exists()


def test_copies_need_an_object_store(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, refresh={"upload_windows": True})
    with pytest.raises(ConfigError, match=r"needs model\.registry in an object store"):
        runs_of(settings)
    assert isinstance(runs_of(Settings(home=tmp_path)), Runs)
