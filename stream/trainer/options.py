"""The options of a run, and the training configuration and the first weights that they ask for.

A configuration is that of a preset, or of the version that is trained further: what `--projections`
and `--lora` change of it, then what a file changes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from braid.encoders.config import ModelConfig, TrainConfig, from_dict
from braid.encoders.config_file import with_changes
from braid.encoders.further import own_config, trained_further, trains_heads_only, unlike
from braid.encoders.manifest import Manifest
from braid.encoders.presets import preset as preset_named

from ..errors import ConfigError, RegistryError
from ..registry.versions import Champion, Registry

log = logging.getLogger(__name__)

PRESET = "demo"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a run.

    Attributes:
        preset: None: that of the version that it starts from by `start`, `projections` or `lora`,
            else "demo".
        config_file: TOML, what it changes of that configuration (`braid.encoders.config_file`).
        start: the version to start from, a name or a number; None: the champion, where it fits.
        heads_only: keep the encoders, projections and fusion of the version that it starts from,
            and so its space.
        projections: learn projections behind its encoders, which stay as they are.
        lora: train low-rank adapters of this rank in its encoders.
        compatible: weight of the pull towards the champion's vectors; 0: none.
        from_scratch: do not start from the champion's weights, even where they fit.
        promote: make the version champion if it passed; None does so only while there is none.
        force: promote it even though it did not pass.
        fresh: do not continue an unfinished run.
        window: the run (or the version it made) whose window is used again, with its parent.
        reason: why it was started; kept in the run's file.
    """

    preset: str | None = None
    config_file: str | None = None
    start: str | None = None
    heads_only: bool = False
    projections: bool = False
    lora: int | None = None
    seed: int = 0
    compatible: float = 0.0
    from_scratch: bool = False
    promote: bool | None = None
    force: bool = False
    fresh: bool = False
    window: str | None = None
    reason: str = "asked for"

    @property
    def needs_version(self) -> str:
        """The option by which it cannot start without a version; empty: there is none."""
        if self.start is not None:
            return f"--from {self.start}"
        if self.heads_only:
            return "--heads-only"
        return self.trains_further

    @property
    def trains_further(self) -> str:
        """The option that trains a version's encoders or projections further; empty: none."""
        return "--projections" if self.projections else f"--lora {self.lora}" if self.lora else ""


def check_together(options: Options) -> None:
    """Check that no option excludes another.

    Raises:
        ConfigError: the message names both.
    """
    pairs = (
        (options.needs_version, "--from-scratch" if options.from_scratch else ""),
        (options.trains_further, "--heads-only" if options.heads_only else ""),
        (
            options.trains_further,
            f"--preset {options.preset}" if options.preset is not None else "",
        ),
    )
    for one, other in pairs:
        if one and other:
            raise ConfigError(f"{one} and {other} exclude each other")


def start_of(
    registry: Registry, options: Options, champion: Champion | None, repeated: str | None = None
) -> Manifest | None:
    """The version that the options train further; None: they ask for none.

    Args:
        repeated: the version that a run to repeat started from, in place of the champion.

    Raises:
        RegistryError: there is no such version, or no champion.
    """
    if not options.needs_version:
        return None
    if options.start is not None:
        return registry.manifest(registry.resolve(options.start))
    name = repeated or (champion.name if champion is not None else None)
    if name is None:
        what = "keeps the champion's space" if options.heads_only else "trains the champion further"
        raise RegistryError(f"{options.needs_version} {what}, but there is no champion")
    return registry.manifest(name)


def config_of(
    options: Options, start: Manifest | None = None, *, compatible: bool = True
) -> TrainConfig:
    """The training configuration that the options name.

    Args:
        start: the version that they train further (`start_of`).
        compatible: with the pull towards the champion, which there may not be.

    Raises:
        ConfigError: there is no such preset, the file does not fit it, or the version's weights do
            not fit the configuration. The message names the option, the field and the values.
    """
    theirs = None if start is None else from_dict(start.config)
    own = options.preset is None and (options.start is not None or bool(options.trains_further))
    option = f"--preset {options.preset}" if options.preset is not None else "--preset"
    try:
        if theirs is not None and own:
            option = options.trains_further
            config = own_config(theirs)
            config = trained_further(config, projections=options.projections, lora=options.lora)
        else:
            config = preset_named(PRESET if options.preset is None else options.preset)
        if theirs is not None and options.heads_only:
            config = replace(config, model=_with_heads_of(theirs.model, config.model))
        if options.config_file is not None:
            option = "--config"  # the error names the file
            config = with_changes(config, Path(options.config_file))
            option += f" {options.config_file}"
    except ValueError as error:
        where = f" {start.name}:" if start is not None and option == options.trains_further else ""
        raise ConfigError(f"{option}:{where} {error}") from None
    if start is not None and theirs is not None:
        _check_fits(options, option, start.name, theirs.model, config.model)
    if compatible and options.compatible > 0:
        return replace(config, compatible=options.compatible)
    return config


def parent_of(registry: Registry, champion: Champion | None, options: Options) -> str | None:
    """The version that a run without one of its own starts from: the champion, where it fits."""
    if champion is None or options.from_scratch:
        return None
    theirs = from_dict(registry.manifest(champion.name).config)
    why = unlike(theirs.model, config_of(options).model)
    if why is None:
        return champion.name
    log.warning("%s has another model configuration: starting from scratch: %s", champion.name, why)
    return None


def _with_heads_of(theirs: ModelConfig, ours: ModelConfig) -> ModelConfig:
    return replace(theirs, decision=ours.decision, head_dropout=ours.head_dropout)


def _check_fits(
    options: Options, option: str, name: str, theirs: ModelConfig, ours: ModelConfig
) -> None:
    if options.heads_only:
        changed = [
            f"model.{field} is {getattr(ours, field)!r}, there it is {getattr(theirs, field)!r}"
            for field in ModelConfig.__slots__
            if getattr(ours, field) != getattr(_with_heads_of(theirs, ours), field)
        ]
        if changed:
            raise ConfigError(f"{option}: --heads-only keeps the model of {name}: {changed[0]}")
        return
    if why := unlike(theirs, ours):
        raise ConfigError(f"{option}: {name} has another model configuration: {why}")
    if trains_heads_only(ours):
        raise ConfigError(
            f"{options.needs_version}: nothing of {name} is trained but its heads: its encoders "
            "are frozen and have no projections: add --heads-only, --projections or --lora RANK"
        )
