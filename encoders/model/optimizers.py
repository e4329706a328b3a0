"""Optimizers of torch without TorchDynamo.

A method of `torch.optim` imports TorchDynamo at its first call, to leave itself out of compiled
graphs: 900 modules, which take as long as torch. Nothing that trains here is compiled.
"""

from __future__ import annotations

import inspect
from typing import TypeVar, cast

import torch

Opt = TypeVar("Opt", bound=torch.optim.Optimizer)

METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def eager(optimizer: type[Opt]) -> type[Opt]:
    """A subclass with the methods as they are below torch's decorators."""
    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in METHODS}
    plain["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return cast(type[Opt], type(optimizer.__name__, (optimizer,), plain))


AdamW = eager(torch.optim.AdamW)
