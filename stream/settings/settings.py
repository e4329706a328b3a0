"""`Settings`: what a braid process needs to know, in groups.

Sources, the first that names a setting wins: flags of the command line, the environment
(`BRAID_GROUP__NAME`, and the customary `KAFKA_BOOTSTRAP` and `REDIS_URL`), a TOML file
(`BRAID_CONFIG`, else `braid.toml` in the working folder), the defaults in `groups.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from braid.index.redact import redacted

from ..errors import ConfigError
from . import groups, servers, source_groups
from .group import REVEAL, Group, absolute, has_secret, parsed
from .model_group import Model
from .source_groups import Source, unique
from .sources import CUSTOMARY, Environment, File, config_file, flat, names, variable
from .tracing import Tracing
from .tracking import Tracking

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from braid.index.service.dependencies import Limits
    from braid.index.service.limits.auth import ApiKeys
    from braid.index.service.limits.hosts import Hosts

T = TypeVar("T", bound="DataclassInstance")


class Settings(BaseSettings):
    """Process-wide settings, and the groups. Times are in seconds unless a name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="BRAID_",
        env_nested_delimiter="__",
        enable_decoding=False,  # `Group` parses lists and tables: its errors name the setting
        frozen=True,
        extra="forbid",
    )

    home: Path = Field(Path(".braid"), description="models, snapshots and the embedded services")
    prefix: str = Field("", description="put before every topic's and group's name")
    generation: str = Field(
        "g0001",
        pattern=r"^g\d{4}$",
        description="the first one, and that of model.spec; later ones come from the registry",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="the least severe messages that are logged, on standard error; those of debug "
        "may quote records",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="lines of text, or one JSON object a line"
    )

    kafka: servers.Kafka = servers.Kafka()
    redis: servers.Redis = servers.Redis()
    model: Model = Model()
    batch: groups.Batch = groups.Batch()
    cache: groups.Cache = groups.Cache()
    worker: groups.Worker = groups.Worker()
    join: groups.Join = groups.Join()
    index: groups.Index = groups.Index()
    milvus: servers.Milvus = servers.Milvus()
    http: groups.Http = groups.Http()
    media: groups.Media = groups.Media()
    links: groups.Links = groups.Links()
    metrics: groups.Metrics = groups.Metrics()
    tracing: Tracing = Tracing()
    tracking: Tracking = Tracking()
    refresh: groups.Refresh = groups.Refresh()
    drift: groups.Drift = groups.Drift()
    schema_registry: source_groups.SchemaRegistry = source_groups.SchemaRegistry()
    sources: list[Source] = Field(
        [], description="topics that braid ingest turns into records: tables [[sources]]"
    )

    _absolute = field_validator("home", mode="after")(absolute)
    _json = field_validator("sources", mode="before")(parsed)
    _unique = field_validator("sources", mode="after")(unique)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (
            init_settings,
            Environment(settings_cls),
            File(settings_cls, toml_file=config_file()),
        )

    def replace(self, **changes: Any) -> Self:
        """These settings with other values: `settings.replace(kafka={"partitions": 2})`."""
        update = {
            name: getattr(self, name).model_copy(update=value)
            if isinstance(getattr(self, name), Group)
            else value
            for name, value in changes.items()
        }
        return self.model_copy(update=update)

    @property
    def loading(self) -> dict[str, Any]:
        """The options of `braid.encoders.load` for a version that serves."""
        model = self.model
        return {"device": model.device, "engine": model.engine, "precision": model.precision}

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    @property
    def index_home(self) -> Path:
        return self.home / "index" if self.index.folder is None else self.index.folder

    def index_dir(self, generation: str) -> Path:
        return self.index_home / generation

    def topic(self, name: str) -> str:
        """The full name of one of braid's topics: `records`, `predictions`, ..."""
        return self.prefix + name

    def vectors_topic(self, generation: str) -> str:
        return self.topic(f"vectors.{generation}")

    def group(self, generation: str) -> str:
        """The hot path's consumer group: one per generation, never the Faust app's id."""
        return f"{self.prefix}braid-embed-{generation}"

    def ingest_group(self, source: str) -> str:
        """The consumer group of a source."""
        return f"{self.prefix}braid-ingest-{source}"

    @property
    def reading_group(self) -> str:
        """Of consumers without a group: librdkafka asks for a name, and for its coordinator."""
        return f"{self.prefix}braid-reader"

    @property
    def app_id(self) -> str:
        """The Faust app's id, which is its consumer group."""
        return f"{self.prefix}braid-app"

    def changelog(self, table: str) -> str:
        """The topic in which Faust keeps a table of its app."""
        return f"{self.app_id}-{self.prefix}{table}-changelog"

    def keys(self) -> ApiKeys | None:
        """Who may ask the query service; None: everyone.

        Raises:
            ConfigError: the file cannot be read, or a key does not fit; never shows a key.
        """
        from braid.index.service.limits.auth import ApiKeys, read_keys

        http = self.http
        keys = [key.get_secret_value() for key in http.api_keys]
        if http.api_keys_file is not None:
            try:
                keys += read_keys(http.api_keys_file.read_text())
            except (OSError, UnicodeDecodeError) as error:
                what = getattr(error, "strerror", None) or "not a text file"
                raise ConfigError(f"http.api_keys_file: {http.api_keys_file}: {what}") from None
        if not keys and http.api_keys_file is None:
            return None
        try:
            return ApiKeys(keys)
        except ValueError as error:
            raise ConfigError(f"http.api_keys: {error}") from None

    def client_key(self, *, own: bool = True) -> str | None:
        """What to send to a query service: `api_key`; to one with these settings its first key."""
        http = self.http
        if http.api_key is not None or not own:
            return None if http.api_key is None else http.api_key.get_secret_value()
        plain = [key.get_secret_value() for key in http.api_keys]
        return next((key for key in plain if not key.startswith("sha256:")), None)

    def limits(self) -> Limits:
        """What the query service takes on."""
        from braid.index.service.dependencies import Limits
        from braid.index.service.limits.connections import ConnectionLimits

        http = self.http
        return Limits(
            body_bytes=http.body_bytes,
            json_bytes=http.json_bytes,
            bodies_bytes=max(http.bodies_bytes, http.body_bytes),
            searches=http.searches,
            queue_size=http.queue_size,
            polls=http.polls,
            rate_per_s=http.rate_per_s,
            burst=http.burst,
            connection=ConnectionLimits(
                connections=http.connections, header_s=http.header_s, body_s=http.body_s
            ),
        )

    def hosts(self) -> Hosts:
        """The names under which the query service may be asked. Raises ConfigError."""
        from braid.index.service.limits.hosts import Hosts

        try:
            return Hosts(self.http.host, self.http.hosts)
        except ValueError as error:
            raise ConfigError(f"http.hosts: {error}") from None

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, to start another braid process with them."""
        changed = self.model_dump(mode="json", exclude_unset=True, context=REVEAL)
        return {
            CUSTOMARY.get(name, variable(name)): _as_text(value)
            for name, value in flat(changed, names(Settings)).items()
            if value is not None
        }

    def shown(self) -> dict[str, Any]:
        """Every setting by name, as JSON's types; secrets and passwords as stars."""
        values = flat(self.model_dump(mode="json"), names(Settings))
        return {
            name: redacted(value) if isinstance(value, str) else value
            for name, value in values.items()
        }


SECRET = {
    (name, part)
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
    for part, setting in field.annotation.model_fields.items()
    if has_secret(setting.annotation)
} | {("model", "registry_options")}  # which may be given a secret, and refuses it


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _set_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags without those that are None, in groups too."""
    nested = {
        name: _set_flags(value) if isinstance(value, Mapping) else value
        for name, value in flags.items()
    }
    return {name: value for name, value in nested.items() if value is not None}


def load(**flags: Any) -> Settings:
    """Settings from flags, environment and file: `load(http={"port": port}, home=home)`.

    Args:
        flags: settings, and groups as dicts; a `None` counts as not given.

    Raises:
        ConfigError: names the setting, what is wrong with it and the value given.
    """
    try:
        return Settings(**_set_flags(flags))
    except ValidationError as error:
        raise ConfigError("; ".join(_described(item) for item in error.errors())) from None
    except ValueError as error:  # a TOML file that does not parse
        raise ConfigError(redacted(error)) from None


def _described(error: ErrorDetails) -> str:
    """The setting, what is wrong with it, and the value unless it is secret or holds a secret."""
    place = error["loc"]
    hidden = any(place[:2] == secret or place == secret[: len(place)] for secret in SECRET)
    given = error["input"]  # a table as JSON, as it was written
    shown = json.dumps(given, default=str) if isinstance(given, dict | list) else repr(given)
    value = "" if hidden else f" (got {shown})"
    return redacted(f"{'.'.join(map(str, place))}: {error['msg']}{value}")


def origins(flags: Mapping[str, Any]) -> dict[str, str]:
    """Where each setting comes from: `default`, the file's path, the variable, or `flag`.

    Args:
        flags: those that `load` got.
    """
    known, file = names(Settings), config_file()
    from_environment = {
        name: CUSTOMARY[name] if CUSTOMARY.get(name, "") in os.environ else variable(name)
        for name in flat(Environment(Settings)(), known)
    }
    return (
        dict.fromkeys(known, "default")
        | dict.fromkeys(flat(File(Settings, toml_file=file)(), known), str(file))
        | from_environment
        | dict.fromkeys(flat(_set_flags(flags), known), "flag")
    )


def configured(kind: type[T], changed: Mapping[str, Any], setting: str) -> T:
    """A dataclass of limits with those that a setting changes.

    Raises:
        ConfigError: the setting names an unknown field, or has an invalid value.
    """
    try:
        return kind(**changed)
    except (TypeError, ValueError) as error:
        known = ", ".join(field.name for field in fields(kind))
        raise ConfigError(f"{setting}: {error}; the limits are {known}") from None
