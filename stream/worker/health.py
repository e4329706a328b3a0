"""The health of a worker process, for `/healthz` and the watchdog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING

from ..kafka.admin import Admin
from ..kafka.waiting import ATTEMPT_S
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


def uncommitted(settings: Settings, group: str, owned: list[int]) -> bool:
    """Whether an independent client reads a record at a committed offset of the group.

    Args:
        owned: the partitions looked at; without any, all.

    Raises:
        StreamError, KafkaException: no answer from the broker.
    """
    topic = settings.topic("records")
    admin = Admin(settings, timeout_s=ATTEMPT_S)
    partitions = admin.partition_counts().get(topic, 0)
    committed = admin.committed(group, topic, partitions)
    starts = {n: committed.get(n, OFFSET_BEGINNING) for n in owned or range(partitions)}
    return readable(settings, topic, starts)


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
    progress, bound_s = worker.progress, settings.worker.progress_timeout_s
    status = "ok"
    if progress.ended:
        status = "stopping"
    elif (reason := worker.waits_for or away) is not None:
        status = f"waiting for Kafka: {reason}"
    elif not worker.is_member and progress.age_s > bound_s:
        status = f"the group has assigned nothing for {progress.age_s:.0f} s"
    elif progress.age_s > bound_s:
        status = f"no committed offset has moved for {progress.age_s:.0f} s"
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
