"""The optimizers take the steps of torch's own, and keep the same state."""

from __future__ import annotations

import torch
from torch import Tensor

from braid.encoders.model.optimizers import AdamW


def stepped(kind: type[torch.optim.Optimizer], count: int) -> tuple[Tensor, torch.optim.Optimizer]:
    """A weight after some steps, and the optimizer."""
    weight = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 12).reshape(3, 4))
    optimizer = kind([{"params": [weight], "lr": 0.1}])  # type: ignore[call-arg]

    def loss() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = (weight.square().sum() - 1.0).square() + weight.sum().sin()
        total.backward()
        return float(total.detach())

    for _ in range(count):
        optimizer.step(loss)
    return weight.detach(), optimizer


def test_steps_and_state_are_those_of_torch() -> None:
    (weight, optimizer), (wanted, other) = stepped(AdamW, 5), stepped(torch.optim.AdamW, 5)
    assert torch.equal(weight, wanted)
    assert repr(optimizer.state_dict()) == repr(other.state_dict())
    again, fresh = stepped(AdamW, 0)
    fresh.load_state_dict(other.state_dict())
    assert repr(fresh.state_dict()) == repr(other.state_dict())
    assert not torch.equal(again, weight)
