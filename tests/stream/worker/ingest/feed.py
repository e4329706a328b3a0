"""A topic of others with a source, its producer, and what must have become of its messages."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Producer

from braid.stream.kafka.admin import Admin
from braid.stream.kafka.schemas import decode_map
from braid.stream.local.child import Child
from tests.stream.harness import Deployment, wait_for

PLAIN = {"id": "id", "text": "text"}


class Feed:
    """Sends JSON to a topic, by its key; other values are bytes."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.topic = topic
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "log_level": 0}
        )

    def put(self, key: bytes | None, value: bytes | None) -> None:
        """One message; see `flush`."""
        self._producer.produce(self.topic, key=key, value=value)
        self._producer.poll(0)

    def send(self, value: Any, key: str | None = None, *, flush: bool = True, **more: Any) -> None:
        raw = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        self._producer.produce(self.topic, key=key and key.encode(), value=raw, **more)
        self._producer.poll(0)
        if flush:
            self.flush()

    def flush(self) -> None:
        assert self._producer.flush(60) == 0


def healthz(port: int) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


def ingest(deployment: Deployment, name: str = "ingest", **env: str) -> Child:
    """A `braid ingest` whose slot is its name."""
    return deployment.child(name, ["-m", "braid", "ingest", "--slot", name], env)


def all_taken(deployment: Deployment, timeout: float = 60) -> None:
    """Wait until every source has committed its topic's end."""
    settings, admin = deployment.settings, Admin(deployment.settings)
    for source in settings.sources:
        group = settings.ingest_group(source.title)
        wait_for(
            f"{source.title} is taken",
            lambda group=group, topic=source.topic: not any(admin.lag(group, topic).values()),  # type: ignore[misc]
            timeout=timeout,
        )


def records(deployment: Deployment) -> Mapping[str, list[dict[str, Any] | None]]:
    """Id -> the values on `records`, in their order; None for a deletion."""
    by_id: dict[str, list[dict[str, Any] | None]] = defaultdict(list)
    for message in deployment.read("records"):
        value = None if message.value is None else decode_map(message.value)
        by_id[(message.key or b"").decode()].append(value)
    return by_id


def texts(deployment: Deployment) -> dict[str, list[str | None]]:
    """Id -> the texts on `records`, in their order; None for a deletion."""
    return {
        id_: [None if value is None else str(value["text"]) for value in values]
        for id_, values in records(deployment).items()
    }
