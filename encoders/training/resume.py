"""Checkpoints of a fit, so that it resumes after a crash with the same losses.

Each epoch has a folder with one safetensors file and one JSON file, written under a temporary name,
synced and renamed; the newest complete one counts. Randomness is seeded for each step
(`braid.encoders.training.step`), so its state is not stored.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import TrainingError
from ..manifest import digest
from ..model.checkpoint import sync
from ..model.net import Net
from . import parallel
from .ema import Ema

TENSORS, METADATA = "state.safetensors", "state.json"


@dataclass(kw_only=True)
class FitResult:
    """The result of a fit.

    Attributes:
        losses: mean of each epoch; `parts` of the last, without weights.
        held_out: validation loss after each epoch, if early stopping is on.
        best: the epoch whose weights were kept, from 1.
    """

    losses: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    held_out: list[float] = field(default_factory=list)
    best: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        result: dict[str, Any] = {
            "loss": self.losses[-1] if self.losses else None,
            "losses": self.losses,
            "parts": self.parts,
        }
        if self.held_out:
            result |= {"held_out": self.held_out, "best_epoch": self.best}
        return result


class FitCheckpoints:
    """Saves and restores the state of one `fit`.

    Args:
        folder: None saves nothing.
        trained: the parameters that the optimiser has, in its order.
    """

    def __init__(
        self,
        folder: Path | None,
        net: Net,
        optimizer: torch.optim.Optimizer,
        ema: Ema,
        trained: Sequence[nn.Parameter],
    ) -> None:
        self.folder = folder
        self.buffers, self.optimizer, self.ema = running_statistics(net), optimizer, ema
        self.trained = list(trained)
        self.shapes = digest([list(p.shape) for p in self.trained], 16)

    def restore(self, state: FitResult) -> list[Tensor]:
        """Restore the last state, including `state`; returns the best epoch's weights and running
        statistics, if there are any.

        Raises:
            TrainingError: the state belongs to another model, or another process's state is gone.
        """
        newest = self._newest()
        # A process may have been killed before it saved an epoch that others have saved: all resume
        # from the last epoch that every process has.
        device = self.trained[0].device
        epoch = parallel.all_reduce_min(0 if newest is None else _epoch_of(newest), device)
        if newest is None or epoch == 0:
            return []
        newest = newest.with_name(_name(epoch))
        if not (newest / METADATA).is_file():
            raise TrainingError(f"{newest} is gone, though another process needs it; remove all")
        metadata = json.loads((newest / METADATA).read_text(encoding="utf-8"))
        if metadata["shapes"] != self.shapes:
            raise TrainingError(f"{newest} holds the state of another model; remove it")
        tensors = load_file(newest / TENSORS)
        with torch.no_grad():
            for i, parameter in enumerate(self.trained):
                parameter.copy_(tensors[f"weight.{i}"])
            for i, buffer in enumerate(self.buffers):
                buffer.copy_(tensors[f"buffer.{i}"])
            for i, shadow in enumerate(self.ema.shadow):
                shadow.copy_(tensors[f"ema.{i}"])
        self.ema.steps = metadata["ema_steps"]
        loaded = self.optimizer.state_dict()
        loaded["state"] = {
            i: {name: tensors[f"optimizer.{i}.{name}"] for name in names}
            for i, names in enumerate(metadata["optimizer"])
            if names
        }
        self.optimizer.load_state_dict(loaded)
        for name, value in metadata["fitted"].items():
            setattr(state, name, value)
        return [tensors[f"best.{i}"].to(device) for i in range(metadata["best"])]

    def save(self, state: FitResult, best: Sequence[Tensor]) -> None:
        """Write the state after an epoch, and remove the one before."""
        if self.folder is None:
            return
        optimizer = self.optimizer.state_dict()["state"]
        tensors: dict[str, Tensor] = {
            **{f"weight.{i}": p.detach() for i, p in enumerate(self.trained)},
            **{f"buffer.{i}": b for i, b in enumerate(self.buffers)},
            **{f"ema.{i}": s for i, s in enumerate(self.ema.shadow)},
            **{f"best.{i}": b for i, b in enumerate(best)},
            **{
                f"optimizer.{i}.{name}": value
                for i, slots in optimizer.items()
                for name, value in slots.items()
            },
        }
        metadata: dict[str, Any] = {
            "shapes": self.shapes,
            "ema_steps": self.ema.steps,
            "optimizer": [list(optimizer.get(i, {})) for i in range(len(self.trained))],
            "fitted": asdict(state),
            "best": len(best),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / _name(len(state.losses))
        draft = self.folder / f".{place.name}.{os.getpid()}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_file({k: v.cpu().contiguous().clone() for k, v in tensors.items()}, draft / TENSORS)
        (draft / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
        for path in (draft / TENSORS, draft / METADATA, draft):
            sync(path)
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
        # The loss needs all processes, so they are never more than one epoch apart.
        before = {_name(len(state.losses) - 1)} if parallel.world()[1] > 1 else set()
        for other in self.folder.glob("epoch-*"):
            if other.name not in {place.name, *before}:
                shutil.rmtree(other, ignore_errors=True)

    def _newest(self) -> Path | None:
        if self.folder is None or not self.folder.is_dir():
            return None
        whole = [p for p in sorted(self.folder.glob("epoch-*")) if (p / METADATA).is_file()]
        return whole[-1] if whole else None


def running_statistics(net: nn.Module, *, moving: bool = False) -> list[Tensor]:
    """The buffers of batch norms, which change in training but are not parameters.

    Args:
        moving: only of those in training mode.
    """
    return [
        buffer
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or not moving)
        for buffer in module.buffers(recurse=False)
    ]


def _name(epoch: int) -> str:
    return f"epoch-{epoch:05d}"


def _epoch_of(place: Path) -> int:
    return int(place.name.rpartition("-")[2])
