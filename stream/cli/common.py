"""Helpers shared by the commands: JSON options, the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from braid.encoders.engines.packages import require
from braid.encoders.errors import EngineError

from ..errors import ConfigError
from ..settings import Settings
from ..strict_json import strict_json

AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON.")]


def service_url(settings: Settings) -> str:
    return f"http://{settings.http.host}:{settings.http.port}"


def check_model(settings: Settings) -> None:
    """Raise ConfigError for a wrong name or a package that is not installed, which would end a
    process after it waited for Kafka."""
    try:
        require(settings.model.engine)
    except EngineError as error:
        raise ConfigError(f"model.engine: {error}") from None
    model = settings.model.spec
    if model is not None and not model.startswith("null:") and not Path(model).is_dir():
        raise ConfigError(f"model: no folder at {model[:200]!r}")


def json_option(name: str, text: str | None) -> dict[str, Any] | None:
    """The value of an option that takes JSON. Raises ConfigError."""
    if text is None:
        return None
    try:
        value = strict_json(text)
    except ValueError as error:
        raise ConfigError(f"{name}: is not JSON ({error}): {text!r}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: must be a JSON object, got {text!r}")
    return value


@contextmanager
def bar(
    title: str, quiet: bool, *, unit: str = "it"
) -> Iterator[Callable[[str, int, int, Mapping[str, float]], None]]:
    """A progress bar on stderr, updated with (stage, done, total or 0, figures).

    Args:
        unit: of what is done; B: bytes.
    """
    from tqdm import tqdm

    shown: dict[str, Any] = {}

    def update(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if stage not in shown:
            for other in shown.values():
                other.close()
            shown[stage] = tqdm(
                total=total or None,
                desc=stage or title,
                disable=quiet,
                leave=True,
                file=sys.stderr,
                unit=unit,
                unit_scale=unit == "B",
            )
        line = shown[stage]
        line.update(done - line.n)
        if figures:
            line.set_postfix(
                {
                    name: str(value) if isinstance(value, int) else f"{value:.3f}"
                    for name, value in figures.items()
                },
                refresh=False,
            )

    try:
        yield update
    finally:
        for line in shown.values():
            line.close()
