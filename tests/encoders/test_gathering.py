"""Two processes give the loss and the gradients of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.losses import info_nce, positives, sigmoid_loss
from encoders.training.gathering import (
    Shares,
    average_gradients,
    gather_rows,
    gathered_info_nce,
    gathered_sigmoid_loss,
    shares,
)
from tests.encoders.gathering_worker import (
    CASES,
    GROUP_B,
    LABEL_B,
    SAME_LABEL,
    WORLD,
    Pair,
    alone,
    inputs,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes found. They are gone when this returns, whatever happens."""
    folder = tmp_path_factory.mktemp("gathering")
    command = [sys.executable, "-m", "tests.encoders.gathering_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [worker.communicate(timeout=90)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert [worker.returncode for worker in workers] == [0] * WORLD, "\n".join(said)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_processes_is_the_loss_of_one(name: str, found: list[dict[str, Any]]) -> None:
    first, second, _ = alone(sum(CASES[name]))
    means = torch.tensor([one[name]["losses"] for one in found]).mean(0)
    assert torch.allclose(means, torch.stack([first, second]), atol=1e-5)


@pytest.mark.parametrize("way", ["gradients", "cached"])
@pytest.mark.parametrize("name", CASES)
def test_averaged_gradients_are_those_of_one(
    name: str, way: str, found: list[dict[str, Any]]
) -> None:
    _, _, wanted = alone(sum(CASES[name]))
    for one in found:
        gradients = one[name][way]
        assert set(gradients) == set(wanted)  # and so none for what nobody used
        for parameter, gradient in gradients.items():
            assert torch.allclose(gradient, wanted[parameter], atol=1e-5), parameter


def test_rows_of_any_type_are_gathered_in_order_of_rank(found: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(found):
        gathered = one["gathers"]
        assert gathered["offset"] == rank
        assert gathered["own"].tolist() == list(range(rank + 1))
        assert gathered["int"].tolist() == [0, 1, 1]
        assert gathered["int"].dtype == torch.int64
        assert gathered["bool"].tolist() == [[[False] * 2], [[True] * 2], [[True] * 2]]
        assert gathered["bfloat16"].tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
        assert gathered["bfloat16"].dtype == torch.bfloat16
        assert gathered["graph"] is False


def test_one_process_needs_no_others() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    assert shares(3, torch.device("cpu")) == Shares((3,))
    net = Pair()
    both = net.features(inputs(6))
    left, right = both["left"], both["right"]
    target = positives(GROUP_B, LABEL_B, SAME_LABEL)
    first = gathered_info_nce(left, right, net.log_scale, GROUP_B, LABEL_B, SAME_LABEL)
    assert torch.equal(first, info_nce(left, right, net.log_scale, target))
    second = gathered_sigmoid_loss(
        left, right, net.log_scale, net.bias, GROUP_B, LABEL_B, SAME_LABEL
    )
    assert torch.equal(second, sigmoid_loss(left, right, net.log_scale, net.bias, target))
    first.backward()
    before = net.log_scale.grad
    average_gradients(net.parameters())
    assert net.log_scale.grad is before


def test_where_the_rows_of_a_process_are() -> None:
    layout = Shares((4, 0, 3), rank=2)
    assert (layout.world, layout.total, layout.offset, layout.own) == (3, 7, 4, slice(4, 7))
