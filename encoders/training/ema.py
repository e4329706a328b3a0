"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """shadow <- d shadow + (1 - d) weights after each step, d = min(decay, (1 + t) / (10 + t)).

    Polyak averaging with TensorFlow's warm-up of the decay (`tf.train.ExponentialMovingAverage`),
    so that the first steps do not dominate.

    Args:
        decay: 0 turns it off; `shadow` is then empty.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema must be in [0, 1), is {decay}")
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0
        self.shadow: list[Tensor] = [p.detach().clone() for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """After each step."""
        if not self.decay:
            return
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for shadow, parameter in zip(self.shadow, self.parameters, strict=True):
            shadow.lerp_(parameter.detach(), 1.0 - keep)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model's weights are the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def take(self) -> None:
        """The model's weights become the average."""
        for shadow, parameter in zip(self.shadow, self.parameters, strict=False):
            parameter.copy_(shadow)

    @torch.no_grad()
    def _exchange(self) -> None:
        for shadow, parameter in zip(self.shadow, self.parameters, strict=False):
            kept = parameter.detach().clone()
            parameter.copy_(shadow)
            shadow.copy_(kept)
