"""The reports of `braid status` and `braid doctor`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from braid.index.redact import redacted

from ..dead_letters.letters import recent
from ..errors import StreamError
from ..kafka.admin import Admin
from ..monitoring.drift_results import reports
from ..monitoring.heartbeat import workers
from ..registry.canaries import Canaries
from ..registry.ownership import unfinished
from ..registry.versions import Registry
from ..settings import Settings
from ..trainer.lock import holder
from .common import service_url

PACKAGES = ("torch", "torchaudio", "transformers", "faust-streaming", "aiokafka", "msgpack")


def status(settings: Settings) -> dict[str, Any]:
    """Lag per partition, live workers, versions, their drift, and the index node's status.

    Generation, topic and lag are those of the serving generation; `handover` lists the partitions
    with pending predictions of the previous generation.

    Raises:
        Unreachable: the broker does not answer.
    """
    registry = Registry(settings.models_dir, base=settings.model.name)
    champion = registry.champion()
    generation = settings.generation
    if champion is not None and settings.model.spec is None:  # as the workers
        generation = champion.generation
    admin = Admin(settings)
    topic = settings.topic("records")
    partitions = admin.partition_counts().get(topic, 0)
    ends = admin.ends(topic, partitions)
    committed = admin.committed(settings.group(generation), topic, partitions)
    canary = Canaries(registry.root).running(champion)
    return {
        "generation": generation,
        "vectors_topic": settings.vectors_topic(generation),
        "partitions": partitions,
        "lag": {
            str(number): max(0, end - max(start, committed.get(number, start)))
            for number, (start, end) in ends.items()
        },
        "handover": unfinished(settings, registry, ends, admin) if partitions else {},
        "dead_letters": recent(settings),
        "workers": workers(settings),
        "trainer": holder(settings),
        "versions": registry.names(),
        "champion": champion.name if champion else None,
        "canary": canary.facts() if canary else None,
        "drift": reports(settings),
        "index": _index_status(settings),
    }


def doctor(settings: Settings) -> dict[str, dict[str, Any]]:
    """Each check with `ok` and its message `says`; that of a failed one names the remedy."""
    return {
        name: _checked(check, settings)
        for name, check in {
            "python": _python,
            "packages": _packages,
            "broker": _broker,
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
    counts = Admin(settings, timeout_s=5.0).partition_counts()
    ours = {name: counts[name] for name in sorted(counts) if name == settings.topic("records")}
    return f"{settings.kafka.bootstrap} answers, {len(counts)} topics, {ours or 'none of ours yet'}"


def _redis(settings: Settings) -> str:
    if settings.redis.url is None:
        return "not set (REDIS_URL): hits come without text, workers are not listed"
    if workers(settings) is None:
        raise StreamError(f"{redacted(settings.redis.url)} does not answer")
    return f"{redacted(settings.redis.url)} answers"


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
    registry = Registry(settings.models_dir, base=settings.model.name)
    champion = registry.champion()
    serves = champion.name if champion else "no champion yet"
    return f"{len(registry.names())} versions in {settings.models_dir}, {serves}"


def _index_status(settings: Settings) -> dict[str, Any] | None:
    from braid.index.client import Client
    from braid.index.errors import BraidIndexError

    try:
        with Client(service_url(settings), timeout=2.0, api_key=settings.client_key()) as client:
            answer: dict[str, Any] = client.status()
            return answer
    except BraidIndexError:
        return None
