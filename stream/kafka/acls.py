"""What braid's processes do on Kafka: the ACLs that the principal of each needs.

The checks at the start, the reference, `braid acls` and the tests take them from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..settings import Settings

Role = Literal["worker", "index", "trainer", "ingest", "producer", "operator"]
ROLES: dict[Role, str] = {
    "worker": "`braid embed`",
    "index": "`braid index`",
    "trainer": "`braid retrain`",
    "ingest": "`braid ingest`",
    "producer": "`braid produce`, `braid.Producer`",
    "operator": "`braid status`, `doctor`, `models`, `dead-letters` and the other commands",
}
READ, WRITE, CREATE, DELETE = "Read", "Write", "Create", "Delete"
DESCRIBE, CONFIGS = "Describe", "DescribeConfigs"


@dataclass(frozen=True, slots=True)
class Grant:
    """Operations on a resource, or on each whose name begins with this one's.

    Attributes:
        operations: as Kafka's tools write them; Read, Write and Delete include Describe.
    """

    resource: Literal["topic", "group", "transactional-id"]
    name: str
    operations: tuple[str, ...]
    prefixed: bool = False

    def covers(self, name: str) -> bool:
        return name.startswith(self.name) if self.prefixed else name == self.name


def grants(settings: Settings, role: Role) -> list[Grant]:
    """What a role needs while all topics but those of later generations exist."""
    prefix = settings.prefix

    def topic(name: str, *operations: str) -> Grant:
        return Grant("topic", settings.topic(name), operations)

    def vectors(*operations: str) -> Grant:
        return Grant("topic", settings.topic("vectors."), operations, prefixed=True)

    def embedding(*operations: str) -> Grant:
        return Grant("group", f"{prefix}braid-embed-", operations, prefixed=True)

    reader = Grant("group", settings.reading_group, (DESCRIBE,))
    replay = f"{prefix}braid-dead-letters-replay"
    table: dict[Role, list[Grant]] = {
        "worker": [
            topic("records", READ, WRITE, CONFIGS),
            topic("parts", READ, WRITE, CONFIGS),
            topic("parts-seen", READ, WRITE, CONFIGS),
            vectors(READ, WRITE, CONFIGS),
            topic("predictions", READ, WRITE, CONFIGS),
            topic("dead-letters", READ, WRITE, CONFIGS),
            topic("statistics", READ, WRITE, CONFIGS),
            topic("models", READ, WRITE, CONFIGS),
            Grant("topic", f"{settings.app_id}-", (READ, WRITE, CONFIGS), prefixed=True),
            embedding(READ),
            Grant("group", f"{prefix}braid-join", (READ,)),
            Grant("group", settings.app_id, (READ,)),
            Grant("transactional-id", f"{prefix}braid-embed-", (WRITE,), prefixed=True),
            Grant("transactional-id", f"{prefix}braid-join-", (WRITE,), prefixed=True),
            reader,
        ],
        "index": [
            topic("records", READ, WRITE, CONFIGS),
            vectors(READ, DELETE, CONFIGS),
            topic("models", READ, WRITE),
            topic("dead-letters", READ),
            embedding(DELETE),
            reader,
        ],
        "trainer": [
            topic("records", READ, CONFIGS),
            vectors(CREATE, DESCRIBE),
            topic("models", READ, WRITE),
            embedding(DESCRIBE),
            reader,
        ],
        "ingest": [
            *(Grant("topic", source.topic, (READ,)) for source in settings.sources),
            topic("records", READ, WRITE),
            topic("parts", READ, WRITE),
            topic("dead-letters", READ, WRITE),
            Grant("group", settings.ingest_group(""), (READ,), prefixed=True),
            Grant("transactional-id", settings.ingest_group(""), (WRITE,), prefixed=True),
            reader,
        ],
        "producer": [topic("records", WRITE), topic("parts", WRITE)],
        "operator": [
            topic("records", READ, WRITE, CONFIGS),
            topic("parts", READ, WRITE),
            vectors(CREATE, DELETE),
            topic("predictions", READ),
            topic("dead-letters", READ, DELETE, CONFIGS),
            topic("dead-letters-replayed", READ, WRITE),
            topic("models", WRITE),
            embedding(DELETE),
            Grant("group", f"{prefix}braid-join", (DESCRIBE,)),
            *(Grant("topic", source.topic, (DESCRIBE,)) for source in settings.sources),
            Grant("group", settings.ingest_group(""), (DESCRIBE,), prefixed=True),
            Grant("group", replay, (READ,)),
            Grant("transactional-id", replay, (WRITE,)),
            reader,
        ],
    }
    return table[role]
