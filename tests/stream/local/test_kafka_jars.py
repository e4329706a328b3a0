"""The jars of Apache Kafka: fetched once, whole or not at all, each as listed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from braid.stream.datasets.sources import default_cache
from braid.stream.errors import EmbeddedError
from braid.stream.local import kafka_jars as module
from braid.stream.local.kafka_jars import ROOTS, kafka_jars


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A list of two small jars, which a Maven repository on disk has."""
    source = kafka_jars(default_cache())
    listed = {name: digest for name, digest in module._listed().items() if "slf4j" in name}
    assert len(listed) == 2
    text = "".join(f"{digest}  {name}\n" for name, digest in listed.items())
    (tmp_path / "list").write_text(text)
    monkeypatch.setattr(module, "LIST", tmp_path / "list")
    repository = tmp_path / "repository"
    for name in listed:
        group, artifact, version = name.split(":")
        place = repository / group.replace(".", "/") / artifact / version
        place.mkdir(parents=True)
        (place / f"{artifact}-{version}.jar").write_bytes(
            (source / f"{artifact}-{version}.jar").read_bytes()
        )
    monkeypatch.setenv("M2_REPO", str(repository))
    # Whatever is not in the repository cannot be had.
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    return listed


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_jars_are_taken_from_a_maven_repository_without_the_network(
    few: dict[str, str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    jars = kafka_jars(cache)
    assert names(jars) == ["slf4j-api-1.7.36.jar", "slf4j-simple-1.7.36.jar"]
    assert names(cache / "kafka") == [jars.name, "jars.lock"]
    before = jars.stat().st_mtime_ns
    assert kafka_jars(cache) == jars
    assert jars.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["missing", "cut short", "changed"])
def test_a_damaged_cache_is_not_taken(few: dict[str, str], tmp_path: Path, damage: str) -> None:
    jars = kafka_jars(tmp_path / "cache")
    jar = jars / "slf4j-api-1.7.36.jar"
    good = jar.read_bytes()
    if damage == "missing":
        jar.unlink()
    else:
        jar.write_bytes(good[:-10] if damage == "cut short" else b"x" + good[1:])
    left = jars.parent / "fetching-killed"
    left.mkdir()
    assert kafka_jars(tmp_path / "cache") == jars
    assert jar.read_bytes() == good
    assert not left.exists()


def test_without_the_network_the_error_names_the_jar_and_the_remedy(
    few: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M2_REPO", str(tmp_path / "empty"))
    with pytest.raises(EmbeddedError, match=r"slf4j.*cannot be fetched.*KAFKA_BOOTSTRAP") as caught:
        kafka_jars(tmp_path / "cache")
    assert len(str(caught.value)) < 1000
    assert names(tmp_path / "cache" / "kafka") == ["jars.lock"]


def test_a_repository_with_another_jar_of_that_name_is_not_believed(
    few: dict[str, str], tmp_path: Path
) -> None:
    (jar,) = (tmp_path / "repository").rglob("slf4j-api-*.jar")
    jar.write_bytes(b"another")
    with pytest.raises(EmbeddedError, match="slf4j-api"):
        kafka_jars(tmp_path / "cache")
    assert jar.read_bytes() == b"another"  # a repository is read, never written


FETCH = """
import sys
from pathlib import Path

from braid.stream.local.kafka_jars import listed_jars

cache, listing = map(Path, sys.argv[1:])
print(listed_jars(cache, listing, "kafka"))
"""


def test_two_processes_at_once_get_the_same_folder(few: dict[str, str], tmp_path: Path) -> None:
    # Not forks: a fork of a process with threads may stand still on a lock of one of them.
    command = [sys.executable, "-c", FETCH, str(tmp_path / "cache"), str(module.LIST)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second,
    ):
        try:
            said = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
        finally:
            first.kill()
            second.kill()
    assert said[0] == said[1] != ""
    assert names(tmp_path / "cache" / "kafka") == [Path(said[0]).name, "jars.lock"]


def test_the_list_holds_what_it_was_resolved_from() -> None:
    listed = module._listed()
    assert set(ROOTS) <= set(listed)
    assert all(len(digest) == 64 for digest in listed.values())
    assert len({module._file_name(name) for name in listed}) == len(listed) == 46
