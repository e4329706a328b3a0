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
from types import FrameType
from typing import Self

from braid.stream.errors import EmbeddedError
from braid.stream.local import embedded

# Timeouts short enough that crash tests are quick.
PROPERTIES = {
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}


def chromium_path() -> str:
    """The program of an installed Chromium. Raises EmbeddedError."""
    given = os.environ.get("CHROMIUM")
    names = [given] if given else ["chromium", "chromium-browser", "google-chrome"]
    path = next((result for name in names if (result := shutil.which(name))), None)
    if path is None:
        raise EmbeddedError(f"no Chromium: none of {', '.join(names)} is installed")
    return path


class Service(embedded.Server):
    """A server that a test may kill, pause and start again, as a context manager.

    `start` after `stop` takes the same port; a test that relies on it checks the address.
    """

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.running

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def stop(self, grace: float = 0) -> None:
        """SIGKILL, or SIGTERM and up to `grace` seconds first; a second call does nothing."""
        super().stop(grace)

    def pause(self) -> None:
        """Stop answering while the connections stay open (SIGSTOP)."""
        if self.child is not None:
            self.child.send(signal.SIGSTOP)

    def resume(self) -> None:
        if self.child is not None:
            self.child.send(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class KafkaBroker(Service, embedded.Kafka):
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
        super().__init__(folder, properties=PROPERTIES | dict(properties or {}))


class Valkey(Service, embedded.Valkey):
    """A Valkey (or Redis) server, empty after every start."""


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
        made: dict[str, type[KafkaBroker] | type[Valkey]] = {"kafka": KafkaBroker, "valkey": Valkey}
        server = made[service](Path(folder))
        began = time.monotonic()
        try:
            address = server.start()
            variable = "KAFKA_BOOTSTRAP" if service == "kafka" else "REDIS_URL"
            print(f"{variable}={address}", flush=True)
            print(f"ready in {time.monotonic() - began:.1f} s; Ctrl-C stops it", file=sys.stderr)
            signal.pause()
        except KeyboardInterrupt:
            pass
        except EmbeddedError as error:
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
