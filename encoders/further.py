"""Configurations of training a version further: what is trained of it, and which weights it keeps.

theirs = from_dict(manifest.config)
config = trained_further(own_config(theirs), projections=True)
unlike(theirs.model, config.model)  # None: its weights are the start
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from .config import ModelConfig, TrainConfig
from .lora import Lora

NEW = ("decision", "dropout", "head_dropout", "heads_on", "tasks")
"""Fields of a `ModelConfig` that no weight depends on, except those of heads, which are new in each
training."""
WEIGHTS = ("kind", "source", "options")
"""Fields of an `EncoderConfig` that its weights depend on."""
LORA_LR = 2e-4


def own_config(theirs: TrainConfig) -> TrainConfig:
    """The configuration of a version, to train it further; for an imported one with values for
    pretrained weights, in place of those for random ones."""
    if not theirs.model.origin or theirs != TrainConfig(model=theirs.model):
        return theirs
    return replace(theirs, epochs=20, encoder_batch=theirs.batch, encoder_lr=3e-5, start="identity")


def trained_further(
    config: TrainConfig, *, projections: bool = False, lora: int | None = None
) -> TrainConfig:
    """The configuration with learnt projections behind the encoders, or low-rank adapters of this
    rank in all of them, or both. Encoders that were trained before are frozen.

    Raises:
        ValueError: it has projections already, or a rank below 1.
    """
    model = config.model
    more: dict[str, Any] = {}
    if projections or lora is not None:
        adapter = None if lora is None else Lora(rank=lora)
        encoders = {
            name: replace(
                encoder,
                frozen=True,
                train_last=None,
                lora=adapter if encoder.shares is None else None,  # its owner has the weights
            )
            for name, encoder in model.encoders.items()
        }
        model = replace(model, encoders=encoders)
    if projections:
        if model.projection == "learnt":
            raise ValueError("model.projection is 'learnt' already: they are trained without it")
        model = replace(model, projection="learnt")
        more |= {"start": "identity"}
    if lora is not None:
        more |= {"encoder_lr": LORA_LR}
    return replace(config, model=model, **more)


def unlike(theirs: ModelConfig, ours: ModelConfig) -> str | None:
    """The first field by which the weights of a version do not fit a configuration, with both
    values; None: they fit.

    A model without projections fits one with linear projections of any width, which start at the
    identity; and mean fusion, which has no weights, any other, which starts as the mean.
    """
    for name, old, new in _differences(theirs, ours):
        return f"{name} is {new!r}, there it is {old!r}"
    return None


def _differences(theirs: ModelConfig, ours: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    free = {*NEW, "encoders"}
    if projected(theirs, ours):
        free |= {"projection", "dim"}
    if theirs.fusion == "mean":
        free.add("fusion")
    for modality in dict.fromkeys([*theirs.encoders, *ours.encoders]):
        old, new = theirs.encoders.get(modality), ours.encoders.get(modality)
        if old is None or new is None:
            yield f"model.encoders.{modality}", old and old.kind, new and new.kind
            continue
        for name in WEIGHTS:
            if getattr(old, name) != getattr(new, name):
                where = f"model.encoders.{modality}.{name}"
                yield where, getattr(old, name), getattr(new, name)
    for name in (field.name for field in fields(ModelConfig)):
        if name not in free and getattr(theirs, name) != getattr(ours, name):
            yield f"model.{name}", getattr(theirs, name), getattr(ours, name)


def projected(theirs: ModelConfig, ours: ModelConfig) -> bool:
    """Whether `ours` puts linear projections behind the encoders of `theirs`, which has none."""
    return (theirs.projection, ours.projection, ours.hidden) == ("none", "learnt", 0)


def trains_heads_only(model: ModelConfig) -> bool:
    """Whether nothing but heads has weights to train: no projections, bridge, fusion, encoder."""
    fixed = all(encoder.fixed for encoder in model.encoders.values())
    return fixed and model.projection == "none" and not model.bridged and model.fusion == "mean"


def merged(config: TrainConfig) -> TrainConfig:
    """The configuration of a version whose low-rank adapters are part of its weights."""
    encoders = {
        name: encoder if encoder.lora is None else replace(encoder, frozen=True, lora=None)
        for name, encoder in config.model.encoders.items()
    }
    return replace(config, model=replace(config.model, encoders=encoders))
