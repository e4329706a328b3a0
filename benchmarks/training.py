"""A training step and InfoNCE, against the same written plainly.

    python -m benchmarks.training [--part step|contrast] [--batch 256] [--steps 40] [--rounds 7]
        [--json]

step      `fit` with the demo preset's configuration on features of frozen encoders, all samples
          having all modalities and one label, on one core as the trainer does it; against a loop
          that has the same modules, batches and optimiser, and the loss as one would write it where
          nothing is ever missing. Both losses of one batch, and their gradients, are compared
          before anything is timed.
contrast  InfoNCE with its targets, forward and backward, on one core; against open_clip's loss on
          one device (arXiv 2103.00020, figure 3, with a product for each direction), and against
          the same with one product, whose transpose is the other direction.

A ratio is the plain time divided by ours: above 1, ours is faster. Both take turns.

Shapes: B samples, M modalities, D the shared space, F features, C classes.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from braid.encoders.backbones.base import Features
from braid.encoders.backbones.sub_batches import one_thread
from braid.encoders.config import TrainConfig
from braid.encoders.model.net import Net
from braid.encoders.presets import preset
from braid.encoders.training.batches import Batch
from braid.encoders.training.data import Column, Dataset
from braid.encoders.training.fit import fit
from braid.encoders.training.losses import LOG_SCALE_MAX, LOG_SCALE_START, info_nce, positives
from braid.encoders.training.objective import Objective, subset, two_subsets
from braid.encoders.types import FUSED

from .common import arguments
from .throughput import demo_model
from .vectors import finish_here, timed

PARTS = ("step", "contrast")
DIM = 256
CLASSES = 16  # of the demo model's task
CONTRASTS = (256, 1024)  # batches of the InfoNCE part


def two_products(left_BD: Tensor, right_BD: Tensor, log_scale: Tensor) -> Tensor:
    """open_clip's loss on one device: a product and a cross-entropy for each direction."""
    scale = log_scale.exp()
    truth_B = torch.arange(len(left_BD))
    forth_BB = scale * left_BD @ right_BD.T
    back_BB = scale * right_BD @ left_BD.T
    return (F.cross_entropy(forth_BB, truth_B) + F.cross_entropy(back_BB, truth_B)) / 2


def one_product(left_BD: Tensor, right_BD: Tensor, log_scale: Tensor) -> Tensor:
    """The same, the second direction being the transpose of the first."""
    truth_B = torch.arange(len(left_BD))
    scores_BB = log_scale.exp() * left_BD @ right_BD.T
    return (F.cross_entropy(scores_BB, truth_B) + F.cross_entropy(scores_BB.T, truth_B)) / 2


def ours(left_BD: Tensor, right_BD: Tensor, log_scale: Tensor) -> Tensor:
    """As the objective calls it: targets from the samples' contents, none of which repeats."""
    group_B = torch.arange(len(left_BD))
    target_BB = positives(group_B, torch.full_like(group_B, -1), 0.0)
    return info_nce(left_BD, right_BD, log_scale, target_BB)


def contrast(batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each way, forward and backward, and ratios."""
    generator = torch.Generator().manual_seed(0)
    left_BD = F.normalize(torch.randn(batch, DIM, generator=generator), dim=1)
    right_BD = F.normalize(left_BD + torch.randn(batch, DIM, generator=generator), dim=1)
    leaves = [
        left_BD.requires_grad_(),
        right_BD.detach().requires_grad_(),
        torch.tensor(LOG_SCALE_START, requires_grad=True),
    ]

    def run(loss: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        value = loss(*leaves)
        return (value, *torch.autograd.grad(value, leaves))

    ways = {"InfoNCE": ours, "open_clip's": two_products, "one product": one_product}
    _check_equal(*(run(loss) for loss in ways.values()))
    ms = timed({name: lambda loss=loss: run(loss) for name, loss in ways.items()}, rounds)  # type: ignore[misc]
    return {f"{name}, ms": round(took, 3) for name, took in ms.items()} | {
        f"{name} / ours": round(ms[name] / ms["InfoNCE"], 3) for name in list(ways)[1:]
    }


def _check_equal(*runs: tuple[Tensor, ...]) -> None:
    for others in runs[1:]:
        for one, other in zip(runs[0], others, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def dataset(net: Net, config: TrainConfig, count: int) -> Dataset:
    """Samples with all modalities and a label; features are random, speed does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    label_N = torch.randint(CLASSES, (count,), generator=generator)
    everywhere_N = torch.arange(count)
    return Dataset(
        ids=[f"r{number}" for number in range(count)],
        split_N=np.array(["train"] * count),
        columns={
            name: Column(
                features_nF=torch.randn(count, net.encoder(name).width, generator=generator),
                inputs=[],
                row_N=everywhere_N,
            )
            for name in net.modalities
        },
        present_NM=torch.ones(count, len(net.modalities), dtype=torch.bool),
        group_N=everywhere_N,
        target=dict.fromkeys(net.tasks, label_N),
        tasks=net.tasks,
    )


class PlainLoss(nn.Module):
    """The joint loss of the demo preset where every sample has everything."""

    def __init__(self, net: Net, config: TrainConfig) -> None:
        super().__init__()
        self.config, self.modalities = config, net.modalities
        names = [*(f"{a}-{b}" for a, b in combinations(net.modalities, 2)), FUSED]
        self.log_scale = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(LOG_SCALE_START)) for name in names}
        )

    def forward(
        self,
        net: Net,
        features: Mapping[str, Tensor],
        label_B: Tensor,
        rng: np.random.Generator,
    ) -> Tensor:
        config = self.config
        units = {name: net.projectors[name](features[name]) for name in self.modalities}
        unit_BMD = torch.stack([*units.values()], dim=1)
        present_BM = torch.ones(unit_BMD.shape[:2], dtype=torch.bool)
        align = sum(
            config.pair_weight(a, b) * two_products(units[a], units[b], self.log_scale[f"{a}-{b}"])
            for a, b in combinations(self.modalities, 2)
        )
        left_BM, right_BM = two_subsets(present_BM, rng)
        match = two_products(
            net.fusion(unit_BMD, left_BM), net.fusion(unit_BMD, right_BM), self.log_scale[FUSED]
        )
        kept_BM = subset(present_BM, 1.0 - config.drop, rng)
        fused_BD = net.fusion(unit_BMD, kept_BM)
        (task,) = net.tasks
        own_BMC = torch.stack(
            [net.heads(task, name, units[name]) for name in self.modalities], dim=1
        )
        own = sum(F.cross_entropy(own_BC, label_B) for own_BC in own_BMC.unbind(1))
        only_BC = (own_BMC * kept_BM[:, :, None]).sum(1)  # read where it is one modality's
        alone_B1 = kept_BM.sum(1, keepdim=True) == 1
        fused_BC = torch.where(alone_B1, only_BC, net.heads(task, FUSED, fused_BD))
        fused = F.cross_entropy(fused_BC, label_B)
        loss = config.task * own + config.align * align
        return loss + config.fuse * (fused + config.match * match)


def plain_fit(net: Net, data: Dataset, config: TrainConfig) -> None:
    """The loop as one would write it: the same optimiser, schedule, and bound of the gradient."""
    objective = PlainLoss(net, config)
    net.requires_grad_(False)
    for part in (net.heads, net.projectors, net.fusion):
        part.requires_grad_(True)
    trained = [p for p in [*net.parameters(), *objective.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
    )
    steps = config.epochs * math.ceil(len(data.ids) / config.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    features = {name: column.features_nF for name, column in data.columns.items()}
    (label_N,) = data.target.values()
    rng = np.random.default_rng(0)
    net.train()
    for _ in range(config.epochs):
        for rows_B in torch.randperm(len(data.ids)).split(config.batch):
            optimizer.zero_grad(set_to_none=True)
            batch = {
                name: values[rows_B] for name, values in features.items() if values is not None
            }
            loss = objective(net, batch, label_N[rows_B], rng)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, config.clip)
            if not math.isfinite(loss.item()):
                raise FloatingPointError("the loss is not finite")
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for log_scale in objective.log_scale.values():
                    log_scale.clamp_(0.0, LOG_SCALE_MAX)


def check_same_loss(net: Net, data: Dataset, config: TrainConfig) -> None:
    """Both losses of one batch, and their gradients, must be equal; without dropout."""
    net.eval().requires_grad_(False)
    weights = [*net.projectors.parameters(), *net.fusion.parameters(), *net.heads.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    rows_B = torch.arange(config.batch)
    features = {
        name: cast(Tensor, column.features_nF)[rows_B] for name, column in data.columns.items()
    }
    batch = Batch(
        features={name: Features(pooled_BF=values) for name, values in features.items()},
        present_BM=data.present_NM[rows_B],
        group_B=data.group_N[rows_B],
        target={name: target[rows_B] for name, target in data.target.items()},
    )
    (label_B,) = batch.target.values()
    losses = (
        Objective(net.modalities, config)(net, batch, np.random.default_rng(1)).loss,
        PlainLoss(net, config)(net, features, label_B, np.random.default_rng(1)),
    )
    _check_equal(*((loss, *torch.autograd.grad(loss, weights)) for loss in losses))


def step(folder: Path, batch: int, steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a step of both, and the ratio."""
    config = replace(preset("demo"), batch=batch, epochs=1)
    net = demo_model(folder).net
    data = dataset(net, config, batch * steps)
    other = copy.deepcopy(net)
    with one_thread():
        check_same_loss(net, data, config)
        ms = timed(
            {
                "ours": lambda: fit(net, data, config, splits=("train",), seed=0),
                "plain": lambda: plain_fit(other, data, config),
            },
            rounds,
        )
    return {f"{name}, ms": round(took / steps, 3) for name, took in ms.items()} | {
        "plain / ours": round(ms["plain"] / ms["ours"], 3)
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, PARTS, seeds=False)
    parser.add_argument("--batch", type=int, default=256, help="samples of a training step")
    parser.add_argument("--steps", type=int, default=40, help="of one run")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(argv)
    rows: dict[str, Any] = {}
    if given.part != "contrast":
        with tempfile.TemporaryDirectory() as folder:
            rows["step"] = step(Path(folder) / "version", given.batch, given.steps, given.rounds)
    if given.part != "step":
        with one_thread():
            rows |= {f"InfoNCE, batch {size}": contrast(size, given.rounds) for size in CONTRASTS}
    return finish_here("training", given, rows)


if __name__ == "__main__":
    main()
