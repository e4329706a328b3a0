"""Low-rank adapters (LoRA) of encoders while they are trained, by the package `peft`.

Hu et al. 2021, arXiv 2106.09685. The product of the matrices is 0 at the start; `merge` adds it to
the weights, so that a version does not depend on `peft`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..backbones.base import Encoder
from ..config import ModelConfig
from ..errors import TrainingError
from ..model.net import Net


def add(net: Net, config: ModelConfig) -> None:
    """Put adapters into the encoders that `config` has some for.

    Raises:
        TrainingError: `peft` is missing, or a target is no linear map in the encoder's blocks.
    """
    for name in net.modalities:
        lora = config.encoders[name].lora
        if lora is None:
            continue
        peft = _peft()
        for block, targets in _targets(net.encoder(name), name, lora.targets):
            made = peft.LoraConfig(
                r=lora.rank,
                lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
                target_modules=targets,
            )
            peft.inject_adapter_in_model(made, block)


def matrices(encoder: Encoder) -> Iterator[nn.Parameter]:
    """The weights of an encoder's adapters."""
    for _, layer in _layers(encoder):
        yield from layer.lora_A.parameters()
        yield from layer.lora_B.parameters()


def merge(net: Net, config: ModelConfig) -> None:
    """Add the adapters to the weights that they adapt, and take them out."""
    for modality in net.modalities:
        if config.encoders[modality].lora is None:
            continue
        encoder = net.encoder(modality)
        for name, layer in list(_layers(encoder)):
            layer.merge()
            encoder.set_submodule(name, layer.get_base_layer())


def _targets(
    encoder: Encoder, modality: str, wanted: tuple[str, ...]
) -> list[tuple[nn.Module, list[str]]]:
    """The blocks of the encoder, each with the names in it of the linear maps to adapt."""
    blocks = [
        # a subclass of Linear may be one whose weight is read, not called
        (block, [name for name, part in block.named_modules() if name and type(part) is nn.Linear])
        for block in encoder.trainable_blocks()
    ]
    known = {_last(name) for _, names in blocks for name in names}
    if unknown := [repr(target) for target in wanted if target not in known]:
        has = ", ".join(sorted(known)) or "none"
        raise TrainingError(
            f"model.encoders.{modality}.lora.targets: {', '.join(unknown)}: no such linear map in "
            f"its blocks, there are {has}"
        )
    if not known:
        raise TrainingError(f"model.encoders.{modality}.lora: its blocks have no linear map")
    kept = [
        (block, [name for name in names if not wanted or _last(name) in wanted])
        for block, names in blocks
    ]
    return [(block, names) for block, names in kept if names]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _layers(encoder: Encoder) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, part in encoder.named_modules():
        if isinstance(part, LoraLayer):
            yield name, part


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise TrainingError(
            "lora needs the package peft: pip install 'braid-stream[lora]'"
        ) from None
    return peft
