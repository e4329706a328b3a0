"""Whatever an encoder raises on one sample is a BadInput, beside MemoryError."""

from __future__ import annotations

from typing import Any

import pytest

from braid.encoders import BadInput, Model, Sample
from braid.encoders.model.net import Net, prepare
from braid.encoders.training.data import _prepare
from tests.encoders.material import png


def failing(model: Model, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Net:
    """The model's net with an image encoder that raises `error`."""
    net: Net = model.net  # type: ignore[attr-defined]

    def raises(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(net.encoder("image"), "prepare", raises)
    return net


@pytest.mark.parametrize("error", [SyntaxError("broken PNG file"), IndexError(), RecursionError()])
def test_an_unforeseen_error_is_a_bad_input_of_its_modality(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    net = failing(model, monkeypatch, error)
    with pytest.raises(BadInput) as caught:
        prepare(net, Sample(id="x", image=png()), net.config.limits, "p")
    assert caught.value.field == "image"
    assert type(error).__name__ in caught.value.reason
    assert caught.value.__cause__ is error
    assert _prepare(net, Sample(id="x", image=png()), "train") is None  # the trainer leaves it out


def test_out_of_memory_is_not_the_fault_of_a_sample(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = failing(model, monkeypatch, MemoryError())
    with pytest.raises(MemoryError):
        prepare(net, Sample(id="x", image=png()), net.config.limits, "p")
