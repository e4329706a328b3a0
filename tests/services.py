"""Real servers for the tests: one Apache Kafka broker (KRaft) and Valkey, on free loopback ports.

    python -m tests.services kafka     # starts a broker, prints its address, runs until Ctrl-C
    python -m tests.services valkey

The broker comes from Maven's jars (`tests/kafka/pom.xml`), which are kept in a cache folder
(`BRAID_CACHE`, else ~/.cache/braid): only the first start needs Maven.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from stream.children import Child, free_port, start_server
from stream.datasets import default_cache
from stream.embedded import EmbeddedError, valkey_command

POM = Path(__file__).parent / "kafka" / "pom.xml"
CLUSTER_ID = "AAAAAAAAAAAAAAAAAAAAAQ"  # any 16 bytes in base64
JAVA_AT_LEAST = 17  # what Kafka 4 brokers need

# A single node for tests: little memory, one replica of everything, no waiting where a cluster
# would wait, timeouts short enough that crash tests are quick.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=300
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
auto.create.topics.enable=false
message.max.bytes=17825792
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=16777216
"""

# Quick to start and small; `warn` keeps the log short.
JVM = [
    "-Xms128m",
    "-Xmx768m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
]


class ServiceError(RuntimeError):
    """A service cannot be had on this machine; the message says what is missing."""


def kafka_jars(cache: Path) -> Path:
    """The folder of the broker's jars, filled by Maven if it is not there yet.

    Raises:
        ServiceError: Java or Maven is missing, or Maven failed.
    """
    java = shutil.which("java")
    if java is None:
        raise ServiceError(f"no Apache Kafka: java {JAVA_AT_LEAST} or newer is not installed")
    jars = cache / "kafka" / hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceError(f"no Apache Kafka: Maven (mvn) is not installed and {jars} is not there")
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix="filling-") as work:
        filling = Path(work) / "jars"
        goal = "org.apache.maven.plugins:maven-dependency-plugin:3.6.0:copy-dependencies"
        done = subprocess.run(
            [maven, "-B", "-q", "-f", str(POM), goal, f"-DoutputDirectory={filling}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceError(
                f"no Apache Kafka: Maven failed: {(done.stdout + done.stderr)[-2000:]}"
            )
        try:
            filling.rename(jars)
        except OSError:  # another test run was quicker
            if not jars.is_dir():
                raise
    return jars


def chromium_path() -> str:
    """The program of an installed Chromium. Raises ServiceError."""
    given = os.environ.get("CHROMIUM")
    names = [given] if given else ["chromium", "chromium-browser", "google-chrome"]
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        raise ServiceError(f"no Chromium: none of {', '.join(names)} is installed")
    return path


class KafkaBroker:
    """One Apache Kafka broker in KRaft mode with its data in `folder`, gone after `stop`."""

    def __init__(self, folder: Path, *, cache: Path) -> None:
        self.folder = folder
        self._cache = cache
        self.bootstrap = ""
        self.child: Child | None = None

    def start(self) -> str:
        """Format, start and wait until topics, groups and transactions work.

        Returns the bootstrap address. Raises `ServiceError` or `ChildError`.
        """
        jars = kafka_jars(self._cache)
        log = self.folder / "kafka.log"
        self.child, port = start_server("kafka", lambda port: self._command(jars, port), log=log)
        self.bootstrap = f"127.0.0.1:{port}"
        try:
            self._wait_until_loaded()
        except BaseException:
            self.stop()
            raise
        return self.bootstrap

    def _command(self, jars: Path, port: int) -> list[str]:
        """Format a fresh data folder for `port`; returns the broker's command line."""
        folder = self.folder / str(port)
        data = folder / "data"
        data.mkdir(parents=True)
        properties = folder / "server.properties"
        controller = free_port()
        properties.write_text(PROPERTIES.format(broker=port, controller=controller, data=data))
        java = ["java", *JVM, "-cp", f"{jars}/*"]
        format_data = ["kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER_ID]
        done = subprocess.run(
            [*java, *format_data, "-c", str(properties)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceError(
                f"no Apache Kafka: formatting failed: {(done.stdout + done.stderr)[-2000:]}"
            )
        return [*java, "kafka.Kafka", str(properties)]

    def _wait_until_loaded(self) -> None:
        """The coordinators answer: their topics exist, their state is loaded."""
        quiet: dict[str, str | int | float | bool] = {
            "bootstrap.servers": self.bootstrap,
            "log_level": 0,
        }
        producer = Producer({**quiet, "transactional.id": "warm-up"})
        admin = AdminClient(quiet)
        assert self.child is not None
        self.child.wait_until(
            lambda: _works(lambda: producer.init_transactions(5)),
            timeout=30,
            what="load transactions",
        )
        self.child.wait_until(
            lambda: _works(
                lambda: admin.describe_consumer_groups(["warm-up"])["warm-up"].result(5)
            ),
            timeout=30,
            what="load groups",
        )

    def stop(self) -> None:
        """Kill it at once: its data are of no further use."""
        if self.child is not None:
            self.child.stop(grace=0)


class Valkey:
    """A Valkey (or Redis) server that a test may stop and start again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> str:
        """Start, empty, and return the url. Raises `ServiceError` or `ChildError`."""
        try:
            self._child, self.port = start_server(
                "valkey",
                lambda port: valkey_command(port, self.folder),
                log=self.folder / "valkey.log",
                port=self.port or None,
            )
        except EmbeddedError as error:
            raise ServiceError(str(error)) from error
        return self.url

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(grace=0)

    def pause(self) -> None:
        """Stop answering while the connections stay open (SIGSTOP)."""
        if self._child is not None:
            self._child.send(signal.SIGSTOP)

    def resume(self) -> None:
        if self._child is not None:
            self._child.send(signal.SIGCONT)

    def __enter__(self) -> Valkey:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except KafkaException:
        return False
    return True


def main() -> int:
    """Run one service in the foreground, for developers."""
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__)
    parser.add_argument("service", choices=["kafka", "valkey"])
    service = parser.parse_args().service

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix=f"braid-{service}-") as folder:
        server: KafkaBroker | Valkey
        if service == "kafka":
            server = KafkaBroker(Path(folder), cache=default_cache())
        else:
            server = Valkey(Path(folder))
        began = time.monotonic()
        try:
            address = server.start()
            variable = "KAFKA_BOOTSTRAP" if service == "kafka" else "REDIS_URL"
            print(f"{variable}={address}", flush=True)
            print(f"ready in {time.monotonic() - began:.1f} s; Ctrl-C stops it", file=sys.stderr)
            signal.pause()
        except KeyboardInterrupt:
            pass
        except ServiceError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            server.stop()
    return 0


def in_ci() -> bool:
    """Whether this is a CI run, where a missing service is a failure and never a skip."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


if __name__ == "__main__":
    sys.exit(main())
