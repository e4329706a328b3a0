"""Fits a network: optimiser steps, learning rate schedule, early stopping, resumption.

Shapes: B samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..errors import TrainingError
from ..model.caption import Captioner
from ..model.net import Net
from ..model.optimizers import AdamW
from . import low_rank, parallel
from .batches import batches
from .data import Dataset, Progress
from .ema import Ema
from .evaluate import held_out_loss
from .objective import Objective
from .resume import FitCheckpoints, FitResult, running_statistics
from .step import backward

WARM_UP = 20  # steps
DECODER_DECAY = 0.05


def fit(
    net: Net,
    data: Dataset,
    config: TrainConfig,
    *,
    splits: Sequence[str],
    seed: int,
    warm: Sequence[str] = (),
    heads_only: bool = False,
    progress: Progress | None = None,
    stage: str = "train",
    resume: Path | None = None,
) -> FitResult:
    """Minimise the joint loss over `splits`.

    Args:
        warm: modalities whose projectors are initialised; their learning rate is `start_lr`.
        resume: folder of the state after each epoch, from which a run resumes. None writes no
            state.

    Raises:
        TrainingError: there are no targets, or a loss or gradient is not finite.
    """
    device = next(net.parameters()).device
    rows = data.rows(*splits)
    check_has_targets(data, config, rows, heads_only)
    objective = Objective(net.modalities, config, heads_only=heads_only).to(device)
    groups = parameter_groups(net, data, config, objective, heads_only, warm)
    optimizer = AdamW(groups)
    trained = [p for group in groups for p in group["params"]]
    starts = [group["lr"] for group in groups]
    per_epoch = math.ceil(len(rows) / config.batch)
    ema = Ema(trained, config.ema)
    held = data.rows("validation") if config.patience > 0 and "validation" not in splits else None
    state = FitResult()
    statistics = running_statistics(net)
    checkpoints = FitCheckpoints(resume, net, optimizer, ema, trained)
    best = checkpoints.restore(state)
    for epoch in range(len(state.losses), config.epochs):
        if _out_of_patience(state, config):
            break
        _set_modes(net, data, config, heads_only)
        total, seen = 0.0, 0
        for batch_no, (batch_B, inputs) in enumerate(batches(rows, data, net, config, seed, epoch)):
            step = epoch * per_epoch + batch_no
            rate = schedule(step, config.epochs * per_epoch)
            optimizer.zero_grad(set_to_none=True)
            terms = backward(net, objective, data, config, batch_B, inputs, seed=seed, step=step)
            for group, start in zip(optimizer.param_groups, starts, strict=True):
                group["lr"] = start * rate
            norm = nn.utils.clip_grad_norm_(trained, config.clip)
            loss = float(terms.loss.detach())
            if not (math.isfinite(loss) and math.isfinite(float(norm))):
                raise TrainingError(
                    f"step {step}: loss {loss}, gradient {float(norm)}; refused, "
                    "no version is written"
                )
            optimizer.step()
            objective.clamp()
            ema.update()
            total += loss * len(batch_B)
            seen += len(batch_B)
            state.parts = terms.parts
        parallel.average_buffers(running_statistics(net, moving=True))
        parallel.copy_first([*_moments(optimizer), *(p.data for p in trained), *ema.shadow])
        state.losses.append(total / max(seen, 1))
        figures = {"loss": state.losses[-1]}
        if held is not None and len(held) > 0:
            with ema.averaged():
                validation_loss = held_out_loss(net, objective, data, held, device)
            state.held_out.append(parallel.broadcast_first(validation_loss, device))
            figures["held out"] = state.held_out[-1]
            if state.held_out[-1] <= min(state.held_out):
                state.best = epoch + 1
                best = [t.detach().clone() for t in [*(ema.shadow or trained), *statistics]]
        checkpoints.save(state, best)
        if progress is not None:
            progress(stage, epoch + 1, config.epochs, figures)
    ema.take()
    if best:
        with torch.no_grad():
            for tensor, value in zip([*trained, *statistics], best, strict=True):
                tensor.copy_(value)
    return state


def _moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The optimiser's averages, in the order of its parameters."""
    slots = (optimizer.state[p] for group in optimizer.param_groups for p in group["params"])
    return [slot[name] for slot in slots for name in ("exp_avg", "exp_avg_sq") if name in slot]


def check_has_targets(data: Dataset, config: TrainConfig, rows: Tensor, heads_only: bool) -> None:
    """Check that some term of the joint loss depends on the samples at `rows`.

    Raises:
        TrainingError: none does.
    """
    task_weights = [
        config.task if task.kind != "generation" else 0.0 for task in data.tasks.values()
    ]
    if any(weight > 0 or config.fuse > 0 for weight in task_weights):
        return
    why = (
        f"task {config.task} and fuse {config.fuse} leave the labels out"
        if data.tasks
        else "no label makes a task (a class must be one of two or more)"
    )
    if heads_only:
        raise TrainingError(f"nothing to learn: only heads are trained, and {why}")
    several = int((data.present_NM[rows].sum(1) > 1).sum())
    aligned = several > 0 and (config.align > 0 or config.fuse * config.match > 0)
    if not aligned and (config.compatible == 0 or data.old_NSD is None):
        raise TrainingError(
            f"nothing to learn: {why}, and nothing is aligned (align {config.align}, match "
            f"{config.match}, fuse {config.fuse}; {several} of {len(rows)} samples have two "
            "modalities or more)"
        )


def schedule(step: int, steps: int) -> float:
    """Cosine from 1 to 0 (arXiv 1608.03983) under a linear warm-up over `WARM_UP` steps."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _out_of_patience(state: FitResult, config: TrainConfig) -> bool:
    return bool(state.held_out) and len(state.held_out) - state.best >= config.patience > 0


def _set_modes(net: Net, data: Dataset, config: TrainConfig, heads_only: bool) -> None:
    """Training mode for what is trained; batch norms of the rest keep their statistics."""
    net.train()
    for name in net.modalities:
        encoder = net.encoder(name)
        if data.columns[name].features_nF is not None:
            encoder.eval()
            continue
        if not _trained_in_part(config, name):
            continue
        kept = frozen_blocks(net, config, name)
        others = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for part in [*kept, *others]:  # a batch norm of the stem is in no block
            part.eval()
        for block in encoder.trainable_blocks()[len(kept) :]:
            block.train()
    if heads_only:
        net.projectors.eval()
        net.fusion.eval()


def _trained_in_part(config: TrainConfig, name: str) -> bool:
    encoder = config.model.encoders[name]
    return encoder.train_last is not None or encoder.lora is not None


def frozen_blocks(net: Net, config: TrainConfig, name: str) -> list[nn.Module]:
    """The blocks of a trained encoder that `train_last` freezes.

    Raises:
        TrainingError: the encoder has fewer blocks, or names none.
    """
    last = config.model.encoders[name].train_last
    if last is None:
        return []
    blocks = net.encoder(name).trainable_blocks()
    if not 0 < last <= len(blocks):
        raise TrainingError(
            f"train_last of the {name} encoder must be 1 to {len(blocks)}, is {last}"
        )
    return blocks[: len(blocks) - last]


def parameter_groups(
    net: Net,
    data: Dataset,
    config: TrainConfig,
    objective: Objective,
    heads_only: bool,
    warm: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The optimiser's groups. Only matrices decay; trained encoders have another learning rate."""
    net.requires_grad_(False)
    for part in [net.heads] if heads_only else [net.heads, net.projectors, net.fusion]:
        part.requires_grad_(True)
    started = [] if heads_only else [p for name in warm for p in net.projectors[name].parameters()]
    decoders = [head for head in net.heads.by_task if isinstance(head, Captioner)]
    words = [p for head in decoders for p in head.parameters()]
    others = {id(p) for p in [*started, *words]}
    fresh = [p for p in net.parameters() if p.requires_grad and id(p) not in others]
    matrices = [p for p in fresh if p.ndim > 1]
    vectors = [p for p in fresh if p.ndim <= 1]
    groups = [
        {"params": matrices, "lr": config.lr, "weight_decay": config.weight_decay},
        {
            "params": vectors + list(objective.parameters()),
            "lr": config.lr,
            "weight_decay": 0.0,
        },
    ]
    if words:  # a linear map's weight decay is too strong for a decoder
        groups.append({"params": words, "lr": config.lr, "weight_decay": DECODER_DECAY})
    if started:
        groups.append({"params": started, "lr": config.start_lr, "weight_decay": 0.0})
    for name in net.modalities:
        if data.columns[name].features_nF is not None or heads_only:
            continue
        encoder = net.encoder(name)
        encoder.requires_grad_(not _trained_in_part(config, name))
        if config.model.encoders[name].lora is not None:
            for matrix in low_rank.matrices(encoder):
                matrix.requires_grad_(True)
        elif config.model.encoders[name].train_last is not None:
            kept = frozen_blocks(net, config, name)
            for block in encoder.trainable_blocks()[len(kept) :]:
                block.requires_grad_(True)
        trainable = [p for p in encoder.parameters() if p.requires_grad]
        groups.append({"params": trainable, "lr": config.encoder_lr, "weight_decay": 0.05})
    return groups
