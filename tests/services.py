"""Real servers for the tests: one Apache Kafka broker (KRaft) and Valkey, on free loopback ports.

    python -m tests.services kafka     # starts a broker, prints its address, runs until Ctrl-C
    python -m tests.services valkey

They are the embedded ones (`stream/local/embedded.py`), with the properties that tests need.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from braid.stream.errors import EmbeddedError
from braid.stream.local import embedded

# Timeouts short enough that crash tests are quick.
PROPERTIES = {
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "300",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}


class ServiceError(RuntimeError):
    """A service cannot be had on this machine; the message says what is missing."""


def chromium_path() -> str:
    """The program of an installed Chromium. Raises ServiceError."""
    given = os.environ.get("CHROMIUM")
    names = [given] if given else ["chromium", "chromium-browser", "google-chrome"]
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        raise ServiceError(f"no Chromium: none of {', '.join(names)} is installed")
    return path


class Service:
    """A server that a test may kill, pause and start again, as a context manager.

    `start` after `stop` takes the same port; a test that relies on it checks the address.
    """

    def __init__(self, server: embedded.Server) -> None:
        self.server = server

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def pid(self) -> int:
        assert self.server.child is not None
        return self.server.child.pid

    @property
    def running(self) -> bool:
        return self.server.child is not None and self.server.child.running

    @property
    def log(self) -> Path:
        return self.server.folder / f"{self.server.name}.log"

    def stop(self, grace: float = 0) -> None:
        """SIGKILL, or SIGTERM and up to `grace` seconds first; a second call does nothing."""
        self.server.stop(grace)

    def pause(self) -> None:
        """Stop answering while the connections stay open (SIGSTOP)."""
        if self.server.child is not None:
            self.server.child.send(signal.SIGSTOP)

    def resume(self) -> None:
        if self.server.child is not None:
            self.server.child.send(signal.SIGCONT)

    def _start(self) -> None:
        try:
            self.server.start()
        except EmbeddedError as error:
            raise ServiceError(str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class KafkaBroker(Service):
    """One Apache Kafka broker in KRaft mode with its data in `folder`.

        with KafkaBroker(tmp_path / "kafka") as broker:
            bootstrap = broker.start()
            broker.stop()        # SIGKILL; stop(grace=15) ends it in order
            broker.start()       # the same address, the same data
            broker.pause()       # SIGSTOP: connections stay open, nothing answers
            broker.resume()

    Args:
        properties: of the broker, added to `PROPERTIES`; kept for every start.
    """

    def __init__(self, folder: Path, *, properties: Mapping[str, str] | None = None) -> None:
        self.kafka = embedded.Kafka(folder, properties=PROPERTIES | dict(properties or {}))
        super().__init__(self.kafka)

    @property
    def bootstrap(self) -> str:
        return self.kafka.bootstrap

    def start(self) -> str:
        """Start it and wait until topics, groups and transactions work; the bootstrap address.

        Raises `ServiceError` or `ChildError`.
        """
        self._start()
        return self.bootstrap


class Valkey(Service):
    """A Valkey (or Redis) server, empty after every start."""

    def __init__(self, folder: Path) -> None:
        self.valkey = embedded.Valkey(folder)
        super().__init__(self.valkey)

    @property
    def url(self) -> str:
        return self.valkey.url

    def start(self) -> str:
        """Start, empty, and return the url. Raises `ServiceError` or `ChildError`."""
        self._start()
        return self.url


def main() -> int:
    """Run one service in the foreground, for developers."""
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__)
    parser.add_argument("service", choices=["kafka", "valkey"])
    service = parser.parse_args().service
    logging.basicConfig(level="INFO")  # says so when it fetches the jars

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix=f"braid-{service}-") as folder:
        server: KafkaBroker | Valkey
        if service == "kafka":
            server = KafkaBroker(Path(folder))
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
