"""`spread` gives what indexing by a mask gives, backward too; the cores of a forked child."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from braid.encoders.backbones.base import spread


def by_mask(rows_N: Tensor, here_B: Tensor) -> Tensor:
    out = rows_N.new_zeros(len(here_B), *rows_N.shape[1:])
    out[here_B] = rows_N
    return out


@pytest.mark.parametrize("here", [[1, 0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 1], [0, 1], [0, 0, 0], []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (4, 3)])
def test_rows_go_to_those_that_have_one(
    here: list[int], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    here_B = torch.tensor(here, dtype=torch.bool)
    rows_N = (torch.randn(sum(here), *shape) + 0.1).to(dtype)
    result, wanted = spread(rows_N, here_B), by_mask(rows_N, here_B)
    assert result.dtype == dtype
    assert torch.equal(result, wanted)


def test_the_gradient_is_that_of_the_mask_and_a_nan_stays_in_its_row() -> None:
    here_B = torch.tensor([False, True, True, False, True])
    weight_BF = torch.randn(5, 3)
    grads = []
    for way in (spread, by_mask):
        rows_NF = torch.arange(9.0).reshape(3, 3).requires_grad_()
        (way(rows_NF, here_B) * weight_BF).sum().backward()
        grads.append(rows_NF.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert torch.equal(grads[0], grads[1])
    broken_NF = torch.tensor([[1.0], [float("nan")], [2.0]])
    assert spread(broken_NF, here_B).isnan()[:, 0].tolist() == [False, False, True, False, False]


FORK = """
import os

from braid.encoders.backbones.sub_batches import _cores

assert list(_cores(os.getpid()).threads.map(abs, [-1, -2])) == [1, 2]
pid = os.fork()
if pid == 0:
    os._exit(0 if list(_cores(os.getpid()).threads.map(abs, [-3], timeout=20)) == [3] else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_child_encodes_after_its_parent_did() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    # In a process of its own: a fork of this one would keep pytest-xdist's pipe open if it hung.
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
