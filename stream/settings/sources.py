"""Sources of settings: the environment and `braid.toml`. An unknown name is an error.

A setting's name is `group.name` as in `http.port`, or `name` for a process-wide one.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_settings import BaseSettings, EnvSettingsSource, TomlConfigSettingsSource

from ..errors import ConfigError
from .group import Group

PREFIX = "BRAID_"
CUSTOMARY = {"kafka.bootstrap": "KAFKA_BOOTSTRAP", "redis.url": "REDIS_URL"}
# Read elsewhere: here, by failpoints, data sets, benchmarks, tests and Docker Compose.
NO_SETTINGS = {
    "BRAID_CONFIG",
    "BRAID_FAILPOINT",
    "BRAID_CACHE",
    "BRAID_DATA",
    "BRAID_SOAK_SECONDS",
    "BRAID_IMAGE",
}
# Kubernetes sets these in each pod for a service that is called braid-something.
_SERVICE = re.compile(r"BRAID_\w*?(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)")


def names(settings: type[BaseModel]) -> list[str]:
    """The names of all settings."""
    listed = []
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            listed += [f"{name}.{part}" for part in field.annotation.model_fields]
        else:
            listed.append(name)
    return listed


def flat(values: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Groups and their values as `group.name` -> value; what is no group stays as it is."""
    groups = {name.partition(".")[0] for name in known if "." in name}
    return {
        f"{name}.{part}" if part else name: item
        for name, value in values.items()
        for part, item in (
            value.items() if name in groups and isinstance(value, Mapping) else [("", value)]
        )
    }


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.replace(".", "__").upper()


def config_file() -> Path:
    """`BRAID_CONFIG`, else `braid.toml` in the working folder, which may be missing.

    Raises:
        ConfigError: there is no file at `BRAID_CONFIG`.
    """
    file = os.environ.get("BRAID_CONFIG")
    if file and not Path(file).is_file():
        raise ConfigError(f"BRAID_CONFIG: no file at {file}")
    return Path(file or "braid.toml")


class Environment(EnvSettingsSource):
    """`BRAID_GROUP__NAME`, and the customary names, which come first."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.env_vars = {  # BRAID_CACHE is no value of the group `cache`
            name: value for name, value in self.env_vars.items() if name.upper() not in NO_SETTINGS
        }

    def __call__(self) -> dict[str, Any]:
        known = {variable(name): name for name in names(self.settings_cls)}
        for name, value in sorted(os.environ.items()):
            if not name.upper().startswith(PREFIX) or name in NO_SETTINGS:
                continue
            linked = _SERVICE.fullmatch(name) or value.startswith(("tcp://", "udp://"))
            if name.upper() not in known and not linked:
                raise ConfigError(unknown(name, known))
        values = super().__call__()
        for name, customary in CUSTOMARY.items():
            if customary in os.environ:
                group, _, part = name.partition(".")
                values.setdefault(group, {})[part] = os.environ[customary]
        return values


class File(TomlConfigSettingsSource):
    """A table for each group, in `config_file()`."""

    def __call__(self) -> dict[str, Any]:
        known = names(self.settings_cls)
        for name in flat(self.toml_data, known):
            if name not in known and not any(other.startswith(f"{name}.") for other in known):
                raise ConfigError(f"{self.toml_file_path}: {unknown(name, known)}")
        return super().__call__()


def unknown(name: str, known: Iterable[str]) -> str:
    """What is said of a name that is no setting."""
    (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"{name}: no such setting; the nearest is {nearest}"
