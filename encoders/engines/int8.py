"""Linear layers in int8 on a CPU: weights rounded once, inputs at each call.

Shapes: N rows, F features in, G features out.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

LEVELS = 127
ZERO = 128  # of inputs, which oneDNN takes unsigned: with signed ones it falls back to plain loops
TINY = torch.finfo(torch.float32).tiny


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale for each output and for each row of inputs.

    So a row's result does not depend on the other rows of its batch.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_GF = linear.weight.detach().float()
        self._scale_G = (weight_GF.abs().amax(1) / LEVELS).clamp(min=TINY)
        rounded_GF = (weight_GF / self._scale_G[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded_GF, None)
        self._zero_G = torch.zeros(len(weight_GF), dtype=torch.int32)
        self._bias = linear.bias
        # Without VNNI two products are added in 16 bits, which 8 bits of input overflow.
        self._levels = LEVELS if torch.cpu._is_vnni_supported() else LEVELS // 2

    def forward(self, x: Tensor) -> Tensor:
        """float[..., F] -> float[..., G]"""
        x_NF = x.float().flatten(0, -2)
        # Not `abs`, which would write all of it once more.
        most_N1 = torch.maximum(x_NF.amax(1, keepdim=True), -x_NF.amin(1, keepdim=True))
        scale_N1 = most_N1.div_(self._levels).clamp_(min=TINY)
        rounded_NF = (x_NF / scale_N1).round_().add_(ZERO).to(torch.uint8)
        product_NG: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rounded_NF, 1.0, ZERO, self._packed, self._scale_G, self._zero_G),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        product_NG = product_NG.mul_(scale_N1)
        if self._bias is not None:
            product_NG += self._bias
        return product_NG.view(*x.shape[:-1], -1)


def has_linear(module: nn.Module) -> bool:
    """Whether `with_int8` changes anything."""
    return any(type(part) is nn.Linear for part in module.modules())


def with_int8(module: nn.Module) -> nn.Module:
    """A copy with `Int8Linear` for each linear layer; it shares all other weights."""
    if type(module) is nn.Linear:
        return Int8Linear(module)
    clone = copy.copy(module)
    clone._modules = {
        name: None if part is None else with_int8(part) for name, part in module._modules.items()
    }
    return clone
