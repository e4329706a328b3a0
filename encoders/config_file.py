"""A training configuration with what a TOML file changes of it, field by field.

An encoder or a task with its `kind` replaces the one of its name as a whole; without, it changes
the fields that it names; `false` leaves it out:

    epochs = 20

    [model.encoders]
    audio = false
    image = { kind = "small-cnn" }
    text = { lora = { rank = 8 } }
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .config import EncoderConfig, ModelConfig, TaskConfig, TrainConfig
from .lora import Lora

WHOLE = {"encoders": EncoderConfig, "tasks": TaskConfig}
"""Tables whose entries are replaced or changed, or left out by `false`."""
IMPORTED = ("origin", "bridged")  # of a model that is not trained


def with_changes(config: TrainConfig, file: Path) -> TrainConfig:
    """The configuration with the fields that are in the file, which is named in each error.

    Raises:
        ValueError: the file cannot be read, or a field is unknown or has an invalid value.
    """
    try:
        changes = tomllib.loads(file.read_text(encoding="utf-8"))
        return _validated(_merged(config.to_dict(), changes, ""))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    merged = dict(old)
    for name, value in changes.items():
        _check_known(where + name, name, [one for one in old if one not in IMPORTED])
        if name in WHOLE and isinstance(value, Mapping):
            merged[name] = _replaced(old[name], value, where + name, WHOLE[name])
        elif name in ("model", "limits") and isinstance(value, Mapping):
            merged[name] = _merged(old[name], value, f"{where}{name}.")
        else:
            merged[name] = value
    return merged


def _replaced(
    old: Mapping[str, Any], changes: Mapping[str, Any], where: str, kind: type[Any]
) -> dict[str, Any]:
    entries = dict(old)
    for entry, value in changes.items():
        entries[entry] = value
        if isinstance(value, Mapping):
            _check_fields(f"{where}.{entry}", value, kind)
            if isinstance(value.get("lora"), Mapping):
                _check_fields(f"{where}.{entry}.lora", value["lora"], Lora)
            if "kind" not in value and entry in old:
                entries[entry] = {**old[entry], **value}
    return {name: value for name, value in entries.items() if value is not False}


def _check_fields(where: str, value: Mapping[str, Any], kind: type[Any]) -> None:
    for name in value:
        _check_known(f"{where}.{name}", name, [field.name for field in fields(kind)])


def _check_known(where: str, name: str, known: Iterable[str]) -> None:
    if name not in (names := list(known)):
        (nearest,) = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise ValueError(f"{where}: no such field; the nearest is {nearest}")


def _validated(raw: Mapping[str, Any]) -> TrainConfig:
    try:
        made = TypeAdapter(TrainConfig).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    assert isinstance(made.model, ModelConfig)
    return made
