"""Bridges: two imported models that both embed texts become one space."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braid.encoders import BadInput, CheckpointError, Embedder, Sample, TrainingError, train
from braid.encoders.backbones.registry import encoder_class
from braid.encoders.bridging import CARRIES, bridge, parts_of
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig
from braid.encoders.importing import import_model, tasks_of
from braid.encoders.model.checkpoint import load_folder, save
from braid.encoders.model.net import Net
from braid.encoders.presets import preset
from braid.encoders.types import FUSED
from tests.encoders.joint_models import DIM, LETTERS, write_clap, write_clip
from tests.encoders.material import samples
from tests.encoders.test_importing import write_sentence_transformer
from tests.encoders.test_importing_joint import PICTURES, SOUNDS, vectors

SAME = 0.999
HEARD = list(SOUNDS.values())


def captions(count: int = 600) -> list[str]:
    draw = random.Random(1)
    return [
        " ".join("".join(draw.choices(LETTERS, k=draw.randint(2, 7))) for _ in range(5))
        for _ in range(count)
    ]


def spread(folder: Path) -> None:
    """Draw the weights of the CLAP anew, so large that its vectors fill all dimensions."""
    from transformers import ClapModel

    net = ClapModel.from_pretrained(folder)
    torch.manual_seed(15)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 1.5 / weight.shape[1] ** 0.5)
    net.save_pretrained(folder)


def write_rotated(source: Path, folder: Path) -> None:
    """The CLAP at `source` with the vectors of both towers rotated alike."""
    from transformers import ClapModel

    shutil.copytree(source, folder)
    net = ClapModel.from_pretrained(source)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(5))).Q
    with torch.no_grad():
        for tower in (net.text_projection, net.audio_projection):
            tower.linear2.weight.copy_(rotation @ tower.linear2.weight)
            tower.linear2.bias.copy_(rotation @ tower.linear2.bias)
    net.save_pretrained(folder)


def write_other(source: Path, folder: Path) -> None:
    """A CLAP of the same shape with other random weights."""
    from transformers import ClapConfig, ClapModel

    shutil.copytree(source, folder)
    torch.manual_seed(99)
    ClapModel(ClapConfig.from_pretrained(source)).save_pretrained(folder)


def write_dual(clap: Path, clip: Path, folder: Path, **model: Any) -> None:
    """A version with the texts of a CLAP and the pictures of a CLIP."""
    encoders = {
        "text": EncoderConfig(kind="clap-text", source=str(clap), frozen=True),
        "image": EncoderConfig(
            kind="clip-image", source=str(clip), frozen=True, options={"fit": "checkpoint"}
        ),
    }
    fields = {"projection": "none", "origin": {"type": "made here"}, **model}
    config = TrainConfig(model=ModelConfig(encoders=encoders, dim=DIM, **fields))
    made = {name: encoder_class(name, one).create(one) for name, one in encoders.items()}
    tasks = tasks_of({"kind": ["bird", "frog"]}, "{}")
    net = Net(config.model, made, tasks).eval()
    save(net, folder, config=config, name="dual", version_number=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of CLAP and CLIP; versions "dual" (texts and pictures), "turned" and "other"
    (texts and sounds)."""
    folder = tmp_path_factory.mktemp("bridge")
    write_clap(folder / "clap")
    spread(folder / "clap")
    write_clip(folder / "clip")
    write_rotated(folder / "clap", folder / "clap-turned")
    write_other(folder / "clap", folder / "clap-other")
    write_dual(folder / "clap", folder / "clip", folder / "dual")
    for number, name in enumerate(("", "-turned", "-other"), start=2):
        out = folder / f"v{name}"
        import_model(str(folder / f"clap{name}"), out, name=out.name, version=number)
    return folder


@pytest.mark.slow
def test_a_known_rotation_is_recovered(place: Path) -> None:
    out = place / "bridged"
    made = bridge(place / "dual", place / "v-turned", captions(), out, name="b", version=9)
    assert list(made.modalities) == ["text", "image", "audio"]
    quality = made.metrics["bridge"]
    assert quality["of"] == ["dual", "v-turned"]
    assert (quality["map"], quality["captions"], quality["recall@1"]) == ("rotation", 60, 1.0)
    assert quality["cosine"] > SAME
    assert made.config["model"]["origin"]["type"] == "bridge"

    heard = vectors(out, "audio", HEARD)
    assert (heard * vectors(place / "v", "audio", HEARD)).sum(1).min() > SAME
    assert abs((heard * vectors(place / "v-turned", "audio", HEARD)).sum(1)).max() < SAME
    for modality, values in (("text", captions(5)), ("image", list(PICTURES.values()))):
        before = vectors(place / "dual", modality, values)
        assert np.array_equal(vectors(out, modality, values), before)


@pytest.mark.slow
def test_a_record_of_all_three_is_fused_and_predicted(place: Path) -> None:
    out = place / "three"
    bridge(place / "dual", place / "v-turned", captions(), out, name="b", version=9)
    model = load_folder(out, device="cpu")
    model.check()
    dual = load_folder(place / "dual", device="cpu")
    heads = model.net.heads
    for source, mine in (("text", "text"), ("image", "image"), ("audio", FUSED), (FUSED, FUSED)):
        weight = dual.net.heads.head("kind", mine).linear.weight
        assert torch.equal(heads.head("kind", source).linear.weight, weight)
    sample = Sample(id="1", text="red", image=PICTURES["4:3"], audio=SOUNDS["8 kHz"])
    with Embedder.load(out, device="cpu") as embedder:
        (one,) = embedder.embed([sample])
    mean = sum(one.by.values())
    assert np.allclose(one.fused, mean / np.linalg.norm(mean), atol=1e-6)
    assert set(one.tasks["kind"].by) == {"text", "image", "audio", FUSED}


@pytest.mark.slow
def test_models_that_have_nothing_to_do_with_each_other_are_refused(place: Path) -> None:
    out = place / "refused"
    with pytest.raises(TrainingError, match=rf"does not carry: of 60 .* at least {CARRIES}"):
        bridge(place / "dual", place / "v-other", captions(), out, name="b", version=9)
    assert not out.exists()
    made = bridge(
        place / "dual", place / "v-other", captions(), out, name="b", version=9, force=True
    )
    assert made.metrics["bridge"]["recall@1"] < CARRIES


@pytest.mark.slow
def test_the_vectors_may_have_two_widths(place: Path, tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path / "st", layers=["Normalize"])
    import_model(str(tmp_path / "st"), tmp_path / "wide", name="wide", version=1)
    out = tmp_path / "b"
    made = bridge(tmp_path / "wide", place / "v", captions(), out, name="b", version=9, force=True)
    assert (made.dim, list(made.modalities)) == (32, ["text", "audio"])
    assert vectors(out, "audio", HEARD[:2]).shape == (2, 32)
    again = bridge(
        out, place / "dual", captions(), tmp_path / "c", name="c", version=10, force=True
    )
    assert list(again.modalities) == ["text", "image", "audio"]
    before = vectors(out, "audio", HEARD[:2])
    assert np.array_equal(vectors(tmp_path / "c", "audio", HEARD[:2]), before)
    with pytest.raises(CheckpointError, match="c is a bridge itself: put it first"):
        bridge(tmp_path / "wide", tmp_path / "c", captions(), tmp_path / "d", name="d", version=11)


def test_captions_fit_choose_and_judge_apart() -> None:
    given = captions(250)
    parts = parts_of([*given, *given, "", f" {given[0]} "])
    assert [len(part) for part in parts] == [200, 25, 25]
    assert sorted(text for part in parts for text in part) == sorted(given)
    assert parts == parts_of(given[::-1])
    with pytest.raises(TrainingError, match="at least 100 different ones are needed, there are 99"):
        parts_of(given[:99] * 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "error", "says"),
    [
        ("v", "v-turned", CheckpointError, "v-turned has no modality that v has not"),
        ("trained", "v", CheckpointError, "trained was trained; a bridge joins imported versions"),
        ("dual", "deaf", CheckpointError, "deaf has no texts, it has audio"),
    ],
)
def test_what_cannot_be_joined_is_named(
    place: Path, tmp_path: Path, first: str, second: str, error: type[Exception], says: str
) -> None:
    make: dict[str, Callable[[Path], object]] = {"trained": _trained, "deaf": _deaf(place)}

    def folder(name: str) -> Path:
        if name not in make:
            return place / name
        make[name](tmp_path / name)
        return tmp_path / name

    with pytest.raises(error, match=says):
        bridge(folder(first), folder(second), captions(), tmp_path / "b", name="b", version=9)


def test_a_caption_that_a_model_refuses_is_named(place: Path, tmp_path: Path) -> None:
    odd = [*captions(), "\ud800 alone"]
    with pytest.raises(BadInput, match=r"captions: v refuses one: text: is not valid unicode"):
        bridge(place / "dual", place / "v", odd, tmp_path / "b", name="b", version=9)


def _trained(folder: Path) -> None:
    short = replace(preset("tiny"), epochs=1, refit=False)
    train(samples(), short, out=folder, name="trained", version=1, seed=1, device="cpu")


def _deaf(place: Path) -> Callable[[Path], None]:
    """A version without texts."""

    def write(folder: Path) -> None:
        encoder = EncoderConfig(
            kind="clap-audio-projected", source=str(place / "clap"), frozen=True
        )
        model = ModelConfig(
            encoders={"audio": encoder}, dim=DIM, projection="none", origin={"type": "made here"}
        )
        net = Net(model, {"audio": encoder_class("audio", encoder).create(encoder)}, {}).eval()
        save(net, folder, config=TrainConfig(model=model), name="deaf", version_number=1)

    return write
