"""A model version is an immutable folder: `model.safetensors`, `manifest.json`, tokeniser files.

It is written under a temporary name beside its place, synced, and renamed: a reader sees all of it
or nothing. It holds all that loading needs; neither a hub nor the packages of pretrained weights.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import uuid
import wave
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from encoders.adapter import load_adapter
from encoders.base import Encoder
from encoders.config import TrainConfig, from_dict
from encoders.errors import CheckpointError
from encoders.manifest import FILE_NAME, WEIGHTS, Manifest, digest, sha256_of
from encoders.manifest import read_manifest as read_manifest
from encoders.manifest import verify as verify
from encoders.model import Net
from encoders.registry import encoder_class
from encoders.tasks import Task
from encoders.torch_model import TorchModel
from encoders.types import FUSED, Embedding, Model, Sample, Vector

if TYPE_CHECKING:
    from encoders.training.examine import Examination

TOLERANCE = 2e-3
"""How far a golden output may be off. CPUs and GPUs sum in different orders (about 1e-6 in
float32, 1e-3 with TF32); a wrong weight or preprocessing shows as 1e-1."""


def make_net(config: TrainConfig, tasks: Mapping[str, Task]) -> Net:
    """A new model: pretrained encoders from their sources, everything else at random."""
    encoders: dict[str, Encoder] = {
        name: encoder_class(name, its).create(its) for name, its in config.model.encoders.items()
    }
    return Net(config.model, encoders, tasks)


def save(
    net: Net, folder: Path, *, config: TrainConfig, name: str, version_number: int,
    parent: str | None = None, window: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None, keeps: Path | None = None,
    examine: Callable[[Path], Examination] | None = None,
    reference: Callable[[TorchModel], Mapping[str, Any]] | None = None,
) -> Manifest:  # fmt: skip
    """Write `net` as the version folder `folder`, which must not exist yet.

    Args:
        keeps: a version whose encoders, projections and fusion these are, unchanged: its space is
            kept, and its adapter with it.
        examine: called with the finished folder before anybody sees it; what it found goes into
            the manifest.
        reference: gives the manifest's `reference`, from the model as it will be loaded: its
            vectors go through its adapter, if it has one.

    Raises:
        CheckpointError: it exists already.
        FloatingPointError: the net gives vectors that are not finite.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; a version is never overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    draft.mkdir()
    try:
        manifest = _write(
            net, draft, config, name, version_number, parent=parent, window=window,
            metrics=metrics, keeps=keeps, reference=reference,
        )  # fmt: skip
        if examine is not None:
            manifest = _examined(draft, manifest, examine(draft), next_device(net), reference)
        for path in [*draft.rglob("*"), draft]:
            _sync(path)
        try:
            draft.rename(folder)
        except OSError as error:  # somebody else was faster
            raise CheckpointError(f"cannot move the version to {folder}: {error}") from error
        _sync(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _write(
    net: Net, draft: Path, config: TrainConfig, name: str, version_number: int, **story: Any
) -> Manifest:
    tensors = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    save_file(tensors, draft / WEIGHTS)
    (draft / WEIGHTS).chmod(0o644)  # safetensors keeps it to its owner; another user may serve it
    for modality in net.modalities:
        assets = draft / modality
        assets.mkdir()
        net.encoder(modality).save_assets(assets)
        if not any(assets.iterdir()):
            assets.rmdir()
    kept, adapter = None, None
    if story["keeps"] is not None:
        kept = read_manifest(story["keeps"])
        adapter = load_adapter(story["keeps"], kept, applied=True)
        if adapter is not None:
            (draft / kept.compatibility["adapter"]["file"]).write_bytes(adapter.to_bytes())
    raw = config.to_dict()
    manifest = Manifest(
        name=name,
        version=version_number,
        space=net.space() if kept is None else kept.space,
        dim=net.config.dim,
        modalities=list(net.modalities),
        preprocessing=net.preprocessing(),
        tasks={name: task.to_dict() for name, task in net.tasks.items()},
        config=raw,
        config_sha256=digest(raw),
        parent=story["parent"],
        window=story["window"],
        metrics=story["metrics"] or {},
        calibration=_calibration(net),
        files={
            path.relative_to(draft).as_posix(): sha256_of(path)
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        },
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code=_code(),
        compatibility=(
            {} if kept is None or adapter is None else {"adapter": kept.compatibility["adapter"]}
        ),
    )
    training = net.training
    model = TorchModel(net, manifest, next_device(net), adapter)
    refer = story["reference"]
    manifest = replace(
        manifest, golden=_golden(model), reference={} if refer is None else refer(model)
    )
    net.requires_grad_(True).train(training)
    (draft / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _examined(
    draft: Path, manifest: Manifest, found: Examination, device: torch.device,
    reference: Callable[[TorchModel], Mapping[str, Any]] | None,
) -> Manifest:  # fmt: skip
    """Write into a draft what its examination found."""
    for name, content in found.files.items():
        (draft / name).write_bytes(content)
    manifest = replace(
        manifest,
        verdict=found.verdict,
        compatibility=found.compatibility,
        space=found.space or manifest.space,
        files={**manifest.files, **{name: sha256_of(draft / name) for name in found.files}},
    )
    (draft / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    if found.files:  # an adapter changes what the version gives: golden outputs and reference too
        model = load_folder(draft, device=str(device))
        again = manifest.reference if reference is None else reference(model)
        manifest = replace(manifest, golden=_golden(model), reference=again)
        (draft / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def next_device(net: Net) -> torch.device:
    """The device that the weights are on."""
    return next(net.parameters()).device


def load_folder(folder: Path, *, device: str | None = None) -> TorchModel:
    """The model in a version folder, verified.

    Raises:
        CheckpointError: damaged, or written for other code than this.
    """
    manifest = verify(folder)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        net = restore_net(folder, manifest)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} does not load: {type(error).__name__}: {error}") from error
    return TorchModel(net, manifest, chosen, load_adapter(folder, manifest, applied=True))


def restore_net(folder: Path, manifest: Manifest) -> Net:
    """The weights of a version, on the CPU. Errors are as torch and the constructors raise them."""
    config = from_dict(manifest.config)
    encoders = {
        name: encoder_class(name, its).restore(its, folder / name)
        for name, its in config.model.encoders.items()
    }
    tasks = {name: Task.from_dict(raw) for name, raw in manifest.tasks.items()}
    net = Net(config.model, encoders, tasks)
    net.load_state_dict(load_file(folder / WEIGHTS))
    if net.preprocessing() != manifest.preprocessing:
        raise ValueError(
            f"this code prepares as {net.preprocessing()}, the version as {manifest.preprocessing}"
        )
    return net


def check_golden(model: Model) -> None:
    """See `encoders.types.Model.check`."""
    golden = model.manifest.golden
    try:
        samples = [_golden_sample(raw) for raw in golden["inputs"]]
        wanted = golden["outputs"]
        tolerance = float(golden["tolerance"])
        found = model.encode([model.prepare(sample) for sample in samples])
        pairs = [
            (f"{sample.id}.{name}", vector_D, np.asarray(want[name], dtype=np.float32))
            for sample, got, want in zip(samples, found, wanted, strict=True)
            for name, vector_D in _checked(got).items()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{model.name}: no usable golden batch: {error!r}") from error
    except FloatingPointError as error:
        raise CheckpointError(f"golden batch: {error}") from error
    for what, got_D, want_D in pairs:
        if got_D.shape != want_D.shape or not np.abs(got_D - want_D).max() <= tolerance:
            off = np.abs(got_D - want_D).max() if got_D.shape == want_D.shape else float("nan")
            raise CheckpointError(
                f"{model.name}: golden output {what} is off by {off:.2g}, allowed {tolerance:g}"
            )


def _golden(model: TorchModel) -> dict[str, Any]:
    inputs = [
        {"id": f"golden-{name}", **{key: value for key, value in _GOLDEN().items() if key in names}}
        for name, names in [("all", model.modalities), *((m, (m,)) for m in model.modalities)]
    ]
    with model.exact():
        found = model.encode([model.prepare(_golden_sample(raw)) for raw in inputs])
    outputs = [
        {
            name: [round(float(value), 6) for value in vector_D]
            for name, vector_D in _checked(embedding).items()
        }
        for embedding in found
    ]
    return {"inputs": inputs, "outputs": outputs, "tolerance": TOLERANCE}


def _checked(embedding: Embedding) -> dict[str, Vector]:
    """All that is compared: the vectors, and each task's probabilities in its classes' order.

    A number in its own units, or a caption's likelihood, is not: the vectors that they come from
    are, and their scale is not the tolerance's.
    """
    probs = {
        f"task {name}": np.asarray(list(task.probs.values()), dtype=np.float32)
        for name, task in embedding.tasks.items()
        if task.probs
    }
    return {**embedding.by, FUSED: embedding.fused, **probs}


def _golden_sample(raw: Mapping[str, str]) -> Sample:
    files = {key: base64.b64decode(raw[key]) for key in ("image", "audio") if key in raw}
    return Sample(id=raw["id"], text=raw.get("text"), **files)  # type: ignore[arg-type]


def _GOLDEN() -> dict[str, str]:  # noqa: N802
    """A sentence, a small picture and a short tone, made here so that no file is needed."""
    from PIL import Image

    y, x = np.mgrid[0:24, 0:32]
    pixels = np.stack([x * 8, y * 10, (x * y) % 256], axis=2).astype(np.uint8)
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(picture, format="PNG")
    seconds = np.arange(2400) / 8000
    tone = (8000 * np.sin(2 * np.pi * 440 * seconds * (1 + seconds))).astype("<i2")
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(tone.tobytes())
    return {
        "text": "A red bird sings on a branch.",
        "image": base64.b64encode(picture.getvalue()).decode(),
        "audio": base64.b64encode(sound.getvalue()).decode(),
    }


def _calibration(net: Net) -> dict[str, Any]:
    """Each task's rule, and its weights and temperatures by subset: "all", "text", "text+image"."""
    found: dict[str, Any] = {}
    for (name, task), decision in zip(net.tasks.items(), net.decisions, strict=True):
        if task.kind == "generation":
            continue
        found[name] = {"rule": decision.rule, "subsets": {}}
        for subset in range(len(decision.weights_ZS)):
            names = [m for bit, m in enumerate(net.modalities) if subset >> bit & 1]
            sources = [i for i, s in enumerate(net.sources) if not subset or s in (*names, FUSED)]
            found[name]["subsets"]["+".join(names) or "all"] = {
                "weights": {net.sources[i]: float(decision.weights_ZS[subset, i]) for i in sources},
                "temperatures": {
                    net.sources[i]: float(decision.temperature_ZS[subset, i]) for i in sources
                },
                "sharpness": float(decision.sharpness_Z[subset]),
            }
    return found


def _code() -> dict[str, str]:
    found = {}
    for package in ("braid-stream", "torch", "torchaudio", "transformers", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
