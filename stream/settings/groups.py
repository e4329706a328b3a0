"""The groups of settings: each is a table in `braid.toml` and a prefix in the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
    ValidationInfo,
    field_validator,
)

MIB = 1024 * 1024
REVEAL = "reveal"  # the context of a dump to JSON that shows secrets


def _shown(secret: SecretStr, info: SerializationInfo) -> str:
    return secret.get_secret_value() if info.context == REVEAL else str(secret)


Secret = Annotated[SecretStr, PlainSerializer(_shown, when_used="json")]


def absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


class Group(BaseModel):
    """Settings of one subject. Times are in seconds unless the name says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _parsed(cls, value: Any, info: ValidationInfo) -> Any:
        """Lists and tables are JSON in the environment."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, str) and get_origin(annotation) in (list, dict):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError(f"must be JSON: {error}") from None
        return value


class Kafka(Group):
    bootstrap: str = "127.0.0.1:9092"
    partitions: int = Field(6, ge=1, le=1024, description="used when the topics are made")
    replication: int = Field(1, ge=1, le=9)
    session_timeout_s: float = Field(10.0, ge=0.5)
    transaction_timeout_s: float = Field(10.0, ge=1.0)
    broker_timeout_s: float = Field(
        30.0, ge=1.0, description="how long a command waits for a broker; services wait for ever"
    )


class Redis(Group):
    url: str | None = Field(None, repr=False)  # it may hold a password


class Model(Group):
    spec: str | None = Field(
        None, description="a model folder or null:16; without it the champion of the registry"
    )
    name: str = Field("braid", pattern=r"^[A-Za-z0-9_-]{1,40}$")
    device: str | None = Field(
        None, description="a torch device; without it cuda where there is one"
    )
    poll_s: float = Field(5.0, gt=0, description="how often the registry is looked at")


class Batch(Group):
    """One micro-batch."""

    records: int = Field(128, ge=1, le=4096)
    tokens: int = Field(16_384, ge=1)
    pixels: int = Field(32_000_000, ge=1)
    seconds: float = Field(600.0, gt=0, description="seconds of sound in one micro-batch")
    wait_s: float = Field(0.05, ge=0, description="age of the oldest that closes a batch")


class Worker(Group):
    slot: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.-]{1,80}$", description="names the worker's transactional id"
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
    encode_timeout_s: float = Field(
        300.0,
        ge=1.0,
        description="how long one micro-batch may be on the device: it hangs beyond that, and the "
        "process ends with its stacks, since a device call cannot be interrupted",
    )
    publish_timeout_s: float = Field(
        15.0, ge=1.0, description="a transaction that takes longer is given up, with its producer"
    )
    progress_timeout_s: float = Field(
        30.0, ge=5.0, description="a worker without progress though there is lag ends after it"
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


class Join(Group):
    quiet_s: float = Field(
        60.0, gt=0, description="an incomplete record without a new part for so long is released"
    )
    late_s: float = Field(
        600.0,
        gt=0,
        validate_default=True,
        description="at the latest so long after its first part; so long late parts are merged",
    )
    incomplete: Literal["send", "dead-letter"] = Field(
        "send", description="what happens to a released record of which a modality is missing"
    )
    bytes: int = Field(
        256 * MIB, ge=16 * MIB, description="parts kept by one worker; the oldest go out early"
    )

    @field_validator("late_s", mode="after")
    @classmethod
    def _late_is_not_before_quiet(cls, value: float, info: ValidationInfo) -> float:
        if value < (quiet := info.data.get("quiet_s", 0)):
            raise ValueError(f"must not be less than join.quiet_s = {quiet:g}")
        return value


class Index(Group):
    """An index node."""

    folder: Path | None = Field(
        None, description="an index node's own folder, one for each node; without it home/index"
    )
    store: Literal["faiss", "milvus"] = Field(
        "faiss", description="where vectors are: in the index node, or in Milvus"
    )
    recall: float = Field(
        1.0, gt=0, le=1, description="recall@10 that is enough; 1 keeps search exact"
    )
    recall_probe_s: float = Field(
        30.0, ge=0, description="how often a query is searched exactly, too; 0: never"
    )
    faiss_threads: int = Field(
        default_factory=lambda: min(8, os.cpu_count() or 1), ge=1, description="of one search"
    )
    faiss_gpu: bool | None = Field(
        None, description="search on the GPU; without it where FAISS finds one"
    )
    snapshot_every_s: float = Field(30.0, gt=0)
    ready_lag_s: float = Field(
        10.0, gt=0, description="how far behind vectors an index node may be and still be ready"
    )

    _absolute = field_validator("folder", mode="after")(absolute)


class Milvus(Group):
    uri: str | None = Field(
        None, repr=False, description="http://host:port, or a path ending in .db for Milvus Lite"
    )
    token: Secret = Field(SecretStr(""), description="user:password, or an API key")


class Http(Group):
    """The query service, and those who ask it."""

    host: str = "127.0.0.1"
    port: int = Field(8077, ge=0, le=65535)
    hosts: list[str] = Field(
        [], description="names, beside host and loopback's, under which it may be asked; *: any"
    )
    api_keys: list[Secret] = Field(
        [], description="who may ask the query service: keys, or sha256: and a key's digest"
    )
    api_keys_file: Path | None = Field(None, description="the same, one a line")
    api_key: Secret | None = Field(
        None, description="what this process sends when it asks the query service"
    )
    body_bytes: int = Field(32 * MIB, ge=1024, description="the largest upload")
    json_bytes: int = Field(8 * MIB, ge=1024, description="the largest other request's body")
    bodies_bytes: int = Field(
        128 * MIB, ge=1024, description="all bodies together; beyond them it answers 503"
    )
    connections: int = Field(1024, ge=1, description="open at once; beyond them it answers 503")
    header_s: float = Field(10.0, gt=0, description="how long a request's headers may take")
    body_s: float = Field(300.0, gt=0, description="how long a request's body may take")
    rate_per_s: float | None = Field(
        None, gt=0, description="queries a second of one key, or address; without it any number"
    )
    burst: int = Field(50, ge=1, description="how many of them may come at once")
    searches: int = Field(8, ge=1, description="embedded and searched at once")
    polls: int = Field(64, ge=1, description="pages that may wait for what arrives at once")
    queue_size: int = Field(64, ge=0, description="more that may wait; beyond them it answers 503")


class Media(Group):
    bytes: int = Field(
        256 * MIB, ge=0, description="thumbnails and snippets in Redis, all together; 0 keeps none"
    )


class Links(Group):
    roots: list[Path] = Field([], description="folders that file:// links may point into")
    hosts: list[str] = Field(
        [],
        description="hosts that http(s):// links may name, at their schemes' own ports; host:port "
        "allows that port",
    )
    timeout_s: float = Field(
        10.0, gt=0, description="how long one link may take, all tries together"
    )


class Metrics(Group):
    """`/metrics` of a worker or a trainer."""

    host: str = "127.0.0.1"
    port: int | None = Field(None, ge=0, le=65535)
    file: Path | None = Field(
        None, description="a trainer's metrics, for the textfile collector of Prometheus"
    )


class Refresh(Group):
    """Retraining, judging, and the change from one generation to the next."""

    retrain_cron: str | None = Field(
        None, description="when the workers start a retraining, in cron's five fields; UTC"
    )
    retrain_first: int = Field(
        50, ge=1, description="records that braid retrain --every waits for while there is no model"
    )
    retrain_options: list[str] = Field(
        [], description="options of a retraining that the workers start, e.g. --heads-only"
    )
    windows_kept: int = Field(
        3, ge=1, description="finished runs whose windows are kept, so that they can be repeated"
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


class Drift(Group):
    limits: dict[str, int | float] = Field(
        {}, description="limits of drift that differ from braid.encoders.drift.Limits"
    )
    window_s: int = Field(300, ge=1, le=86_400, description="how long a window of statistics is")
    retrain: bool = Field(
        False, description="whether drift of the version that serves starts a retraining"
    )
    retrain_min_interval_s: float = Field(
        3600.0, ge=0, description="a retraining triggered by drift starts at most so often"
    )
