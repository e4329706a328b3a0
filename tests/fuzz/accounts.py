"""What became of each message: exactly one of an output, a deletion and a dead letter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import PROGRESS_KEY, decode_map, decode_vector
from tests.fuzz.messages import MessageCase

Place = tuple[int, int]  # partition and offset in `records`


@dataclass(slots=True)
class Sent:
    """What is remembered of a message that was sent."""

    name: str
    healthy: bool
    key: bytes
    digest: bytes
    outcomes: list[str] = field(default_factory=list)


class Accounts:
    """Messages as they were sent, and their outcomes as they are read."""

    def __init__(self) -> None:
        self.sent: dict[Place, Sent] = {}
        self.problems: list[tuple[str, str]] = []
        self.kinds = Counter[str]()

    def send(self, case: MessageCase, place: Place) -> None:
        self.sent[place] = Sent(case.name, case.healthy, case.key, digest(case.key, case.value))

    def read_predictions(self, messages: Iterable[Message]) -> None:
        for message in messages:
            source = decode_map(message.value or b"")["source"]
            self._note((source["partition"], source["offset"]), "prediction", message)

    def read_vectors(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if message.key == PROGRESS_KEY:
                continue
            if message.value is None:
                offset = int(dict(message.headers)["source"] or b"-1")
                self._note((message.partition, offset), "deletion", message)
            else:
                offset = decode_vector(message.value).source
                self._note((message.partition, offset), "vector", message)

    def read_dead_letters(self, messages: Iterable[Message]) -> None:
        for message in messages:
            headers = {name: (text or b"").decode() for name, text in message.headers}
            place = (int(headers["partition"]), int(headers["offset"]))
            self._note(place, "dead letter", message)
            self.kinds[f"{headers['stage']} {headers['error']}"] += 1
            sent = self.sent.get(place)
            if sent is None:
                continue
            if not 0 < len(headers["reason"]) <= 500 or " at 0x" in headers["reason"]:
                self.problems.append((sent.name, f"the reason is {headers['reason']!r:.600}"))
            if digest(message.key or b"", message.value) != sent.digest:
                self.problems.append((sent.name, "the dead letter has another key or value"))

    def check(self) -> None:
        """Add to `problems` what has no outcome, more than one, or the wrong one."""
        right = (["deletion"], ["dead letter"], ["prediction", "vector"])
        for sent in self.sent.values():
            outcomes = sorted(sent.outcomes)
            if outcomes not in right:
                self.problems.append((sent.name, f"became {', '.join(outcomes) or 'nothing'}"))
            elif sent.healthy and "prediction" not in outcomes:
                self.problems.append((sent.name, "nothing is wrong with it, and it is refused"))

    def counts(self) -> Counter[str]:
        return Counter(" and ".join(sorted(sent.outcomes)) for sent in self.sent.values())

    def live_ids(self) -> set[bytes]:
        """The ids that the index must hold: of each key the last message that was not refused."""
        live: set[bytes] = set()
        for _, sent in sorted(self.sent.items()):
            if "prediction" in sent.outcomes:
                live.add(sent.key)
            elif "deletion" in sent.outcomes:
                live.discard(sent.key)
        return live

    def unaccounted(self) -> Iterator[str]:
        return (sent.name for sent in self.sent.values() if not sent.outcomes)

    def _note(self, place: Place, outcome: str, message: Message) -> None:
        sent = self.sent.get(place)
        if sent is None:
            self.problems.append((f"{place}", f"a {outcome} of a message that was not sent"))
        else:
            sent.outcomes.append(outcome)


def digest(key: bytes, value: bytes | None) -> bytes:
    hasher = blake2b(len(key).to_bytes(8, "big") + key, digest_size=16)
    hasher.update(b"-" if value is None else b"+" + value)
    return hasher.digest()
