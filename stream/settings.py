"""The settings of every braid process: flags, environment, `braid.toml`.

Sources, the first that names a setting wins: flags of the command line, the environment
(`BRAID_*`, and the customary `KAFKA_BOOTSTRAP` and `REDIS_URL`), a TOML file (`BRAID_CONFIG`, else
`braid.toml` in the working folder), the defaults below.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from braid.index.redact import redacted

from .errors import ConfigError

if TYPE_CHECKING:
    from braid.index.service.dependencies import Limits
    from braid.index.service.limits.auth import ApiKeys
    from braid.index.service.limits.hosts import Hosts

MIB = 1024 * 1024
SECRET = {"api_keys", "api_key"}


class Settings(BaseSettings):
    """What a braid process needs to know. Times are in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="BRAID_", frozen=True, extra="ignore", populate_by_name=True
    )

    home: Path = Field(Path(".braid"), description="models, snapshots and the embedded services")
    index_folder: Path | None = Field(
        None, description="an index node's own folder, one for each node; without it home/index"
    )
    kafka_bootstrap: str = Field(
        "127.0.0.1:9092",
        validation_alias=AliasChoices(
            "kafka_bootstrap", "KAFKA_BOOTSTRAP", "BRAID_KAFKA_BOOTSTRAP"
        ),
    )
    redis_url: str | None = Field(
        None,
        repr=False,  # it may hold a password
        validation_alias=AliasChoices("redis_url", "REDIS_URL", "BRAID_REDIS_URL"),
    )

    media_bytes: int = Field(
        256 * MIB, ge=0, description="thumbnails and snippets in Redis, all together; 0 keeps none"
    )

    prefix: str = Field("", description="put before every topic's and group's name")
    partitions: int = Field(6, ge=1, le=1024, description="used when the topics are made")
    replication: int = Field(1, ge=1, le=9)
    generation: str = Field("g0001", pattern=r"^g\d{4}$")

    model: str | None = Field(
        None, description="a model folder or null:16; without it the champion of the registry"
    )
    model_name: str = Field("braid", pattern=r"^[A-Za-z0-9_-]{1,40}$")
    device: str | None = Field(
        None, description="a torch device; without it cuda where there is one"
    )
    model_poll_s: float = Field(5.0, gt=0, description="how often the registry is looked at")

    backfill_duty_cycle: float = Field(
        0.5, gt=0, le=1, description="of its time that a new generation works beside live traffic"
    )
    rollback_window_s: float = Field(
        86_400.0, ge=0, description="how long the generation before is fed after a flip"
    )
    flip_lag: int = Field(
        64, ge=0, description="offsets of records a new generation may be behind when it takes over"
    )
    flip_recall_drop: float = Field(
        0.05, ge=0, le=1, description="recall@10 that a new generation may lose against the old"
    )
    gates: dict[str, int | float] = Field(
        {}, description="limits of the judge that differ from braid.encoders.evaluation.gates.Gates"
    )
    compatibility: dict[str, Any] = Field(
        {}, description="when a version may stay in its parent's space; ...gates.Compatibility"
    )
    canary: dict[str, int | float] = Field(
        {},
        description="limits of a canary that differ from "
        "braid.stream.monitoring.canary_comparison.CanaryLimits",
    )
    windows_kept: int = Field(
        3, ge=1, description="finished runs whose windows are kept, so that they can be repeated"
    )
    retrain_cron: str | None = Field(
        None, description="when the workers start a retraining, in cron's five fields; UTC"
    )
    retrain_first: int = Field(
        50, ge=1, description="records that braid retrain --every waits for while there is no model"
    )
    retrain_options: list[str] = Field(
        [], description="options of a retraining that the workers start, e.g. --heads-only"
    )
    drift: dict[str, int | float] = Field(
        {}, description="limits of drift that differ from braid.encoders.drift.Limits"
    )
    drift_window_s: int = Field(
        300, ge=1, le=86_400, description="how long a window of statistics is"
    )
    drift_retrain: bool = Field(
        False, description="whether drift of the version that serves starts a retraining"
    )
    retrain_min_interval_s: float = Field(
        3600.0, ge=0, description="a retraining triggered by drift starts at most so often"
    )

    join_quiet_s: float = Field(
        60.0, gt=0, description="an incomplete record without a new part for so long is released"
    )
    join_late_s: float = Field(
        600.0,
        gt=0,
        validate_default=True,
        description="at the latest so long after its first part; so long late parts are merged",
    )
    join_incomplete: Literal["send", "dead-letter"] = Field(
        "send", description="what happens to a released record of which a modality is missing"
    )
    join_bytes: int = Field(
        256 * MIB, ge=16 * MIB, description="parts kept by one worker; the oldest go out early"
    )

    slot: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.-]{1,80}$", description="names the worker's transactional id"
    )
    batch_records: int = Field(128, ge=1, le=4096)
    batch_tokens: int = Field(16_384, ge=1)
    batch_pixels: int = Field(32_000_000, ge=1)
    batch_seconds: float = Field(600.0, gt=0, description="seconds of sound in one micro-batch")
    batch_wait_s: float = Field(0.05, ge=0, description="age of the oldest that closes a batch")
    encode_timeout_s: float = Field(
        300.0,
        ge=1.0,
        description="how long one micro-batch may be on the device: it hangs beyond that, and the "
        "process ends with its stacks, since a device call cannot be interrupted",
    )
    poison_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="more than this share of poison_window records that fail in prepare or encode "
        "stops the worker: something else than each record is at fault then, and would empty the "
        "topic into the dead letters; 1 never stops",
    )
    poison_window: int = Field(
        200, ge=10, description="the last decoded records, of which poison_share is a share"
    )
    inflight_records: int = Field(1024, ge=1)
    inflight_bytes: int = Field(256 * MIB, ge=16 * MIB)
    prepare_threads: int = Field(2, ge=1, le=256)
    prepare_isolation: Literal["thread", "process"] = Field(
        "process",
        description="where pictures and sounds are decoded: process, where a file that crashes a "
        "codec or takes too much ends a child and becomes a dead letter (no slower in "
        "benchmarks/RESULTS.md; each of prepare_threads + 1 children takes 41 MB), or thread",
    )
    session_timeout_s: float = Field(10.0, ge=0.5)
    transaction_timeout_s: float = Field(10.0, ge=1.0)
    publish_timeout_s: float = Field(
        15.0, ge=1.0, description="a transaction that takes longer is given up, with its producer"
    )
    progress_timeout_s: float = Field(
        30.0, ge=5.0, description="a worker without progress though there is lag ends after it"
    )
    broker_timeout_s: float = Field(
        30.0, ge=1.0, description="how long a command waits for a broker; services wait for ever"
    )
    metrics_port: int | None = Field(None, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    metrics_file: Path | None = Field(
        None, description="a trainer's metrics, for the textfile collector of Prometheus"
    )

    link_roots: list[Path] = Field([], description="folders that file:// links may point into")
    link_hosts: list[str] = Field(
        [],
        description="hosts that http(s):// links may name, at their schemes' own ports; host:port "
        "allows that port",
    )
    link_timeout_s: float = Field(
        10.0, gt=0, description="how long one link may take, all tries together"
    )

    http_host: str = "127.0.0.1"
    http_port: int = Field(8077, ge=0, le=65535)
    api_keys: list[SecretStr] = Field(
        [], description="who may ask the query service: keys, or sha256: and a key's digest"
    )
    api_keys_file: Path | None = Field(None, description="the same, one a line")
    api_key: SecretStr | None = Field(
        None, description="what this process sends when it asks the query service"
    )
    http_hosts: list[str] = Field(
        [],
        description="names, beside http_host and loopback's, under which it may be asked; *: any",
    )
    http_body_bytes: int = Field(32 * MIB, ge=1024, description="the largest upload")
    http_json_bytes: int = Field(8 * MIB, ge=1024, description="the largest other request's body")
    http_bodies_bytes: int = Field(
        128 * MIB, ge=1024, description="all bodies together; beyond them it answers 503"
    )
    http_connections: int = Field(
        1024, ge=1, description="open at once; beyond them it answers 503"
    )
    http_header_s: float = Field(10.0, gt=0, description="how long a request's headers may take")
    http_body_s: float = Field(300.0, gt=0, description="how long a request's body may take")
    http_rate_per_s: float | None = Field(
        None, gt=0, description="queries a second of one key, or address; without it any number"
    )
    http_burst: int = Field(50, ge=1, description="how many of them may come at once")
    ready_lag_s: float = Field(
        10.0, gt=0, description="how far behind vectors an index node may be and still be ready"
    )
    http_searches: int = Field(8, ge=1, description="embedded and searched at once")
    http_polls: int = Field(64, ge=1, description="pages that may wait for what arrives at once")
    http_queue_size: int = Field(
        64, ge=0, description="more that may wait; beyond them it answers 503"
    )
    recall_probe_s: float = Field(
        30.0, ge=0, description="how often a query is searched exactly, too; 0: never"
    )
    snapshot_every_s: float = Field(30.0, gt=0)
    store: Literal["faiss", "milvus"] = Field(
        "faiss", description="where vectors are: in the index node, or in Milvus"
    )
    milvus_uri: str | None = Field(
        None, repr=False, description="http://host:port, or a path ending in .db for Milvus Lite"
    )
    milvus_token: str = Field("", repr=False, description="user:password, or an API key")
    faiss_threads: int = Field(
        default_factory=lambda: min(8, os.cpu_count() or 1), ge=1, description="of one search"
    )
    recall: float = Field(
        1.0, gt=0, le=1, description="recall@10 that is enough; 1 keeps search exact"
    )
    faiss_gpu: bool | None = Field(
        None, description="search on the GPU; without it where FAISS finds one"
    )

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("home", "index_folder", mode="after")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("join_late_s", mode="after")
    @classmethod
    def _late_is_not_before_quiet(cls, value: float, info: ValidationInfo) -> float:
        if value < (quiet := info.data.get("join_quiet_s", 0)):
            raise ValueError(f"must not be less than join_quiet_s = {quiet:g}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("BRAID_CONFIG")
        path = Path(file) if file else Path("braid.toml")
        if file and not path.is_file():
            raise ConfigError(f"BRAID_CONFIG: no file at {path}")
        toml = TomlConfigSettingsSource(settings_cls, toml_file=path)
        known = {"prefix", *settings_cls.model_fields}
        if unknown := sorted(set(toml.toml_data) - known):
            raise ConfigError(f"{path}: unknown settings {', '.join(unknown)}")
        return (init_settings, env_settings, toml)

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    @property
    def index_home(self) -> Path:
        return self.home / "index" if self.index_folder is None else self.index_folder

    @property
    def index_dir(self) -> Path:
        return self.index_home / self.generation

    def topic(self, name: str) -> str:
        """The full name of one of braid's topics: `records`, `vectors`, `predictions`, ..."""
        if name == "vectors":
            name = f"vectors.{self.generation}"
        return self.prefix + name

    @property
    def group(self) -> str:
        """The hot path's consumer group: one per generation, never the Faust app's id."""
        return f"{self.prefix}braid-embed-{self.generation}"

    def keys(self) -> ApiKeys | None:
        """Who may ask the query service; None: everyone.

        Raises:
            ConfigError: the file cannot be read, or a key does not fit; never shows a key.
        """
        from braid.index.service.limits.auth import ApiKeys, read_keys

        keys = [key.get_secret_value() for key in self.api_keys]
        if self.api_keys_file is not None:
            try:
                keys += read_keys(self.api_keys_file.read_text())
            except (OSError, UnicodeDecodeError) as error:
                what = getattr(error, "strerror", None) or "not a text file"
                raise ConfigError(f"api_keys_file: {self.api_keys_file}: {what}") from None
        if not keys and self.api_keys_file is None:
            return None
        try:
            return ApiKeys(keys)
        except ValueError as error:
            raise ConfigError(f"api_keys: {error}") from None

    def client_key(self, *, own: bool = True) -> str | None:
        """What to send to a query service: `api_key`; to one with these settings its first key."""
        if self.api_key is not None or not own:
            return None if self.api_key is None else self.api_key.get_secret_value()
        plain = [key.get_secret_value() for key in self.api_keys]
        return next((key for key in plain if not key.startswith("sha256:")), None)

    def limits(self) -> Limits:
        """What the query service takes on."""
        from braid.index.service.dependencies import Limits
        from braid.index.service.limits.connections import ConnectionLimits

        return Limits(
            body_bytes=self.http_body_bytes,
            json_bytes=self.http_json_bytes,
            bodies_bytes=max(self.http_bodies_bytes, self.http_body_bytes),
            searches=self.http_searches,
            queue_size=self.http_queue_size,
            polls=self.http_polls,
            rate_per_s=self.http_rate_per_s,
            burst=self.http_burst,
            connection=ConnectionLimits(
                connections=self.http_connections,
                header_s=self.http_header_s,
                body_s=self.http_body_s,
            ),
        )

    def hosts(self) -> Hosts:
        """The names under which the query service may be asked. Raises ConfigError."""
        from braid.index.service.limits.hosts import Hosts

        try:
            return Hosts(self.http_host, self.http_hosts)
        except ValueError as error:
            raise ConfigError(f"http_hosts: {error}") from None

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, to start another braid process with them."""
        changed = self.model_dump(mode="json", exclude_unset=True)
        for name in SECRET & set(changed):  # which a dump shows as stars
            changed[name] = _revealed(getattr(self, name))
        names = {"kafka_bootstrap": "KAFKA_BOOTSTRAP", "redis_url": "REDIS_URL"}
        return {
            names.get(key, f"BRAID_{key.upper()}"): _as_text(value)
            for key, value in changed.items()
            if value is not None
        }


def _revealed(value: Any) -> Any:
    if isinstance(value, list):
        return [_revealed(part) for part in value]
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _as_text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


def load(**flags: Any) -> Settings:
    """Settings from flags, environment and file; `None` flags count as not given.

    Raises:
        ConfigError: names the setting, what is wrong with it and the value given.
    """
    explicit = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**explicit)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            + ("" if item["loc"][0] in SECRET else f" (got {item['input']!r})")
            for item in error.errors()
        ]
        raise ConfigError(redacted("; ".join(lines))) from None
    except ValueError as error:  # a list or a TOML file that does not parse
        raise ConfigError(redacted(error)) from None
