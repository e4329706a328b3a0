"""The groups of settings: each is a table in `braid.toml` and a prefix in the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from .group import MIB, Group, Secret, absolute


class Batch(Group):
    """One micro-batch: it closes when one of these limits is reached."""

    records: int = Field(256, ge=1, le=4096, description="records in one micro-batch")
    tokens: int = Field(32_768, ge=1, description="tokens of text in one micro-batch")
    pixels: int = Field(32_000_000, ge=1, description="pixels of pictures in one micro-batch")
    seconds: float = Field(600.0, gt=0, description="seconds of sound in one micro-batch")
    wait_s: float = Field(
        0.05,
        ge=0,
        description="how long the oldest record of a micro-batch waits for others; while the "
        "device is at work and more records wait in Kafka, until the micro-batch is full",
    )
    latency_ms: float | None = Field(
        None,
        ge=10,
        description="target of the time from a record's poll to its publication, p99, in "
        "milliseconds: micro-batches, their waits and the records in flight adapt to it, and "
        "wait_s is not used; without it micro-batches are as large as the other limits allow",
    )


class Cache(Group):
    """Features of texts, pictures and sounds that were encoded before, by their content. Encoders
    whose weights did not change share them across versions."""

    local_bytes: int = Field(
        64 * MIB, ge=0, description="features in the memory of a process; 0 caches nothing"
    )
    redis_bytes: int = Field(
        256 * MIB,
        ge=0,
        description="while Redis uses more memory than this, for whatever, no features are "
        "written to it; 0 keeps none there",
    )
    ttl_s: int = Field(86_400, ge=1, description="how long features stay in Redis")


class Worker(Group):
    slot: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,80}$",
        description="names the worker's transactional id; of two workers with one name the later "
        "fences the other; without it the first free number on this machine",
    )
    inflight_records: int = Field(
        4096,
        ge=1,
        description="records that are read and not committed; beyond it reading pauses. Half of a "
        "backlog is sorted by size over several micro-batches, the other half prepared",
    )
    inflight_bytes: int = Field(
        256 * MIB,
        ge=16 * MIB,
        description="bytes of them, as read and as prepared; beyond it reading pauses",
    )
    prepare_threads: int = Field(
        2, ge=1, le=256, description="threads that decode, resize, resample and tokenise"
    )
    prepare_isolation: Literal["thread", "process"] = Field(
        "process",
        description="where pictures and sounds are decoded: process, where a file that crashes a "
        "codec or takes too much ends a child and becomes a dead letter (no slower in "
        "benchmarks/RESULTS.md; each of prepare_threads children takes 41 MB), or thread",
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
    vectors: Literal["float32", "float16"] = Field(
        "float32",
        description="the numbers of vectors on Kafka; float16 takes half the bytes and rounds each "
        "to 11 bits",
    )
    vectors_format: Literal["msgpack", "json"] = Field(
        "msgpack", description="of the values of `vectors`; index nodes read both"
    )
    predictions_format: Literal["msgpack", "json"] = Field(
        "msgpack", description="of the values of `predictions`"
    )
    profile: Path | None = Field(
        None,
        description="a file for a Chrome trace of each batch's steps, 256 MB at most, for "
        "chrome://tracing or ui.perfetto.dev; without it none is written",
    )

    _absolute = field_validator("profile", mode="after")(absolute)


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
        default_factory=lambda: min(8, os.cpu_count() or 1),
        ge=1,
        description="threads of one search; computed: one for each CPU, at most 8",
    )
    faiss_gpu: bool | None = Field(
        None, description="search on the GPU; without it where FAISS finds one"
    )
    snapshot_every_s: float = Field(
        30.0, gt=0, description="seconds between two snapshots, where there is something new"
    )
    upload_every_s: float | None = Field(
        None,
        gt=0,
        description="seconds between two uploads of a snapshot to the object store of "
        "model.registry, from which a node with an empty disk begins; without it none",
    )
    ready_lag_s: float = Field(
        10.0,
        gt=0,
        description="an index node that is further behind vectors answers 503 at /readyz",
    )

    _absolute = field_validator("folder", mode="after")(absolute)


class Http(Group):
    """The query service of an index node, and its clients."""

    host: str = Field("127.0.0.1", description="the address that the query service listens on")
    port: int = Field(8077, ge=0, le=65535, description="its port; 0: any free one")
    hosts: list[str] = Field(
        [],
        description="names that the host header may have, beside host and loopback's; *: any; "
        "others are answered with 421",
    )
    api_keys: list[Secret] = Field(
        [],
        description="accepted keys, of 16 characters or more, or sha256: and the digest of one; "
        "without keys everyone may search and delete",
    )
    api_keys_file: Path | None = Field(
        None, description="a file with further accepted keys, one on each line"
    )
    api_key: Secret | None = Field(
        None, description="the key that this process sends to a query service"
    )
    body_bytes: int = Field(
        32 * MIB, ge=1024, description="size of an upload, also after gzip is unpacked; else 413"
    )
    json_bytes: int = Field(8 * MIB, ge=1024, description="size of any other body; else 413")
    bodies_bytes: int = Field(
        128 * MIB, ge=1024, description="size of all bodies in memory; else 503"
    )
    connections: int = Field(
        1024, ge=1, description="connections open at once; else 503, probes excepted"
    )
    header_s: float = Field(
        10.0, gt=0, description="how long the headers of a request may take; else 408"
    )
    body_s: float = Field(
        300.0,
        gt=0,
        description="how long the body of a request may take, at 16 KiB/s or more; else 408",
    )
    rate_per_s: float | None = Field(
        None,
        gt=0,
        description="queries a second of one key, or of one address where there are no keys; a "
        "query for k hits counts k / 10, 1 at least; else 429; without it any number",
    )
    burst: int = Field(50, ge=1, description="queries of rate_per_s that may arrive at once")
    searches: int = Field(64, ge=1, description="queries that are embedded and searched at once")
    polls: int = Field(64, ge=1, description="pages that may wait for new records; else 503")
    queue_size: int = Field(
        64, ge=0, description="queries that may wait for searches; else 503 with retry-after"
    )


class Media(Group):
    bytes: int = Field(
        256 * MIB, ge=0, description="thumbnails and snippets in Redis, all together; 0 keeps none"
    )
    shared_bytes: int = Field(
        32 * MIB,
        ge=0,
        description="files of shared searches in Redis, all together; 0 keeps none",
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

    host: str = Field("127.0.0.1", description="the address that /metrics is served on")
    port: int | None = Field(
        None, ge=0, le=65535, description="its port; without it /metrics is not served"
    )
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
    upload_windows: bool = Field(
        False,
        description="whether windows are copied to the object store of model.registry, too, where "
        "a trainer on another machine finds them for retrain --window",
    )
    frozen_queries: int = Field(
        200,
        ge=0,
        description="held-out records, with their texts and files, that a version keeps to compare "
        "engines with torch; at most 16 MiB",
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
        0.5,
        gt=0,
        le=1,
        description="share of its time that a worker spends on a new generation's backfill",
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
