"""Helpers shared by the commands: JSON options, the progress bar, the version check."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from braid.encoders.errors import EncodersError

from ..errors import ConfigError, RegistryError
from ..registry.versions import Registry
from ..settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON.")]


def service_url(settings: Settings) -> str:
    return f"http://{settings.http.host}:{settings.http.port}"


def json_option(name: str, text: str | None) -> dict[str, Any] | None:
    """The value of an option that takes JSON. Raises ConfigError."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name}: is not JSON ({error}): {text!r}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: must be a JSON object, got {text!r}")
    return value


def proven(registry: Registry, name: str, settings: Settings) -> None:
    """Check that a version loads and reproduces its golden batch. Raises RegistryError."""
    from ..trainer.job import prove

    try:
        prove(registry.path(name), settings.model.device)
    except EncodersError as error:
        raise RegistryError(f"{name} cannot serve: {error}") from error


@contextmanager
def bar(title: str, quiet: bool) -> Iterator[Callable[[str, int, int, Mapping[str, float]], None]]:
    """A progress bar on stderr, updated with (stage, done, total, figures)."""
    from tqdm import tqdm

    shown: dict[str, Any] = {}

    def update(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if stage not in shown:
            for other in shown.values():
                other.close()
            shown[stage] = tqdm(
                total=total, desc=stage or title, disable=quiet, leave=True, file=sys.stderr
            )
        line = shown[stage]
        line.update(done - line.n)
        if figures:
            line.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})

    try:
        yield update
    finally:
        for line in shown.values():
            line.close()
