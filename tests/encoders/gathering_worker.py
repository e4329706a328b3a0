"""One of the processes of test_gathering.py: `python -m tests.encoders.gathering_worker RANK FOLDER`.

It works through CASES and leaves what it found in FOLDER/RANK.pt.
"""

from __future__ import annotations

import math
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from encoders.losses import info_nce, positives, sigmoid_loss
from encoders.training.caching import cached_step
from encoders.training.gathering import (
    average_gradients,
    gather_rows,
    gathered_info_nce,
    gathered_sigmoid_loss,
    shares,
)

WORLD = 2
SAME_LABEL = 0.3
CASES = {"as many": (3, 3), "fewer": (4, 2), "none here": (5, 0), "one row": (1, 0)}
"""How many rows each process has."""

GROUP_B = torch.tensor([0, 1, 0, 2, 3, 1])
LABEL_B = torch.tensor([0, 0, 0, 1, 1, -1])


class Pair(nn.Module):
    """Two tiny encoders and what the two losses learn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.elsewhere = nn.Parameter(torch.tensor([1.0, 2.0]))  # used on one process only
        self.unused = nn.Parameter(torch.tensor(1.0))

    def features(self, input_BF: Tensor) -> dict[str, Tensor]:
        return {
            "left": F.normalize(self.left(input_BF), dim=1),
            "right": F.normalize(self.right(input_BF.flip(1)), dim=1),
        }

    def gradients(self) -> dict[str, Tensor]:
        found = {n: p.grad for n, p in self.named_parameters() if p.grad is not None}
        self.zero_grad(set_to_none=True)
        return found


def inputs(rows: int) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def alone(rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The plain reference: both losses and their gradients, all rows in one process."""
    net = Pair()
    found = net.features(inputs(rows))
    target_BB = positives(GROUP_B[:rows], LABEL_B[:rows], SAME_LABEL)
    first = info_nce(found["left"], found["right"], net.log_scale, target_BB)
    second = sigmoid_loss(found["left"], found["right"], net.log_scale, net.bias, target_BB)
    (first + second + (net.elsewhere**2).sum()).backward()
    return first.detach(), second.detach(), net.gradients()


def together(counts: tuple[int, ...], rank: int) -> dict[str, Any]:
    """The same by several processes; `cached`: by chunks as well."""
    net = Pair()
    start = sum(counts[:rank])
    own = slice(start, start + counts[rank])
    input_RF = inputs(sum(counts))[own]
    group_R, label_R = GROUP_B[own], LABEL_B[own]
    parts: list[Tensor] = []

    def loss_of(found: dict[str, Tensor]) -> Tensor:
        left, right = found["left"], found["right"]
        first = gathered_info_nce(left, right, net.log_scale, group_R, label_R, SAME_LABEL)
        second = gathered_sigmoid_loss(
            left, right, net.log_scale, net.bias, group_R, label_R, SAME_LABEL
        )
        parts[:] = [first.detach(), second.detach()]
        total = first + second
        if rank == 0:
            total = total + WORLD * (net.elsewhere**2).sum()
        return total

    loss_of(net.features(input_RF)).backward()
    average_gradients(net.parameters())
    plain = net.gradients()
    cached_step(net.features, list(input_RF.split(2)) or [input_RF], loss_of)
    average_gradients(net.parameters())
    return {"losses": parts, "gradients": plain, "cached": net.gradients()}


def gathers(rank: int) -> dict[str, Any]:
    """Rows of several types and shapes: rank r has r + 1 of them, all r."""
    rows = rank + 1
    layout = shares(rows, torch.device("cpu"))
    with torch.no_grad():
        without = gather_rows(torch.zeros(rows, 2))
    frozen = gather_rows(torch.full((rows, 2), float(rank), dtype=torch.bfloat16))
    frozen.float().square().sum().backward()
    return {
        "offset": layout.offset,
        "own": gather_rows(torch.arange(rows), layout)[layout.own],
        "int": gather_rows(torch.full((rows,), rank)),
        "bool": gather_rows(torch.full((rows, 1, 2), rank == 1)),
        "bfloat16": frozen.detach(),
        "graph": without.requires_grad,
    }


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meet'}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    found: dict[str, Any] = {name: together(counts, rank) for name, counts in CASES.items()}
    torch.save({**found, "gathers": gathers(rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
