"""The reports of `braid status` and `braid doctor`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import redis

from braid.index.redact import redacted

from ..dead_letters.letters import recent
from ..errors import StreamError
from ..kafka.access import check_access
from ..kafka.admin import Admin
from ..kafka.topics import differences
from ..monitoring.drift_results import reports
from ..monitoring.heartbeat import workers
from ..redis_client import best_effort_redis
from ..registry.canaries import Canaries
from ..registry.ownership import unfinished
from ..registry.versions import registry_of, serving_generation
from ..settings import Settings
from ..trainer.lock import holder
from .common import service_url

BROKER_S, REDIS_S = 5.0, 2.0
PACKAGES = ("torch", "torchaudio", "transformers", "faust-streaming", "aiokafka", "msgpack")


def status(settings: Settings) -> dict[str, Any]:
    """Lag per partition, live workers, versions, their drift, and the index node's status.

    Generation, topic and lag are those of the serving generation; `handover` lists the partitions
    with pending predictions of the previous generation.

    Raises:
        Unreachable: the broker does not answer.
    """
    registry = registry_of(settings)
    champion = registry.champion()
    generation = serving_generation(settings, champion)
    admin = Admin(settings)
    topic = settings.topic("records")
    ends = admin.ends(topic)
    canary = Canaries(registry.log).running(champion)
    return {
        "generation": generation,
        "vectors_topic": settings.vectors_topic(generation),
        "partitions": len(ends),
        "lag": {
            str(number): behind
            for number, behind in admin.lag(settings.group(generation), topic).items()
        },
        "sources": _sources(settings, admin),
        "handover": unfinished(settings, registry, ends, admin) if ends else {},
        "dead_letters": recent(settings),
        "workers": workers(settings),
        "trainer": holder(settings),
        "versions": registry.names(),
        "champion": champion.name if champion else None,
        "canary": canary.facts() if canary else None,
        "drift": reports(settings),
        "index": _index_status(settings),
    }


def _sources(settings: Settings, admin: Admin) -> dict[str, dict[str, Any]]:
    """The topic of each source, and its lag by partition; none: there is no such topic."""
    return {
        source.title: {
            "topic": source.topic,
            "lag": admin.lag(settings.ingest_group(source.title), source.topic),
        }
        for source in settings.sources
    }


def doctor(settings: Settings) -> dict[str, dict[str, Any]]:
    """Each check with `ok` and its message `says`; that of a failed one names the remedy."""
    return {
        name: _checked(check, settings)
        for name, check in {
            "python": _python,
            "packages": _packages,
            "broker": _broker,
            "acls": _acls,
            "topics": _topics,
            "redis": _redis,
            "faiss": _faiss,
            "torch": _torch,
            "registry": _registry,
        }.items()
    }


def _checked(check: Callable[[Settings], str], settings: Settings) -> dict[str, Any]:
    try:
        return {"ok": True, "says": redacted(check(settings))}
    except Exception as error:  # noqa: BLE001 (whatever is wrong is what the doctor reports)
        return {"ok": False, "says": redacted(str(error) or repr(error))}


def _python(_: Settings) -> str:
    return f"{sys.version.split()[0]} at {sys.executable}"


def _packages(_: Settings) -> str:
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def _broker(settings: Settings) -> str:
    counts = Admin(settings, timeout_s=BROKER_S).partition_counts()
    ours = {name: counts[name] for name in sorted(counts) if name == settings.topic("records")}
    return f"{settings.kafka.bootstrap} answers, {len(counts)} topics, {ours or 'none of ours yet'}"


def _acls(settings: Settings) -> str:
    check_access(settings, "operator", _generation(settings), timeout_s=BROKER_S)
    return "what this command line does is allowed"


def _topics(settings: Settings) -> str:
    if unlike := differences(settings, _generation(settings), "operator", timeout_s=BROKER_S):
        raise StreamError("; ".join(unlike))
    return "as braid makes them"


def _generation(settings: Settings) -> str:
    return serving_generation(settings, registry_of(settings).champion())


def _redis(settings: Settings) -> str:
    client = best_effort_redis(settings, REDIS_S)
    if client is None:
        return "not set (REDIS_URL): hits come without text, workers are not listed"
    try:
        with client:
            client.ping()
    except redis.RedisError as error:
        raise StreamError(f"{settings.redis.url} does not answer: {error}") from error
    return f"{settings.redis.url} answers"


def _faiss(_: Settings) -> str:
    import faiss

    installed = []
    for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"):
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if len(installed) > 1:
        raise StreamError(f"{' and '.join(installed)} provide the same module: keep one of them")
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{installed[0] if installed else faiss.__version__}, {gpus} GPUs"


def _torch(settings: Settings) -> str:
    import torch

    if settings.model.device:
        torch.zeros(1, device=settings.model.device)
        return f"{torch.__version__}, {settings.model.device} works"
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return f"{torch.__version__} on {device}"


def _registry(settings: Settings) -> str:
    registry = registry_of(settings)
    champion = registry.champion()
    serves = champion.name if champion else "no champion yet"
    return f"{len(registry.names())} versions in {registry.place}, {serves}"


def _index_status(settings: Settings) -> dict[str, Any] | None:
    from braid.index.client import Client
    from braid.index.errors import BraidIndexError

    try:
        with Client(service_url(settings), timeout=2.0, api_key=settings.client_key()) as client:
            return client.status().model_dump(exclude_unset=True)
    except BraidIndexError:
        return None
