"""Training: read, fit, decide, evaluate, write. Seeded; a non-finite step is refused.

Shapes: B samples of a batch, M modalities, D the shared space, F features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders.base import one_thread
from encoders.checkpoint import make_net, restore_net, save, verify
from encoders.config import TrainConfig, from_dict
from encoders.errors import TrainingError
from encoders.losses import (
    LOG_SCALE_MAX,
    LOG_SCALE_START,
    info_nce,
    masked_cross_entropy,
    positives,
)
from encoders.manifest import Manifest
from encoders.model import Net
from encoders.training.data import Column, Dataset, Progress, gather
from encoders.training.evaluate import evaluate, fit_decisions
from encoders.types import FUSED, Sample

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
            fit_decisions(net, data, held, place)
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
    pairs = {
        f"{left}-{right}": nn.Parameter(torch.tensor(LOG_SCALE_START, device=device))
        for left, right in combinations(net.modalities, 2)
    }
    groups = _parameters(net, data, config, pairs, heads_only)
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
        for batch_B, inputs in _batches(rows, data, net, config, rng):
            rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group, start in zip(groups, starts, strict=True):
                group["lr"] = start * rate
            loss, _ = batch_loss(net, data, config, batch_B, inputs, pairs, rng, heads_only)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained, config.clip)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise TrainingError(
                    f"step {step}: loss {loss.item()}, gradient {norm.item()}; refused, "
                    "no version is written"
                )
            optimizer.step()
            for log_scale in pairs.values():
                log_scale.data.clamp_(0.0, LOG_SCALE_MAX)
            total += loss.item() * len(batch_B)
            step += 1
        history.append(total / len(rows))
        progress(stage, epoch + 1, config.epochs, {"loss": history[-1]})
    return {"loss": history[-1] if history else None, "losses": history}


def batch_loss(
    net: Net, data: Dataset, config: TrainConfig, batch_B: Tensor, inputs: Mapping[str, Any],
    pairs: Mapping[str, Tensor], rng: np.random.Generator, heads_only: bool = False,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """The joint loss of one batch, a scalar, and its three terms.

    Args:
        batch_B: positions in `data`.
        inputs: for each trained encoder its collated batch and which rows of `batch_B` are in it.
        pairs: "left-right" to the logarithm of 1 / temperature.
    """
    device = next(net.parameters()).device
    present_BM = data.present_NM[batch_B].to(device)
    features: dict[str, Tensor] = {}
    for position, name in enumerate(net.modalities):
        column = data.columns[name]
        if column.features_nF is not None:
            places = column.row_N[batch_B]
            features[name] = column.features_nF[places[places >= 0]].to(device)
        elif name in inputs:
            batch, rows_n = inputs[name]
            present_BM[:, position] = False
            present_BM[rows_n, position] = True
            features[name] = net.encoders[name](*(part.to(device) for part in batch)).pooled_BF
        else:
            present_BM[:, position] = False
    usable_B = present_BM.any(1)
    if not bool(usable_B.all()):  # a sample with nothing but a modality that sits this batch out
        batch_B, present_BM = batch_B[usable_B.cpu()], present_BM[usable_B]
    unit_BMD, fused_BD = net.align(features, present_BM)
    if heads_only:
        unit_BMD, fused_BD = unit_BMD.detach(), fused_BD.detach()
    align = torch.zeros((), device=device)
    if not heads_only:
        align = _alignment(net, data, config, batch_B, unit_BMD, present_BM, pairs)
    # The fused head sees random subsets: at work any modality may be missing, or know nothing.
    kept_BM = present_BM & torch.from_numpy(rng.random(tuple(present_BM.shape)) < 0.7).to(device)
    kept_BM = torch.where(kept_BM.any(1, keepdim=True), kept_BM, present_BM)
    fused_BD = net.fusion(unit_BMD, kept_BM)
    task = torch.zeros((), device=device)
    fuse = torch.zeros((), device=device)
    for name, label_N in data.label_N.items():
        label_B = label_N[batch_B].to(device)
        logits_BSC = net.logits(name, features, unit_BMD, fused_BD, present_BM)
        for position in range(len(net.modalities)):
            known_B = torch.where(present_BM[:, position], label_B, -1)
            task = task + masked_cross_entropy(logits_BSC[:, position], known_B)
        fuse = fuse + masked_cross_entropy(logits_BSC[:, net.sources.index(FUSED)], label_B)
    loss = config.task * task + config.align * align + config.fuse * fuse
    return loss, {"task": task.item(), "align": align.item(), "fuse": fuse.item()}


def _alignment(
    net: Net, data: Dataset, config: TrainConfig, batch_B: Tensor, unit_BMD: Tensor,
    present_BM: Tensor, pairs: Mapping[str, Tensor],
) -> Tensor:  # fmt: skip
    """InfoNCE summed over the pairs of modalities; each over the samples that have both."""
    total = torch.zeros((), device=unit_BMD.device)
    group_B = data.group_N[batch_B].to(unit_BMD.device)
    label_B = torch.full_like(group_B, -1)
    if config.same_label > 0 and data.label_N:
        first = next(iter(data.label_N))
        label_B = data.label_N[first][batch_B].to(unit_BMD.device)
    for left, right in combinations(range(len(net.modalities)), 2):
        both_B = present_BM[:, left] & present_BM[:, right]
        names = f"{net.modalities[left]}-{net.modalities[right]}"
        target_BB = positives(group_B[both_B], label_B[both_B], config.same_label)
        total = total + config.pairs.get(names, 1.0) * info_nce(
            unit_BMD[both_B, left], unit_BMD[both_B, right], pairs[names], target_BB
        )
    return total


def _parameters(
    net: Net,
    data: Dataset,
    config: TrainConfig,
    pairs: Mapping[str, nn.Parameter],
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
            "params": vectors + ([] if heads_only else list(pairs.values())),
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


def _batches(
    rows: Tensor, data: Dataset, net: Net, config: TrainConfig, rng: np.random.Generator
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Shuffled batches; while one is used, the inputs of the next are varied and collated."""
    shuffled = rows[torch.from_numpy(rng.permutation(len(rows)))]
    parts = list(shuffled.split(config.batch))
    seeds = rng.integers(0, 2**63, len(parts))

    def ready(batch_B: Tensor, seed: int) -> dict[str, Any]:
        its = np.random.default_rng(seed)
        return {
            name: found
            for name, column in data.columns.items()
            if column.features_nF is None
            and (found := _inputs(column, net, name, batch_B, config, its)) is not None
        }

    with ThreadPoolExecutor(1, "batches") as pool:
        waiting = pool.submit(ready, parts[0], int(seeds[0]))
        for position, batch_B in enumerate(parts):
            inputs = waiting.result()
            if position + 1 < len(parts):
                waiting = pool.submit(ready, parts[position + 1], int(seeds[position + 1]))
            yield batch_B, inputs


def _inputs(
    column: Column, net: Net, name: str, batch_B: Tensor, config: TrainConfig,
    rng: np.random.Generator,
) -> tuple[tuple[Tensor, ...], Tensor] | None:  # fmt: skip
    """A trained encoder's collated batch, and the rows of `batch_B` in it, ascending."""
    places_B = column.row_N[batch_B]
    having = torch.nonzero(places_B >= 0).flatten()
    if len(having) > config.encoder_batch:
        having = having[np.sort(rng.permutation(len(having))[: config.encoder_batch])]
    if len(having) < 2:  # batch norm needs two
        return None
    encoder = net.encoder(name)
    varied = [encoder.vary(column.inputs[int(place)], rng) for place in places_B[having]]
    return encoder.collate(varied), having
