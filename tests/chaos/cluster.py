"""Broker, Redis, workers and index node as processes, each of braid's behind a proxy of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from braid.index.client import Client
from braid.stream.errors import StreamError
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.client import Message, replay
from braid.stream.kafka.topics import ensure
from braid.stream.local.child import Child, free_port, stop_all
from braid.stream.local.supervisor import Supervisor
from braid.stream.settings import Settings
from tests.chaos.faults import WORKERS
from tests.kafka_proxy import KafkaProxy
from tests.services import KafkaBroker, Valkey
from tests.stream.harness import topic_of

MODEL = "null:16"
PARTITIONS = 4
TICK_S = 0.3
STARTED_WITHIN_S = 150.0


class Cluster:
    """As a context manager. What ends is started again while somebody waits by `wait_for`.

    Args:
        folder: of data and logs.
        report: takes what the supervisor says.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder = folder
        self._report = report
        self.broker = KafkaBroker(folder / "kafka")
        self.redis = Valkey(folder / "redis")
        self.proxies: dict[str, KafkaProxy] = {}
        self.children: dict[str, Child] = {}
        self._starter = ThreadPoolExecutor(1, "starter")

    def __enter__(self) -> Self:
        self.broker.start()
        self.redis.start()
        self.settings = Settings(
            kafka={
                "bootstrap": self.broker.address,
                "partitions": PARTITIONS,
                "session_timeout_s": 3.0,
                "transaction_timeout_s": 5.0,
            },
            redis={"url": self.redis.address},
            home=self.folder,
            http={"port": free_port()},
            index={"snapshot_every_s": 2.0},
        )
        ensure(self.settings, self.settings.generation)
        for name in WORKERS:
            self._start(name, "-m", "tests.chaos.worker", "embed", "--slot", name)
        self._start("index", "-m", "braid", "index")
        self._supervisor = Supervisor(list(self.children.values()), self._report)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stop_all(list(self.children.values()), 0)
        for proxy in self.proxies.values():
            proxy.close()
        self.broker.stop()
        self.redis.stop()
        self._starter.shutdown()

    def wait_for(self, ready: Callable[[], bool], *, timeout: float) -> float | None:
        """Seconds until `ready()`; None if it is not within `timeout`."""
        began = time.monotonic()
        while True:
            self._supervisor.check()
            if ready():
                return time.monotonic() - began
            if time.monotonic() - began > timeout:
                return None
            time.sleep(TICK_S)

    def start_again(self, server: KafkaBroker | Valkey) -> None:
        """Start a killed server, and wait until it answers."""
        # On a thread that stays: a child dies with the thread that started it.
        starting = self._starter.submit(server.start)
        if self.wait_for(starting.done, timeout=STARTED_WITHIN_S) is None:
            raise AssertionError(f"{server.name} does not start")
        starting.result()

    def rest(self, seconds: float) -> None:
        """Wait, whatever happens."""
        self.wait_for(lambda: False, timeout=seconds)

    def positions(self) -> dict[str, tuple[int, int]] | None:
        """Partition -> committed offset and end, of `records` and `parts`; None: no answer.

        Behind the committed offset may be marks of transactions alone: then the end is there.
        """
        settings = self.settings.replace(kafka={"broker_timeout_s": 3.0})
        admin = Admin(settings)
        groups = {
            "records": settings.group(settings.generation),
            "parts": f"{settings.prefix}braid-join",
        }
        result: dict[str, tuple[int, int]] = {}
        try:
            for name, group in groups.items():
                topic = self.settings.topic(name)
                ends = admin.ends(topic, PARTITIONS)
                committed = admin.committed(group, topic, PARTITIONS)
                at = {n: max(first, committed.get(n, first)) for n, (first, _) in ends.items()}
                stop = {n: end for n, (_, end) in ends.items() if end > at[n]}
                behind: set[int] = set()
                for message in replay(settings, topic, stop_at=stop, start_at=at):
                    behind.add(message.partition)
                    if len(behind) == len(stop):
                        break
                for number in at:
                    end = stop[number] if number in behind else at[number]
                    result[f"{name}[{number}]"] = at[number], end
        except StreamError:
            return None
        return result

    def progress(self) -> Callable[[], bool]:
        """Whether each partition's committed offset has moved from here on, or is at its end; and
        the index node answers."""
        before: dict[str, tuple[int, int]] = {}

        def ready() -> bool:
            now = self.positions()
            if now is None:
                return False
            before.update(before or now)
            moved = all(at == end or at > before[part][0] for part, (at, end) in now.items())
            return moved and self.index_ready()

        return ready

    def caught_up(self) -> bool:
        now = self.positions()
        return now is not None and all(at == end for at, end in now.values())

    def index_ready(self) -> bool:
        with self.client() as client:
            return client.ready()

    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.settings.http.port}")

    def read(self, topic: str) -> list[Message]:
        """All committed messages of one of braid's topics."""
        name = topic_of(self.settings, topic)
        ends = Admin(self.settings).ends(name, PARTITIONS)
        return list(
            replay(self.settings, name, stop_at={number: end for number, (_, end) in ends.items()})
        )

    def _start(self, name: str, *command: str) -> None:
        proxy = self.proxies[name] = KafkaProxy(self.broker.address)
        settings = self.settings.replace(kafka={"bootstrap": proxy.address})
        self.children[name] = Child(
            name,
            [sys.executable, *command, "--model", MODEL],
            log=self.folder / f"{name}.log",
            env=settings.environment(),
        ).start()
