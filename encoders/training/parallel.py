"""Training in several processes, as `torchrun` starts them.

Each process encodes its share of a batch; the features are gathered, and every process computes
the loss of the *whole* batch from them. So negatives come from all processes, and the loss equals
that of a single process. Heads, projectors and fusion get the same gradient in every process; an
encoder's gradient is summed over the processes. After each epoch all take the first one's weights
and moments, which rounding may have moved apart.

One thing differs: batch norms see only their process's share, so that with batch norm the loss is
not exactly that of a single process. Running statistics are averaged over the processes after each
epoch. All processes use the first one's validation loss, so that they stop at the same epoch.

Shapes: n samples of a process's share, F width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import TrainingError


def world() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_device(asked: str | None) -> torch.device:
    """This process's device: the requested one; by default CUDA if available, else the CPU.

    Under `torchrun`, "cuda" is the GPU with this process's local rank.

    Raises:
        TrainingError: more processes than GPUs, or one GPU named for several.
    """
    chosen = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    rank, size = (int(os.environ.get(f"LOCAL_{name}", 0)) for name in ("RANK", "WORLD_SIZE"))
    if chosen.type != "cuda" or size == 0:
        return chosen
    if chosen.index is not None:
        if size > 1:
            raise TrainingError(f"device {asked!r} is one GPU for {size} processes: say 'cuda'")
        return chosen
    count = torch.cuda.device_count()  # 1 if each process sees only its own GPU, as rank 0
    if 0 < count <= rank:
        raise TrainingError(
            f"torchrun started {size} processes on this machine, and it has {count} GPU"
            f"{'' if count == 1 else 's'}: start one a GPU, or say device 'cpu'"
        )
    return torch.device("cuda", rank)


@contextmanager
def processes(device: torch.device, timeout: timedelta | None = None) -> Iterator[tuple[int, int]]:
    """Join the processes that `torchrun` started, if it did: gloo on CPUs, NCCL on GPUs.

    Args:
        timeout: of the collective operations; None: torch's default (minutes).
    """
    begin = "WORLD_SIZE" in os.environ and "RANK" in os.environ and not dist.is_initialized()
    if begin and device.type == "cuda":
        own = device if device.index is not None else None
        dist.init_process_group("nccl", timeout=timeout, device_id=own)
    elif begin:
        dist.init_process_group("gloo", timeout=timeout)
    try:
        yield world()
    finally:
        if begin:
            dist.destroy_process_group()


class _Gathered(torch.autograd.Function):
    """Rows of all processes, in rank order. Backward keeps this process's own rows: every
    process computes the same loss, so a sum would count it several times."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local_nF: Tensor) -> Tensor:
        parts = _gathered(local_nF)
        start = sum(map(len, parts[: dist.get_rank()]))
        ctx.bounds = (start, start + len(local_nF))  # type: ignore[attr-defined]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        start, end = ctx.bounds  # type: ignore[attr-defined]
        return grads[0][start:end]


def all_gather_rows(local_nF: Tensor) -> Tensor:
    """The rows of all processes, in rank order, with a gradient for this process's own.

    The number of rows may differ; their shape may not. Without a process group, `local_nF` itself.
    """
    if world()[1] == 1:
        return local_nF
    result: Tensor = _Gathered.apply(local_nF)
    return result


def all_reduce_max(length: int, device: torch.device) -> int:
    """The largest of all processes' numbers."""
    return length if world()[1] == 1 else max(_counts(length, device))


def all_reduce_min(value: int, device: torch.device) -> int:
    """The smallest of all processes' numbers."""
    return value if world()[1] == 1 else min(_counts(value, device))


def all_gather_bytes(mine: bytes, device: torch.device) -> list[bytes]:
    """Each process's bytes, in every process, in rank order."""
    if world()[1] == 1:
        return [mine]
    local_n = torch.zeros(0, dtype=torch.uint8)
    if mine:
        local_n = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    return [part.cpu().numpy().tobytes() for part in _gathered(local_n.to(device))]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up an encoder's gradients over the processes."""
    if world()[1] == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def average_buffers(buffers: Iterable[Tensor]) -> None:
    """Make each buffer of floats its mean over the processes, in place."""
    size = world()[1]
    for buffer in buffers if size > 1 else ():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(size)


def copy_first(tensors: Iterable[Tensor]) -> None:
    """Make each tensor that of the first process, in place.

    What every process computes from the same gradients is equal up to rounding only where sums have
    no fixed order (a GPU's), and differences would grow.
    """
    for tensor in tensors if world()[1] > 1 else ():
        dist.broadcast(tensor, 0)


def broadcast_first(value: float, device: torch.device) -> float:
    """The first process's number, in every process, so that all decide alike."""
    if world()[1] == 1:
        return value
    first = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(first, 0)
    return float(first)


def rank_slice(items: int, rank: int, size: int) -> slice:
    """The rows of `items` that this rank encodes: nearly equal parts, in order."""
    return slice(items * rank // size, items * (rank + 1) // size)


def _gathered(local_nF: Tensor) -> list[Tensor]:
    """The rows of each process, in rank order; padded on the way, since their numbers differ."""
    counts = _counts(len(local_nF), local_nF.device)
    padded = local_nF.new_zeros(max(counts), *local_nF.shape[1:])
    padded[: len(local_nF)] = local_nF
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


def _counts(count: int, device: torch.device) -> list[int]:
    mine = torch.tensor([count], device=device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, mine)
    return [int(one) for one in counts]
