"""Training: read, fit, decide, evaluate, write. Seeded; a non-finite step is refused.

`encoders.training.objective` holds the joint loss, `batches` what it is given.

Shapes: B samples of a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from encoders.base import one_thread
from encoders.checkpoint import make_net, restore_net, save, verify
from encoders.config import TrainConfig, from_dict
from encoders.errors import TrainingError
from encoders.manifest import Manifest
from encoders.model import Net
from encoders.training.batches import batches, encoded
from encoders.training.data import Dataset, Progress, gather
from encoders.training.evaluate import evaluate, fit_decisions
from encoders.training.objective import Objective
from encoders.types import Sample

WARM_UP = 20  # steps
DECISIONS = "_decisions."  # how their parameters' names begin


def train(
    samples: Iterable[Sample], config: TrainConfig, *, out: Path, name: str, version: int,
    seed: int, parent: Path | None = None, heads_only: bool = False,
    window: Mapping[str, Any] | None = None, progress: Progress | None = None,
    device: str | None = None,
) -> Manifest:  # fmt: skip
    """Train on `samples` and write the version folder `out`.

    Args:
        samples: read once, in any order; split by `encoders.training.split`.
        name, version: of the new version.
        parent: version folder to start from, with the same model configuration.
        heads_only: keep the parent's encoders, projectors and fusion, and so its space; only
            heads and decisions are trained. The model configuration is then the parent's.
        window: where the samples came from; kept in the manifest.
        progress: called with (stage, done, total, figures); stages are "read", "train",
            "evaluate", "refit" and "write".

    Raises:
        TrainingError: nothing to train on, a parent that does not fit, a step that is not finite.
            Nothing is written then.
        CheckpointError: a damaged parent, or `out` exists.
    """
    tell: Progress = progress or (lambda stage, done, total, figures: None)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(), one_thread(place.type == "cpu" and config.one_core):
        torch.manual_seed(seed)
        config, net, parent_name = _start(config, parent, heads_only)
        net = net.to(place)
        data = gather(samples, net, config, all_frozen=heads_only, device=place, progress=tell)
        net.new_heads(data.tasks)
        net = net.to(place)
        held = data.rows("validation")
        start = copy.deepcopy(net.state_dict()) if config.refit else {}
        losses = fit(
            net, data, config, splits=("train",), seed=seed, heads_only=heads_only, progress=tell
        )
        tell("evaluate", 0, 1, {})
        metrics: dict[str, Any] = {"seed": seed, **losses, "left_out": dict(data.left_out)}
        metrics["train_samples"] = len(data.rows("train"))
        if len(held) > 0:
            fit_decisions(net, data, held, place, copies=config.calibration_copies, seed=seed)
            metrics["validation"] = evaluate(net, data, held, place)
        tell("evaluate", 1, 1, {})
        if config.refit and len(held) > 0:
            decided = {k: v for k, v in net.state_dict().items() if k.startswith(DECISIONS)}
            net.load_state_dict({**start, **decided})
            again = fit(
                net, data, config, splits=("train", "validation"), seed=seed,
                heads_only=heads_only, progress=tell, stage="refit",
            )  # fmt: skip
            metrics["refit"] = again
        tell("write", 0, 1, {})
        manifest = save(
            net, out, config=config, name=name, version_number=version, parent=parent_name,
            window=window, metrics=metrics,
        )  # fmt: skip
        tell("write", 1, 1, {})
        return manifest


def _start(
    config: TrainConfig, parent: Path | None, heads_only: bool
) -> tuple[TrainConfig, Net, str | None]:
    if parent is None:
        if heads_only:
            raise TrainingError("training only the heads needs a parent version")
        return config, make_net(config, {}), None
    manifest = verify(parent)
    theirs = from_dict(manifest.config)
    if heads_only:
        kept = replace(
            theirs.model,
            decision=config.model.decision, head_dropout=config.model.head_dropout,
        )  # fmt: skip
        config = replace(config, model=kept)
    elif config.model != theirs.model:
        raise TrainingError(f"{manifest.name} has another model configuration: start without it")
    return config, restore_net(parent, manifest), manifest.name


def fit(
    net: Net, data: Dataset, config: TrainConfig, *, splits: Sequence[str], seed: int,
    heads_only: bool, progress: Progress, stage: str = "train",
) -> dict[str, Any]:  # fmt: skip
    """Minimise L = task + align + fuse (weights in `config`) over `splits`.

    Returns:
        {"loss": mean of the last epoch, "losses": mean of each epoch}.
    """
    device = next(net.parameters()).device
    objective = Objective(net.modalities, config, heads_only=heads_only).to(device)
    groups = _parameters(net, data, config, objective, heads_only)
    optimizer = torch.optim.AdamW(groups)
    trained = [p for group in groups for p in group["params"]]
    starts = [group["lr"] for group in groups]
    rows = data.rows(*splits)
    steps = config.epochs * math.ceil(len(rows) / config.batch)
    rng = np.random.default_rng(seed)
    history: list[float] = []
    step = 0
    for epoch in range(config.epochs):
        net.train()
        for name in net.modalities:
            if data.columns[name].features_nF is not None:
                net.encoder(name).eval()
        if heads_only:
            net.projectors.eval()
        total = 0.0
        for batch_B, inputs in batches(rows, data, net, config, rng):
            rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group, start in zip(groups, starts, strict=True):
                group["lr"] = start * rate
            loss, _ = objective(net, encoded(net, data, batch_B, inputs, device), rng)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained, config.clip)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise TrainingError(
                    f"step {step}: loss {loss.item()}, gradient {norm.item()}; refused, "
                    "no version is written"
                )
            optimizer.step()
            objective.clamp()
            total += loss.item() * len(batch_B)
            step += 1
        history.append(total / len(rows))
        progress(stage, epoch + 1, config.epochs, {"loss": history[-1]})
    return {"loss": history[-1] if history else None, "losses": history}


def _parameters(
    net: Net,
    data: Dataset,
    config: TrainConfig,
    objective: Objective,
    heads_only: bool,
) -> list[dict[str, Any]]:
    """What the optimiser gets: matrices decay, the rest does not; trained encoders go slower."""
    net.requires_grad_(False)
    for part in [net.heads] if heads_only else [net.heads, net.projectors, net.fusion]:
        part.requires_grad_(True)
    matrices = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "lr": config.lr, "weight_decay": config.weight_decay},
        {
            "params": vectors + ([] if heads_only else list(objective.parameters())),
            "lr": config.lr,
            "weight_decay": 0.0,
        },
    ]
    for name in net.modalities:
        if data.columns[name].features_nF is None and not heads_only:
            net.encoder(name).requires_grad_(True)
            groups.append(
                {
                    "params": list(net.encoder(name).parameters()),
                    "lr": config.encoder_lr,
                    "weight_decay": 0.05,
                }
            )
    return groups
