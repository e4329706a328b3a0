"""The health of a worker process, for `/healthz` and the watchdog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from confluent_kafka import OFFSET_BEGINNING

from ..kafka.admin import Admin
from ..kafka.waiting import ATTEMPT_S
from ..liveness.progress import Progress
from ..liveness.progress_watch import Watched, readable
from ..settings import Settings
from .worker import Worker

NOT_A_MEMBER = 2  # factor of the bound


def watched_worker(settings: Settings, generation: str, worker: Worker) -> Watched:
    """A generation's worker, for the watchdog."""
    group = settings.group(generation)
    return Watched(
        name=f"the worker of {group}",
        progress=worker.progress,
        readable=lambda: uncommitted(settings, group, worker.owned),
        # Without membership a rebalance may still wait for another member.
        bound_s=settings.worker.progress_timeout_s * (1 if worker.is_member else NOT_A_MEMBER),
    )


def uncommitted(
    settings: Settings, group: str, owned: list[int], *, topic: str | None = None
) -> bool:
    """Whether an independent client reads a message at a committed offset of the group.

    Args:
        owned: the partitions looked at; without any, all.
        topic: its full name; by default `records`.

    Raises:
        StreamError, KafkaException: no answer from the broker.
    """
    topic = topic or settings.topic("records")
    admin = Admin(settings, timeout_s=ATTEMPT_S)
    partitions = admin.partition_counts().get(topic, 0)
    committed = admin.committed(group, topic, partitions)
    starts = {n: committed.get(n, OFFSET_BEGINNING) for n in owned or range(partitions)}
    return readable(settings, topic, starts)


class Member(Protocol):
    """A loop that is a member of a consumer group."""

    progress: Progress

    @property
    def waits_for(self) -> str | None: ...
    @property
    def is_member(self) -> bool: ...


def status_of(settings: Settings, loop: Member, away: str | None) -> str:
    """`ok`, or what is the matter with a loop.

    Args:
        away: why the broker does not answer, or None.
    """
    progress, bound_s = loop.progress, settings.worker.progress_timeout_s
    if progress.ended:
        return "stopping"
    if (reason := loop.waits_for or away) is not None:
        return f"waiting for Kafka: {reason}"
    if not loop.is_member and progress.age_s > bound_s:
        return f"the group has assigned nothing for {progress.age_s:.0f} s"
    if progress.age_s > bound_s:
        return f"no committed offset has moved for {progress.age_s:.0f} s"
    return "ok"


def health(
    settings: Settings, worker: Worker | None, serving: str, away: str | None
) -> tuple[bool, dict[str, Any]]:
    """Whether the serving generation's worker is healthy, and the body of `/healthz`.

    Args:
        away: why the broker does not answer, or None.

    Returns:
        (healthy, facts): `status` is ok or the problem; times are in seconds.
    """
    if worker is None:
        return False, {"status": "starting", "generation": serving}
    status, progress = status_of(settings, worker, away), worker.progress
    facts: Mapping[str, Any] = {
        "status": status,
        "generation": serving,
        "model": worker.model.name,
        "partitions": worker.owned,
        "lag": progress.lag,
        "progress_age_s": round(progress.age_s, 1),
        "broker": settings.kafka.bootstrap,
    }
    return status == "ok", dict(facts)
