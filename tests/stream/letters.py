"""Writes records and dead letters as producers and workers do, for the tests of dead letters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from typer.testing import CliRunner

from braid.stream.cli.main import app
from braid.stream.dead_letters.replay import Replayer
from braid.stream.errors import BadRecord
from braid.stream.kafka.client import Message
from braid.stream.worker.outputs import OutputTopics
from tests.stream.harness import Deployment

ENCODE = BadRecord("image", "RuntimeError: shape", stage="encode", kind="RuntimeError")


@dataclass
class Topics:
    """Writes to the topics of a deployment as producers and workers do, and commits for them."""

    deployment: Deployment

    def __post_init__(self) -> None:
        self.settings = self.deployment.settings
        self.producer = Producer({"bootstrap.servers": self.settings.kafka.bootstrap})

    def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Any = None,
        partition: int = 0,
    ) -> int:
        """Produce one message; its offset."""
        offsets: list[int] = []
        self.producer.produce(
            self.settings.topic(topic),
            key=key,
            value=value,
            partition=partition,
            headers=headers,
            on_delivery=lambda _, sent: offsets.append(int(sent.offset() or 0)),
        )
        assert self.producer.flush(30) == 0
        return offsets[0]

    def bury(
        self,
        key: str,
        value: bytes | None = b"\x00",
        *,
        error: BadRecord | None = None,
        topic: str = "records",
        model: str | None = None,
    ) -> str:
        """A message and the dead letter that it becomes; the letter's id."""
        offset = self.put(topic, key.encode(), value)
        message = Message(
            topic=self.settings.topic(topic),
            partition=0,
            offset=offset,
            key=key.encode(),
            value=value,
            ts=int(1000 * time.time()),
        )
        why = error or BadRecord("text", "is too odd", stage="decode")
        (output,) = OutputTopics(self.settings, self.settings.generation).dead(
            message, why, model=model
        )
        return f"0:{self.put('dead-letters', key.encode(), value, list(output.headers))}"

    def commit(self) -> None:
        """The worker has processed all that is on `records`."""
        group = Consumer(
            {
                "bootstrap.servers": self.settings.kafka.bootstrap,
                "group.id": self.settings.group(self.settings.generation),
            }
        )
        topic = self.settings.topic("records")
        group.commit(
            offsets=[
                TopicPartition(topic, number, end)
                for number, end in self.deployment.ends("records").items()
            ],
            asynchronous=False,
        )
        group.close()

    def replayer(self, **options: Any) -> Replayer:
        groups = {
            self.settings.topic("records"): self.settings.group(self.settings.generation),
            self.settings.topic("parts"): f"{self.settings.prefix}braid-join",
        }
        return Replayer(self.settings, **{"groups": groups, "wait_s": 0.0, **options})

    def texts(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        return [(message.key, message.value) for message in self.deployment.read(topic)]

    def braid(self, *line: str, status: int = 0) -> str:
        done = CliRunner().invoke(
            app, ["dead-letters", *line], env=self.settings.environment(), catch_exceptions=False
        )
        assert done.exit_code == status, done.output
        return done.output
