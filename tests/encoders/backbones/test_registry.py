"""Kinds of encoders that other packages add, from small distributions made here."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from braid.encoders import Embedder, Sample, load, preset, train
from braid.encoders.backbones.registry import ENCODERS, GROUP, encoder_class
from braid.encoders.backbones.text import HashedWords
from braid.encoders.config import EncoderConfig
from tests.documents import block
from tests.encoders.material import samples

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a distribution of one module and puts it on the path."""

    def made(name: str, code: str, points: dict[str, str]) -> None:
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"[{GROUP}]", *(f"{key} = {value}" for key, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, name, raising=False)

    return made


def find(modality: str, kind: str) -> type:
    return encoder_class(modality, EncoderConfig(kind=kind))


CODE = "from braid.encoders.plugin import HashedWords\nclass Mine(HashedWords): ...\n"


def test_the_pages_example_is_trained_and_loaded(install: Install, tmp_path: Path) -> None:
    written = tomllib.loads(block("how-to/encoder.md", "toml", "[project"))
    code = block("how-to/encoder.md", "python", "from torch import nn")
    install("letters", code, written["project"]["entry-points"][GROUP])
    encoder = EncoderConfig(kind="letters", options={"width": 16})
    tiny = preset("tiny")
    encoders = {**tiny.model.encoders, "text": encoder}
    config = replace(tiny, epochs=1, model=replace(tiny.model, encoders=encoders))
    train(samples(60), config, out=tmp_path / "v", name="v", version=1, seed=0)
    load(tmp_path / "v", device="cpu").check()
    with Embedder.load(tmp_path / "v", device="cpu") as embedder:
        one, two = embedder.embed([Sample(id="1", text="a red bird"), Sample(id="2", text="zzz")])
    assert abs(one.fused - two.fused).max() > 1e-3


def test_other_kinds_are_listed_where_one_is_unknown(install: Install) -> None:
    install("friendly", CODE, {"text.mine": "friendly:Mine"})
    assert find("text", "mine").__module__ == "friendly"
    with pytest.raises(ValueError, match=r"no text encoder 'yours'; there are hashed, .*, mine"):
        find("text", "yours")
    with pytest.raises(ValueError, match=r"no image encoder 'mine'; there are [^m]*small-cnn"):
        find("image", "mine")
    with pytest.raises(ValueError, match="no modality 'smell'"):
        find("smell", "mine")


def test_a_kind_of_braids_own_is_not_replaced(install: Install) -> None:
    assert find("text", "hashed") is HashedWords
    install("greedy", CODE, {"text.hashed": "greedy:Mine"})
    with pytest.raises(ValueError, match=r"'hashed' comes from braid itself and from .* greedy"):
        find("text", "hashed")
    assert find("text", "transformer") is ENCODERS["text"]["transformer"]
    assert ENCODERS["text"]["hashed"] is HashedWords


def test_two_packages_with_one_kind_are_refused(install: Install) -> None:
    install("first", CODE, {"text.mine": "first:Mine"})
    install("second", CODE, {"text.mine": "second:Mine"})
    with pytest.raises(ValueError, match=r"'mine' comes from the package .* and from the package"):
        find("text", "mine")


@pytest.mark.parametrize(
    ("code", "value", "message"),
    [
        ("1 / 0", "broken:Mine", "broken .* does not load: ZeroDivisionError"),
        ("import no_such_module", "broken:Mine", "does not load: ModuleNotFoundError"),
        (CODE, "broken:Other", "does not load: AttributeError"),
        (CODE, "nowhere:Mine", "does not load: ModuleNotFoundError"),
        ("Mine = dict", "broken:Mine", "is no subclass of braid.encoders.plugin.Encoder"),
        ("Mine = 3", "broken:Mine", "is no subclass of braid.encoders.plugin.Encoder"),
        (
            "from braid.encoders.backbones.image import SmallCnn as Mine",
            "broken:Mine",
            "is for the modality 'image', not for 'text'",
        ),
    ],
)
def test_a_broken_one_harms_nobody_who_does_not_ask_for_it(
    install: Install, code: str, value: str, message: str
) -> None:
    install("broken", code, {"text.broken": value})
    assert find("text", "hashed") is HashedWords
    with pytest.raises(ValueError, match="no text encoder 'other'"):
        find("text", "other")
    with pytest.raises(ValueError, match=message):
        find("text", "broken")
