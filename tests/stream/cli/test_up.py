"""`braid up` on the embedded Apache Kafka: what it keeps, what it starts again, what it refuses."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from braid.index.client import Client
from braid.stream.cli.demo import read
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.schemas import decode_map
from braid.stream.local.child import Child, free_port
from braid.stream.settings import Settings
from tests.stream.harness import wait_for

PARTITIONS = 3
STOPPED_S = 60  # its processes are granted 20 s, then each server 15 s
READY_S = 240  # Java, torch and a broker's recovery on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(900)]


class Up:
    """`braid up` on one home, as often as a test starts it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.http_port = free_port()
        self.child = Child(
            "braid up",
            [sys.executable, "-m", "braid", "up"],
            log=folder / "up.log",
            env={
                "BRAID_HOME": str(self.home),
                "BRAID_HTTP__PORT": str(self.http_port),
                "BRAID_KAFKA__PARTITIONS": str(PARTITIONS),
                "BRAID_MODEL__SPEC": "null:16",
                "BRAID_INDEX__SNAPSHOT_EVERY_S": "1",
                "BRAID_KAFKA__SESSION_TIMEOUT_S": "6",  # the broker's least
            },
        )
        self.client = Client(f"http://127.0.0.1:{self.http_port}")

    def start(self) -> None:
        """Start it and wait until the query service answers."""
        self.child.log.unlink(missing_ok=True)
        self.child.start()
        self.child.wait_until(self.client.ready, timeout=READY_S, every=0.5)

    @property
    def output(self) -> str:
        return self.child.tail(500)

    @property
    def settings(self) -> Settings:
        bootstrap = re.findall(r"^KAFKA_BOOTSTRAP=(.+)$", self.output, re.M)[-1]
        redis_url = re.findall(r"^REDIS_URL=(.+)$", self.output, re.M)[-1]
        return Settings(
            home=self.home,
            kafka={"bootstrap": bootstrap, "partitions": PARTITIONS},
            redis={"url": redis_url},
            http={"port": self.http_port},
        )

    def pids(self) -> dict[str, int]:
        """Its child processes by what they are."""
        kinds = {
            " kafka.Kafka ": "kafka",
            "valkey": "valkey",
            " embed ": "embed",
            " index ": "index",
            " ingest ": "ingest",
        }
        pid_of: dict[str, int] = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has ended
                continue
            if parent == self.child.pid:
                pid_of |= {kind: int(folder.name) for word, kind in kinds.items() if word in words}
        return pid_of

    def produce(self, first: int, last: int) -> None:
        """Records named by their numbers, all acknowledged."""

        async def send() -> None:
            async with Producer(self.settings) as producer:
                for number in range(first, last):
                    await producer.send(id=f"r{number}", text=f"number {number}", wait=False)

        asyncio.run(send())

    def predictions(self) -> Counter[str]:
        """How often each id is on `predictions`, read committed."""
        messages = read(self.settings, "predictions", PARTITIONS)
        return Counter(decode_map(message.value or b"")["id"] for message in messages)

    def records(self) -> int:
        return self.client.status().records if self.client.ready() else -1

    def wait_for_records(self, count: int) -> None:
        wait_for(f"{count} are searchable", lambda: self.records() == count, timeout=READY_S)

    def close(self) -> None:
        self.client.close()
        self.child.stop(grace=60)


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    for name in list(os.environ):
        if name.startswith("BRAID_") and name != "BRAID_CACHE":
            monkeypatch.delenv(name)
    for name in ("KAFKA_BOOTSTRAP", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    it = Up(tmp_path)
    try:
        yield it
    finally:
        it.close()


def answers(bootstrap: str) -> bool:
    try:
        AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).list_topics(timeout=5)
    except KafkaException:
        return False
    return True


def test_a_kill_of_everything_loses_nothing_and_repeats_nothing(up: Up) -> None:
    up.start()
    up.produce(0, 500)
    up.wait_for_records(500)
    up.produce(500, 1000)  # the kill finds these on their way
    children = up.pids()
    assert set(children) == {"kafka", "valkey", "embed", "index"}
    for pid in (up.child.pid, *children.values()):
        os.killpg(pid, signal.SIGKILL)
    up.child.wait(30)
    up.start()
    up.wait_for_records(1000)
    expected = Counter(f"r{number}" for number in range(1000))
    wait_for("all are predicted", lambda: len(up.predictions()) == 1000, timeout=READY_S)
    assert up.predictions() == expected


def test_what_ends_is_started_again_and_a_stop_keeps_everything(up: Up) -> None:
    up.child._env["BRAID_SOURCES"] = '[{"topic": "shop", "map": {"id": "id", "text": "text"}}]'
    up.start()
    address = up.settings.kafka.bootstrap
    assert set(up.pids()) == {"kafka", "valkey", "embed", "index", "ingest"}
    up.produce(0, 50)
    up.wait_for_records(50)
    for number, name in enumerate(("valkey", "embed", "index", "ingest", "kafka"), start=1):
        pid = up.pids()[name]
        os.kill(pid, signal.SIGKILL)
        wait_for(f"{name} is back", lambda n=name, p=pid: up.pids().get(n, p) != p, timeout=60)  # type: ignore[misc]
        if name == "kafka":
            wait_for("the broker answers", lambda: answers(address), timeout=READY_S)
        up.produce(50 * number, 50 * (number + 1))
        up.wait_for_records(50 * (number + 1))
    assert up.child.running
    for name in ("valkey", "braid embed", "braid index", "braid ingest", "kafka"):
        assert re.search(rf"^{name} ended \(SIGKILL\); it is started again in 1 s", up.output, re.M)
        assert re.search(rf"^{name} is started again \(pid \d+\)", up.output, re.M)

    last = up.pids()
    up.child.send(signal.SIGINT)
    wait_for(f"it ends:\n{up.output}", lambda: not up.child.running, timeout=STOPPED_S)
    assert up.child.status == 0
    assert "stopping" in up.output
    assert [pid for pid in last.values() if Path(f"/proc/{pid}").exists()] == []
    up.start()
    assert up.settings.kafka.bootstrap == address
    up.wait_for_records(300)
    wait_for("all are predicted", lambda: len(up.predictions()) == 300, timeout=READY_S)
    assert up.predictions() == Counter(f"r{number}" for number in range(300))


def test_a_second_one_on_the_same_home_is_refused(up: Up, tmp_path: Path) -> None:
    up.start()
    second = Child(
        "second", up.child.command, log=tmp_path / "second.log", env=up.child._env
    ).start()
    assert second.wait(120) == 1
    assert re.search(
        rf"^braid: the services of {up.home}: in use by another process \(pid {up.child.pid};",
        second.tail(),
        re.M,
    )
    assert up.client.ready()


def test_a_setting_that_cannot_work_ends_it_with_its_reason(tmp_path: Path, up: Up) -> None:
    up.child._env["BRAID_MODEL__SPEC"] = str(tmp_path / "nothing")
    up.child.start()
    assert up.child.wait(120) == os.EX_CONFIG
    assert "braid: model: no folder at" in up.output
