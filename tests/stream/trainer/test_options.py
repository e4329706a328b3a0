"""What a run trains and starts from, by its options; combinations that exclude each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from braid.encoders.config import from_dict
from braid.encoders.manifest import read_manifest
from braid.stream.cli.retrain import SHAPING, repeated
from braid.stream.errors import ConfigError, RegistryError
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings
from braid.stream.trainer.import_version import import_version
from braid.stream.trainer.options import Options, config_of
from tests.encoders.joint_models import DIM, write_clip
from tests.stream.trainers import run, tell

SMALL = "epochs = 1\nrefit = false\nbatch = 16\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An imported CLIP is the champion."""
    write_clip(tmp_path / "clip")
    import_version(Settings(home=tmp_path), str(tmp_path / "clip"), tell=tell)
    return tmp_path


def file(home: Path, content: str) -> str:
    (home / "changes.toml").write_text(content)
    return str(home / "changes.toml")


@pytest.mark.slow
def test_an_imported_champion_is_trained_further_and_judged(home: Path) -> None:
    changes = file(home, SMALL + "[model]\ndim = 16\n")
    first = run(home, preset=None, projections=True, config_file=changes)
    assert (first.manifest.parent, first.manifest.dim) == ("braid-0001", 16)
    assert first.manifest.verdict["champion"] == "braid-0001"
    assert not first.serves
    again = repeated(Settings(home=home), Options(window=first.manifest.name), {"seed": 3})
    assert (again.projections, again.lora, again.preset) == (True, None, None)
    child = run(home, **{name: getattr(again, name) for name in (*SHAPING, "window")})
    assert (child.manifest.parent, child.manifest.dim) == ("braid-0001", 16)

    small = file(home, SMALL)
    more = run(home, preset=None, start="2", config_file=small)  # its projections, as they were
    assert (more.manifest.parent, more.manifest.dim) == ("braid-0002", 16)
    assert more.manifest.config["epochs"] == 1
    low = run(home, preset=None, lora=2, config_file=small)
    assert (low.manifest.parent, low.manifest.dim) == ("braid-0001", DIM)
    assert low.manifest.verdict["champion"] == "braid-0001"


@pytest.mark.slow
def test_a_file_names_the_last_blocks_of_an_encoder(home: Path) -> None:
    changes = file(
        home, SMALL + "[model.encoders]\ntext = { frozen = false, train_last = 1 }\nimage = false\n"
    )
    with pytest.raises(ConfigError, match=r"model\.encoders\.image is None, there it is 'clip-im"):
        run(home, preset=None, start="1", config_file=changes)
    changes = file(home, SMALL + "[model.encoders.text]\nfrozen = false\ntrain_last = 1\n")
    made = run(home, preset=None, start="1", config_file=changes).manifest
    encoders = from_dict(made.config).model.encoders
    assert (encoders["text"].train_last, encoders["text"].frozen) == (1, False)
    assert encoders["text"].kind == "clip-text"
    assert encoders["image"].frozen


@pytest.mark.slow
def test_what_makes_no_sense_together_is_refused_before_anything_is_read(home: Path) -> None:
    wide = file(home, "[model]\ndim = 16\n")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"heads_only": True, "projections": True}, "--projections and --heads-only exclude"),
        ({"heads_only": True, "lora": 4}, "--lora 4 and --heads-only exclude each other"),
        ({"heads_only": True, "from_scratch": True}, "--heads-only and --from-scratch exclude"),
        ({"projections": True, "preset": "tiny"}, "--projections and --preset tiny exclude"),
        ({"lora": 4, "preset": "tiny"}, "--lora 4 and --preset tiny exclude each other"),
        ({"lora": 4, "from_scratch": True}, "--lora 4 and --from-scratch exclude each other"),
        ({"start": "1", "from_scratch": True}, "--from 1 and --from-scratch exclude each other"),
        ({"start": "1"}, "--from 1: nothing of braid-0001 is trained but its heads"),
        (
            {"start": "1", "preset": "tiny"},
            "--preset tiny: braid-0001 has another model configuration: "
            "model.encoders.image.kind is 'small-cnn', there it is 'clip-image'",
        ),
        (
            {"start": "1", "config_file": wide},
            f"--config {wide}: braid-0001 has another model configuration: "
            f"model.dim is 16, there it is {DIM}",
        ),
        (
            {"heads_only": True, "config_file": wide},
            f"--config {wide}: --heads-only keeps the model of braid-0001: "
            f"model.dim is 16, there it is {DIM}",
        ),
    ]
    for options, message in refused:
        with pytest.raises(ConfigError, match=re.escape(message)):
            run(home, **{"preset": None, **options})
    assert not list((home / "training").glob("*/window.json"))
    assert Registry(home / "models").names() == ["braid-0001"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads_only": True}, "--heads-only keeps the champion's space, but there is no champion"),
        ({"projections": True}, "--projections trains the champion further, but there is no champ"),
        ({"lora": 8}, "--lora 8 trains the champion further, but there is no champion"),
    ],
)
def test_without_a_champion_nothing_is_trained_further(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        run(tmp_path, preset=None, **options)


def test_the_configuration_is_the_version_s_own_or_the_preset_s(home: Path) -> None:
    manifest = read_manifest(home / "models" / "versions" / "braid-0001")
    own = config_of(Options(projections=True), manifest)
    assert (own.start, own.epochs, own.model.projection) == ("identity", 20, "learnt")
    low = config_of(Options(start="1", lora=4), manifest)
    assert {one.lora.rank for one in low.model.encoders.values() if one.lora} == {4}
    assert config_of(Options(lora=4, compatible=0.5), manifest).compatible == 0.5
    heads = config_of(Options(heads_only=True), manifest)
    assert heads.model == from_dict(manifest.config).model
    assert heads.batch == config_of(Options()).batch == 256, "of the preset demo"
    changed = config_of(
        Options(lora=4, config_file=file(home, "encoder_lr = 1e-5\n[model]\nfusion = 'early'\n")),
        manifest,
    )
    assert (changed.encoder_lr, changed.model.fusion) == (1e-5, "early")
