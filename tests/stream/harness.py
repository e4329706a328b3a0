"""A small deployment on a real broker: topics of its own, workers and index nodes as processes."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from braid.stream.kafka.admin import Admin
from braid.stream.kafka.client import Message, replay
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.schemas import PROGRESS_KEY, decode_map
from braid.stream.kafka.sink import TransactionalSink
from braid.stream.kafka.topics import ensure
from braid.stream.local.child import Child, free_port
from braid.stream.settings import Settings
from braid.stream.worker.outputs import OutputTopics
from tests.prepared import PreparedChild

MODEL = "null:16"


PATIENCE = 3  # of wait_for: other work may share the cores


class Deployment:
    """Settings with a prefix of their own, and the processes started with them.

    Args:
        bootstrap: a broker.
        home: a folder.
        overrides: more settings.
    """

    def __init__(self, bootstrap: str, home: Path, **overrides: Any) -> None:
        self.settings = Settings(
            **merged(
                {
                    "home": home,
                    "prefix": f"t{uuid.uuid4().hex[:8]}-",
                    "kafka": {
                        "bootstrap": bootstrap,
                        "partitions": 4,
                        "session_timeout_s": max(2.0, _least_session_s(bootstrap)),
                        "transaction_timeout_s": 5.0,
                    },
                    "http": {"port": free_port()},
                    "index": {"snapshot_every_s": 1.0},
                    "model": {"poll_s": 0.5},
                },
                overrides,
            )
        )
        ensure(self.settings, self.settings.generation)
        self._children: list[Child] = []
        self._home = home

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.stop(grace=0)
        admin = Admin(self.settings)
        ours = [name for name in admin.partition_counts() if name.startswith(self.settings.prefix)]
        admin.delete(ours)

    def child(self, name: str, command: list[str], env: Mapping[str, str] | None = None) -> Child:
        """Start a process with these settings; its log is HOME/NAME.log."""
        child = PreparedChild(
            name,
            [sys.executable, *command],
            log=self._home / f"{name}.log",
            env={**self.settings.environment(), **(env or {})},
        )
        self._children.append(child)
        return child.start()

    def worker(self, name: str, *, model: str | None = MODEL, **env: str) -> Child:
        """A `braid embed` whose slot is its name."""
        command = ["-m", "braid", "embed", "--slot", name]
        if model is not None:
            command += ["--model", model]
        return self.child(name, command, env)

    def index(
        self,
        name: str = "index",
        *,
        model: str | None = MODEL,
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """A `braid index`."""
        command = ["-m", "braid", "index"]
        if model is not None:
            command += ["--model", model]
        return self.child(name, command, env)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.http.port}"

    def produce(
        self,
        records: Iterable[dict[str, Any]],
        *,
        per_second: float = 1e9,
        hurry: threading.Event | None = None,
    ) -> None:
        """Send records at a rate; as fast as it goes once there is `hurry`.

        `records` must not sleep: the producer sends in the loop that takes them.
        """

        async def send() -> None:
            async with Producer(self.settings) as producer:
                began = time.monotonic()
                for number, record in enumerate(records):
                    await producer.send(**record, wait=False)
                    ahead = number / per_second - (time.monotonic() - began)
                    if ahead > 0.005 and not (hurry and hurry.is_set()):
                        await asyncio.sleep(ahead)

        asyncio.run(send())

    def delete(self, id_: str) -> None:
        """Send a null for an id."""

        async def send() -> None:
            async with Producer(self.settings) as producer:
                await producer.delete(id_)

        asyncio.run(send())

    def read(self, topic: str) -> list[Message]:
        """All committed messages of one of braid's topics, up to where it ends now."""
        return self.read_named(topic_of(self.settings, topic))

    def read_all(self, settings: Settings, topic: str) -> list[Message]:
        """The same as other settings name it."""
        return self.read_named(topic_of(settings, topic))

    def read_of(self, settings: Settings, topic: str) -> list[Message]:
        """The same without marks of progress and deletions."""
        messages = self.read_all(settings, topic)
        return [m for m in messages if m.key != PROGRESS_KEY and m.value is not None]

    def read_named(self, name: str) -> list[Message]:
        """The same by the topic's full name. Transactions that are open by now are waited for."""
        admin = Admin(self.settings)
        ends_by_place = {place: end for place, (_, end) in admin.open_ends([name]).items()}

        def ended() -> bool:
            still_open = admin.open_ends([name])
            return all(
                stable >= ends_by_place.get(place, 0) for place, (stable, _) in still_open.items()
            )

        wait_for(f"transactions on {name} have ended", ended, timeout=30)
        ends = admin.ends(name, self.settings.kafka.partitions)  # the last stable offsets
        stop_at = {number: end for number, (_, end) in ends.items()}
        return list(replay(self.settings, name, stop_at=stop_at))

    def predictions(self) -> list[dict[str, Any]]:
        return [decode_map(message.value or b"") for message in self.read("predictions")]

    def vectors(self) -> list[Message]:
        return [message for message in self.read("vectors") if message.key != PROGRESS_KEY]

    def ends(self, topic: str) -> dict[int, int]:
        """Partition -> end offset of one of braid's topics."""
        name = topic_of(self.settings, topic)
        ends = Admin(self.settings).ends(name, self.settings.kafka.partitions)
        return {number: end for number, (_, end) in ends.items()}

    def lag(self, settings: Settings | None = None) -> int:
        """Offsets of `records` that the group (of other settings) has not committed yet."""
        admin, topic = Admin(self.settings), self.settings.topic("records")
        ends = admin.ends(topic, self.settings.kafka.partitions)
        settings = settings or self.settings
        group = settings.group(settings.generation)
        committed = admin.committed(group, topic, self.settings.kafka.partitions)
        return sum(end - max(first, committed.get(n, first)) for n, (first, end) in ends.items())


def topic_of(settings: Settings, name: str) -> str:
    """The full name of a topic; `vectors` are those of the settings' generation."""
    if name == "vectors":
        return settings.vectors_topic(settings.generation)
    return settings.topic(name)


def sink_of(settings: Settings, transactional_id: str) -> TransactionalSink:
    """A sink as the worker of the settings' generation makes it."""
    return TransactionalSink(
        settings,
        transactional_id=transactional_id,
        group=settings.group(settings.generation),
        topics=OutputTopics(settings, settings.generation).committed,
    )


def merged(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them; groups are dicts."""
    return settings | {
        name: settings.get(name, {}) | value if isinstance(value, dict) else value
        for name, value in overrides.items()
    }


def wait_for(what: str, ready: Callable[[], bool], *, timeout: float, every: float = 0.1) -> None:
    """Wait until `ready()`; the error says what was waited for.

    Args:
        timeout: seconds on a machine with little else to do; PATIENCE times as long at the most.
    """
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s")
        time.sleep(every)


def assigned(child: Child) -> list[str]:
    """The partitions that a worker's log names last."""
    lines = [line for line in child.tail(500).splitlines() if "publisher: partitions " in line]
    return re.findall(r"\d+", lines[-1].partition("assigned:")[2]) if lines else []


def stopped(child: Child) -> bool:
    """Whether the process is stopped by SIGSTOP (state T in /proc)."""
    stat = Path(f"/proc/{child.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def _least_session_s(bootstrap: str) -> float:
    """The broker's group.min.session.timeout.ms, in seconds: 6 s on one that is not ours."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    metadata = admin.list_topics(timeout=10)
    broker = ConfigResource(ConfigResource.Type.BROKER, str(next(iter(metadata.brokers))))
    try:
        config = admin.describe_configs([broker])[broker].result(10)
        return float(config["group.min.session.timeout.ms"].value) / 1000
    except Exception:  # noqa: BLE001 (a broker that refuses it)
        return 2.0
