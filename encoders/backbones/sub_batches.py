"""Runs encoders over prepared inputs, in sub-batches of similar size.

On a CPU sub-batches run in parallel, one core each. Those of all modalities and of all calls in
progress share one pool, so that a core that has none left of one call takes the next one's.

Shapes: B samples, T tokens, F features.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache

import torch

from ..timings import SubBatch, watchers
from .base import Array, Encoder, Features, uploaded

ACCELERATOR_FACTOR = 16
"""Factor of the sub-batch budget on a device that is not a CPU."""


def plan(sizes: Sequence[int], budget: int, *, packed: bool = False) -> list[list[int]]:
    """Positions grouped into sub-batches of similar size, so that there is little padding.

    Positions are sorted by size; a group is closed before (members x longest), or the sum of a
    packed one's sizes, passes `budget`. A single one larger than the budget is a group by itself.
    After the token budget of text-embeddings-inference's queue.
    """
    groups: list[list[int]] = []
    used = 0
    for position in sorted(range(len(sizes)), key=lambda p: (sizes[p], p)):
        size = max(1, sizes[position])
        used = used + size if packed else (len(groups[-1]) + 1) * size if groups else size
        if groups and used <= budget:
            groups[-1].append(position)
        else:
            groups.append([position])
            used = size
    return groups


def encode_all(
    encoder: Encoder, inputs: Sequence[Array], device: torch.device, *, tokens: bool = False
) -> Features:
    """Features of prepared inputs of one encoder; see `encode_each`."""
    (features,) = encode_each([(encoder, inputs)], device, tokens=tokens)
    return features


def encode_each(
    jobs: Sequence[tuple[Encoder, Sequence[Array]]], device: torch.device, *, tokens: bool = False
) -> list[Features]:
    """Features of each encoder's prepared inputs, in their order. No gradient. Thread-safe.

    The largest sub-batch of an encoder comes first, so that a batch that does not fit in memory
    fails at once.

    Args:
        tokens: also give the tokens, padded to the longest, and their mask.
    """
    on_cpu = device.type == "cpu"
    pool = _cores(os.getpid())
    with pool.call() as alone:
        plans = [_groups(encoder, inputs, on_cpu, alone) for encoder, inputs in jobs]

        def run(encoder: Encoder, inputs: list[Array]) -> Features:
            began = time.monotonic()
            with torch.inference_mode(), one_thread(on_cpu):
                batch = encoder.collate(inputs)
                features: Features = encoder(*(uploaded(tensor, device) for tensor in batch))
                features = Features(
                    pooled_BF=features.pooled_BF.float(),
                    tokens_BTF=features.tokens_BTF if tokens else None,
                    mask_BT=features.mask_BT if tokens else None,
                )
            if watchers:
                _tell(encoder, inputs, began, on_cpu)
            return features

        work = [
            (encoder, [inputs[position] for position in group])
            for (encoder, inputs), groups in zip(jobs, plans, strict=True)
            for group in groups
        ]
        if on_cpu and len(work) > 1:
            parts = iter(_results([pool.threads.submit(run, *one) for one in work]))
        else:
            parts = (run(*one) for one in work)
        return [
            _gathered(encoder, groups, [next(parts) for _ in groups], device)
            for (encoder, _), groups in zip(jobs, plans, strict=True)
        ]


def _tell(encoder: Encoder, inputs: Sequence[Array], began: float, on_cpu: bool) -> None:
    sizes = [max(1, encoder.size(value)) for value in inputs]
    size = sum(sizes)
    computed = size if encoder.packed and on_cpu else len(sizes) * max(sizes)
    ended = time.monotonic()
    for watcher in watchers:
        watcher(SubBatch(encoder.modality, len(sizes), size, computed, began, ended, on_cpu))


def _groups(
    encoder: Encoder, inputs: Sequence[Array], on_cpu: bool, alone: bool
) -> list[list[int]]:
    budget = encoder.budget * (1 if on_cpu else ACCELERATOR_FACTOR)
    sizes = [max(1, encoder.size(value)) for value in inputs]
    total, longest = sum(sizes), max(sizes, default=0)
    if on_cpu and len(inputs) > 1 and (alone or total > budget):
        # As many for each core: a core that had one more would leave the others without work.
        rounds = math.ceil(total / (cores() * budget))
        budget = min(budget, max(longest, math.ceil(total / (rounds * cores()) + longest / 2)))
    return plan(sizes, budget, packed=encoder.packed and on_cpu)[::-1]


def _results(futures: Sequence[Future[Features]]) -> list[Features]:
    """All results; if one call raises, those that have not begun are cancelled."""
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        future.cancel()
    wait(futures)  # a failed batch must not use the cores beside the next one
    raised = (future.exception() for future in futures if not future.cancelled())
    if (error := next((error for error in raised if error is not None), None)) is not None:
        raise error
    return [future.result() for future in futures]


def _gathered(
    encoder: Encoder, groups: list[list[int]], parts: list[Features], device: torch.device
) -> Features:
    """The features of sub-batches, in the order of the inputs."""
    count = sum(len(group) for group in groups)
    pooled_BF = torch.empty(count, encoder.width, device=device)
    longest = max((part.length for part in parts), default=0)
    tokens_BTF = torch.zeros(count, longest, encoder.token_width, device=device)
    mask_BT = torch.zeros(count, longest, dtype=torch.bool, device=device)
    for group, part in zip(groups, parts, strict=True):
        rows = uploaded(torch.tensor(group), device)
        pooled_BF[rows] = part.pooled_BF
        if part.tokens_BTF is not None:
            tokens_BTF[rows, : part.length] = part.tokens_BTF.float()
            mask_BT[rows, : part.length] = True if part.mask_BT is None else part.mask_BT
    if longest == 0:
        return Features(pooled_BF=pooled_BF)
    return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF, mask_BT=mask_BT)


@contextmanager
def one_thread(enabled: bool = True) -> Iterator[None]:
    """Inside, this thread's torch operations use one core.

    torch splits every small operation over all cores and spins until the slowest is done. On a busy
    machine that is slower than one core: on 2 busy cores EfficientNet encodes 7 pictures a second
    on both, 15 on one, and 33 with one core for each sub-batch.
    """
    if not enabled:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0))


class _Cores:
    """The thread pool of this process, and how many calls use it."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(cores(), "encode")
        self._lock = threading.Lock()
        self._calls = 0

    @contextmanager
    def call(self) -> Iterator[bool]:
        """Yields whether no other call is in progress."""
        with self._lock:
            self._calls += 1
            alone = self._calls == 1
        try:
            yield alone
        finally:
            with self._lock:
                self._calls -= 1


def _cores(pid: int) -> _Cores:
    """A forked child has none of its parent's threads."""
    with _cores_lock:  # a cache does not serialise first calls
        return _cores_of(pid)


_cores_of = lru_cache(maxsize=1)(lambda pid: _Cores())
_cores_lock = threading.Lock()
