"""What is produced while faults happen: records, updates, parts, deletions, poison, by a seed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
from confluent_kafka import Producer

from braid.stream.kafka.client import PARTITIONER
from braid.stream.settings import Settings
from tests.chaos.worker import PNG

SENT_WITHIN_S = 300.0  # a message waits so long for a broker that is away
KINDS = {
    "new": 55, "update": 14, "picture": 8, "delete": 5, "parts": 11, "undecodable": 2, "media": 2,
    "raise": 1, "nan": 0.5, "memory": 0.5, "bad part": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it was produced."""

    topic: str
    key: bytes
    value: bytes | None


def messages(count: int, seed: int) -> Iterator[Message]:
    """`count` messages on `records` and `parts`, the same for a seed."""
    chance = random.Random(seed)
    plain: list[str] = []
    made = 0
    while made < count:
        made += 1
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        text = f"text {made} of seed {seed}"
        if kind in ("update", "delete") and not plain:
            kind = "new"
        if kind == "new":
            plain.append(f"r{made}")
            yield record(plain[-1], made, text=text)
        elif kind == "update":
            yield record(chance.choice(plain), made, text=text)
        elif kind == "delete":
            yield Message("records", chance.choice(plain).encode(), None)
        elif kind == "picture":
            yield record(f"i{made}", made, text=text, image={"data": PNG + b"%d" % made})
        elif kind == "media":
            yield record(f"m{made}", made, image={"data": b"broken %d" % made})
        elif kind == "undecodable":
            yield Message("records", b"u%d" % made, b"\xc1" + chance.randbytes(20))
        elif kind == "bad part":
            yield Message("parts", b"b%d" % made, b"\xc1" + chance.randbytes(20))
        elif kind == "parts":
            made += 1
            both: list[dict[str, Any]] = [
                {"text": text},
                {"image": {"data": PNG + b"part %d" % made}},
            ]
            chance.shuffle(both)
            for part in both:
                yield record(f"p{made}", made, "parts", expects=["text", "image"], **part)
        else:
            yield record(f"{kind}-{made}", made, text=text)


def record(id_: str, ts: int, topic: str = "records", **fields: Any) -> Message:
    """A message that obeys the schema."""
    value: bytes = msgpack.packb({"v": 1, "id": id_, "ts": 1_700_000_000_000 + ts, **fields})
    return Message(topic, id_.encode(), value)


class Flow:
    """Sends messages on a thread, at a rate, until all are acknowledged.

    The producer is idempotent: a broker that is killed gets each message once, and in order.

    Args:
        settings: with the broker's own address.
        per_second: messages.
    """

    def __init__(self, settings: Settings, sent: list[Message], *, per_second: float) -> None:
        self._settings, self._messages, self._per_second = settings, sent, per_second
        self._errors: list[str] = []
        self.hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Flow:
        self._thread.start()
        return self

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raises AssertionError if a message was not acknowledged."""
        assert not self._errors, f"{len(self._errors)} messages were not sent: {self._errors[:3]}"

    def _run(self) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self._settings.kafka.bootstrap,
                "enable.idempotence": True,
                "partitioner": PARTITIONER,
                "delivery.timeout.ms": int(SENT_WITHIN_S * 1000),
                "linger.ms": 5,
                "log_level": 0,
            }
        )
        began = time.monotonic()
        for number, message in enumerate(self._messages):
            producer.produce(
                self._settings.topic(message.topic), key=message.key, value=message.value,
                on_delivery=self._delivered,
            )  # fmt: skip
            producer.poll(0)
            ahead = number / self._per_second - (time.monotonic() - began)
            if ahead > 0.01 and not self.hurry.is_set():
                time.sleep(ahead)
        if left := producer.flush(SENT_WITHIN_S):
            self._errors.append(f"{left} are left over")

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self._errors.append(str(error))
