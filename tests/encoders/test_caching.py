"""Chunks encoded twice give the gradient of the whole batch, dropout included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from encoders.losses import info_nce, positives
from encoders.training.caching import cached_step

Step = Callable[["Two", list[Tensor], Callable[[dict[str, Tensor]], Tensor]], Tensor]


class Two(nn.Module):
    """Two encoders with dropout, and a temperature that only the loss uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 4))
        self.right = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 4))
        self.log_scale = nn.Parameter(torch.tensor(1.5))
        self.grad_modes: list[bool] = []

    def encode(self, chunk: Tensor) -> dict[str, Tensor]:
        """Rows whose first number is negative have no right side; a chunk of them has none."""
        self.grad_modes.append(torch.is_grad_enabled())
        has = chunk[:, 0] >= 0
        found = {"left": F.normalize(self.left(chunk), dim=1), "has": has}
        if bool(has.any()):
            found["right"] = F.normalize(self.right(chunk[has]), dim=1)
        return found

    def loss(self, found: dict[str, Tensor]) -> Tensor:
        left, right = found["left"][found["has"]], found["right"]
        rows = torch.arange(len(right))
        return info_nce(left, right, self.log_scale, positives(rows, rows, 0.0))


def plain_step(
    net: Two, chunks: list[Tensor], loss_of: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
    """All chunks with their graphs at once."""
    outputs = [net.encode(chunk) for chunk in chunks]
    names = {name for out in outputs for name in out}
    loss = loss_of({name: torch.cat([o[name] for o in outputs if name in o]) for name in names})
    loss.backward()
    return loss.detach()


def cached(
    net: Two, chunks: list[Tensor], loss_of: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
    return cached_step(net.encode, chunks, loss_of)


def after(step: Step, sizes: list[int]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss, all gradients, and the next random number."""
    net = Two()
    rows = torch.randn(sum(sizes), 6, generator=torch.Generator().manual_seed(3))
    rows[:, 0] = 1.0
    rows[: sizes[0], 0] = -1.0  # the first chunk has no right side
    torch.manual_seed(5)
    loss = step(net, list(rows.split(sizes)), net.loss)
    gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(net.parameters()))
    return loss, gradients, torch.rand(3)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5))
@settings(max_examples=15, deadline=None)
def test_gradients_equal_those_of_one_batch_with_dropout(sizes: list[int]) -> None:
    sizes = [*sizes, 2]  # at least two rows with both sides
    loss, gradients, drawn = after(cached, sizes)
    plain_loss, plain_gradients, plain_drawn = after(plain_step, sizes)
    assert torch.allclose(loss, plain_loss, atol=1e-6)
    assert not loss.requires_grad
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, plain_gradients[name], atol=1e-5), name
    assert torch.equal(drawn, plain_drawn)  # and randomness goes on as it would have


def test_only_one_chunk_has_a_graph_at_a_time() -> None:
    alive: list[int] = []
    graphs = 0

    def forget(_: Tensor) -> None:
        nonlocal graphs
        graphs -= 1

    weight = torch.ones(3, requires_grad=True)

    def encode(chunk: Tensor) -> dict[str, Tensor]:
        nonlocal graphs
        out = chunk * weight
        if out.requires_grad:
            graphs += 1
            out.register_hook(forget)
        alive.append(graphs)
        return {"out": out}

    cached_step(encode, list(torch.ones(6, 3).split(2)), lambda found: found["out"].sum())
    assert alive == [0, 0, 0, 1, 1, 1]
    assert weight.grad is not None
    assert weight.grad.tolist() == [6.0] * 3


def test_gradients_add_up_and_what_the_loss_leaves_out_gets_none() -> None:
    net = Two().eval()
    chunks = list(torch.ones(4, 6).split(2))
    for _ in range(2):
        cached_step(net.encode, chunks, lambda found: found["left"][:, 0].sum())
    assert net.right[0].weight.grad is None
    twice = net.left[0].weight.grad
    net.zero_grad()
    plain_step(net, chunks, lambda found: found["left"][:, 0].sum())
    once = net.left[0].weight.grad
    assert twice is not None
    assert once is not None
    assert torch.allclose(twice, 2 * once, atol=1e-6)


def test_a_loss_that_needs_no_features_is_not_encoded_again() -> None:
    net = Two()
    cached_step(net.encode, [torch.ones(2, 6)], lambda found: net.log_scale * len(found["has"]))
    assert net.grad_modes == [False]
    assert net.log_scale.grad is not None
    assert net.log_scale.grad.item() == 2.0


@pytest.mark.parametrize("inside", [False, True], ids=["around the step", "inside encode"])
def test_autocast_does_not_lose_gradients(inside: bool) -> None:
    """Weights that autocast cast without a graph must not be used again with one."""
    sizes = [1, 3, 4]

    def step(net: Two, chunks: list[Tensor], loss_of: Callable[..., Tensor]) -> Tensor:
        def encode(chunk: Tensor) -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                return net.encode(chunk)

        if inside:
            return cached_step(encode, chunks, loss_of)
        with torch.autocast("cpu", torch.bfloat16):
            return cached_step(net.encode, chunks, loss_of)

    def plain(net: Two, chunks: list[Tensor], loss_of: Callable[..., Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain_step(net, chunks, loss_of)

    loss, gradients, _ = after(step, sizes)
    plain_loss, plain_gradients, _ = after(plain, sizes)
    assert torch.allclose(loss, plain_loss, atol=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, plain_gradients[name], atol=5e-3, rtol=5e-2), name
