"""Reads and writes version folders: `model.safetensors`, `manifest.json`, tokeniser files.

A version folder is immutable. It is written under a temporary name, synced and renamed, so that a
reader sees all of it or nothing. Loading needs neither a hub nor the packages of pretrained
weights.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..backbones.registry import encoder_class, encoders_of
from ..config import TrainConfig, from_dict
from ..errors import CheckpointError
from ..manifest import FILE_NAME, WEIGHTS, Manifest, digest, sha256_of
from ..manifest import read_manifest as read_manifest
from ..manifest import verify as verify
from ..tasks import Task
from ..types import FUSED, Examination, Sample
from .adapter import load_adapter
from .frozen_queries import QUERIES, FrozenQueries
from .golden import golden_batch
from .learnt import FILE as LEARNT
from .learnt import Learnt
from .net import Net
from .torch_model import TorchModel


def make_net(config: TrainConfig, tasks: Mapping[str, Task]) -> Net:
    """A new model: pretrained encoders from their sources, other weights at random."""
    encoders = encoders_of(
        config.model.encoders, lambda name, one: encoder_class(name, one).create(one)
    )
    return Net(config.model, encoders, tasks)


def save(
    net: Net,
    folder: Path,
    *,
    config: TrainConfig,
    name: str,
    version_number: int,
    parent: str | None = None,
    window: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    unchanged_from: Path | None = None,
    examine: Callable[[Path], Examination] | None = None,
    reference: Callable[[TorchModel], Mapping[str, Any]] | None = None,
    queries: Sequence[Sample] = (),
    learnt: Learnt | None = None,
) -> Manifest:
    """Write `net` as the version folder `folder`, which must not exist yet.

    Args:
        unchanged_from: a version with the same encoders, projections and fusion. The new version
            keeps its space and its adapter.
        examine: called with the finished folder before it is published; the result goes into the
            manifest.
        reference: makes the manifest's `reference` from the model as it will be loaded, with its
            adapter, if it has one.
        queries: held-out records to keep as frozen queries; see `HeldOut`.
        learnt: the records that it and its ancestors have learnt; None: unknown.

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
            net,
            draft,
            config,
            name,
            version_number,
            parent=parent,
            window=window,
            metrics=metrics,
            unchanged_from=unchanged_from,
            reference=reference,
            queries=queries,
            learnt=learnt,
        )
        if examine is not None:
            manifest = _examined(
                draft, manifest, examine(draft), device_of(net), reference, queries
            )
        for path in [*draft.rglob("*"), draft]:
            sync(path)
        try:
            draft.rename(folder)
        except OSError as error:  # another process has created it
            raise CheckpointError(f"cannot move the version to {folder}: {error}") from error
        sync(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _write(
    net: Net, draft: Path, config: TrainConfig, name: str, version_number: int, **provenance: Any
) -> Manifest:
    tensors = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    save_file(tensors, draft / WEIGHTS)
    (draft / WEIGHTS).chmod(0o644)  # safetensors writes 0600; another user may serve it
    for modality in net.modalities:
        assets = draft / modality
        assets.mkdir()
        net.encoder(modality).save_assets(assets)
        if not any(assets.iterdir()):
            assets.rmdir()
    if provenance["learnt"] is not None:
        (draft / LEARNT).write_bytes(provenance["learnt"].to_bytes())
    kept, adapter = None, None
    if provenance["unchanged_from"] is not None:
        kept = read_manifest(provenance["unchanged_from"])
        adapter = load_adapter(provenance["unchanged_from"], kept, applied=True)
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
        parent=provenance["parent"],
        window=provenance["window"],
        metrics=provenance["metrics"] or {},
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
    model = TorchModel(net, manifest, device_of(net), adapter)
    make_reference = provenance["reference"]
    manifest = replace(
        manifest,
        golden=_golden(model),
        reference={} if make_reference is None else make_reference(model),
        files={**manifest.files, **_frozen_queries(model, provenance["queries"], draft)},
    )
    net.requires_grad_(True).train(training)
    (draft / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _examined(
    draft: Path,
    manifest: Manifest,
    examination: Examination,
    device: torch.device,
    reference: Callable[[TorchModel], Mapping[str, Any]] | None,
    queries: Sequence[Sample],
) -> Manifest:
    """Write the results of its examination into a draft."""
    for name, content in examination.files.items():
        (draft / name).write_bytes(content)
    manifest = replace(
        manifest,
        verdict=examination.verdict,
        compatibility=examination.compatibility,
        space=examination.space or manifest.space,
        files={**manifest.files, **{name: sha256_of(draft / name) for name in examination.files}},
    )
    (draft / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    if examination.files:
        # An adapter changes the version's vectors, hence all that was made from them.
        model = load_folder(draft, device=str(device))
        again = manifest.reference if reference is None else reference(model)
        files = {**manifest.files, **_frozen_queries(model, queries, draft)}
        manifest = replace(manifest, golden=_golden(model), reference=again, files=files)
        (draft / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def device_of(net: Net) -> torch.device:
    """The device that the weights are on."""
    return next(net.parameters()).device


class _LeftEmpty(TorchFunctionMode):
    """Makes modules without drawing their parameters, all of which a file brings."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = next(iter((*args, *(kwargs or {}).values())), None)
        if isinstance(first, torch.nn.Parameter) and (
            getattr(func, "__module__", None) == "torch.nn.init"
            or func in (Tensor.normal_, Tensor.uniform_)
        ):
            return first
        return func(*args, **(kwargs or {}))


def load_folder(folder: Path, *, device: str | None = None) -> TorchModel:
    """The model in a version folder, verified.

    Raises:
        CheckpointError: damaged, or written for other code than this.
    """
    manifest = verify(folder)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        with _LeftEmpty():
            net = restore_net(folder, manifest)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} does not load: {type(error).__name__}: {error}") from error
    return TorchModel(net, manifest, chosen, load_adapter(folder, manifest, applied=True))


def restore_net(folder: Path, manifest: Manifest) -> Net:
    """The weights of a version, on the CPU. Errors are as torch and the constructors raise them."""
    config = from_dict(manifest.config)
    encoders = encoders_of(
        config.model.encoders,
        lambda name, one: encoder_class(name, one).restore(one, folder / name),
    )
    tasks = {name: Task.from_dict(raw) for name, raw in manifest.tasks.items()}
    net = Net(config.model, encoders, tasks)
    net.load_state_dict(load_file(folder / WEIGHTS), assign=True)  # mapped, not copied
    if net.preprocessing() != manifest.preprocessing:
        raise ValueError(
            f"this code prepares as {net.preprocessing()}, the version as {manifest.preprocessing}"
        )
    return net


def _golden(model: TorchModel) -> dict[str, Any]:
    with model.exact():
        return golden_batch(model)


def _frozen_queries(model: TorchModel, samples: Sequence[Sample], draft: Path) -> dict[str, str]:
    """Write the file of the frozen queries, if there are some; its name and sha256."""
    if not samples:
        return {}
    with model.exact():
        frozen = FrozenQueries.of(model, samples)
    (draft / QUERIES).write_text(frozen.to_json(), encoding="utf-8")
    return {QUERIES: sha256_of(draft / QUERIES)}


def _calibration(net: Net) -> dict[str, Any]:
    """Each task's rule, and its weights and temperatures by subset: "all", "text", "text+image"."""
    calibration: dict[str, Any] = {}
    for (name, task), decision in zip(net.tasks.items(), net.decisions, strict=True):
        if task.kind == "generation":
            continue
        calibration[name] = {"rule": decision.rule, "subsets": {}}
        for subset in range(len(decision.weights_ZS)):
            names = [m for bit, m in enumerate(net.modalities) if subset >> bit & 1]
            sources = [i for i, s in enumerate(net.sources) if not subset or s in (*names, FUSED)]
            calibration[name]["subsets"]["+".join(names) or "all"] = {
                "weights": {net.sources[i]: float(decision.weights_ZS[subset, i]) for i in sources},
                "temperatures": {
                    net.sources[i]: float(decision.temperature_ZS[subset, i]) for i in sources
                },
                "sharpness": float(decision.sharpness_Z[subset]),
            }
    return calibration


def _code() -> dict[str, str]:
    versions = {}
    for package in ("braid-stream", "torch", "torchaudio", "transformers", "numpy", "pillow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def sync(path: Path) -> None:
    """Fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
