"""The start of a process on Kafka: whether it may do what it needs, and whether the topics fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from ..errors import AccessError
from ..settings import Settings
from .acls import Grant, Role, grants
from .admin import Admin
from .client import mapped
from .topics import differences, ensure, plan

log = logging.getLogger(__name__)

KINDS = ("topic", "group")  # of which the broker tells what is allowed
HOW = "(docs/how-to/secure.md, ACLs)"


def missing(
    settings: Settings, role: Role, generation: str, *, timeout_s: float | None = None
) -> list[str]:
    """What this client may not do of what the role needs, as "Write on topic predictions".

    Topics that do not exist, transactional ids, and brokers that do not tell are left out.

    Raises:
        AccessError: the broker refuses this client altogether.
        Unreachable: no broker answered.
    """
    admin, needed = Admin(settings, timeout_s=timeout_s), grants(settings, role)
    admin.partition_counts()  # which says why a broker is not reached
    names = {
        kind: [g.name for g in needed if g.resource == kind and not g.prefixed] for kind in KINDS
    }
    names["topic"] += [topic.name for topic in plan(settings, generation, role)]
    names["group"].append(settings.group(generation))
    names["group"] += [settings.ingest_group(source.title) for source in settings.sources]

    def covered(kind: str) -> list[str]:
        granted = [grant for grant in needed if grant.resource == kind]
        listed = [name for name in names[kind] if any(g.covers(name) for g in granted)]
        return list(dict.fromkeys(listed))

    allowed = {
        "topic": admin.allowed_on_topics(covered("topic")),
        "group": admin.allowed_on_groups(covered("group")),
    }
    lacks = []
    for grant in needed:
        for name, operations in allowed.get(grant.resource, {}).items():
            if grant.covers(name) and operations is not None:
                absent = [one for one in grant.operations if constant(one) not in operations]
                lacks += [f"{', '.join(absent)} on {grant.resource} {name}"] if absent else []
    return lacks


def check_access(
    settings: Settings, role: Role, generation: str, *, timeout_s: float | None = None
) -> None:
    """Raises AccessError: names each operation and resource that the role needs and has not."""
    if lacks := missing(settings, role, generation, timeout_s=timeout_s):
        reason = f"{'; '.join(lacks)}: not authorised as {role} {HOW}"
        raise AccessError(f"Kafka at {settings.kafka.bootstrap}: {reason}", reason=reason)


def prepare(
    settings: Settings, generation: str, role: Role, *, timeout_s: float | None = None
) -> int:
    """The start of a process: rights, missing topics, and what existing ones have unlike braid's.

    Returns:
        The partition count, as `ensure`.

    Raises:
        AccessError, ConfigError, Unreachable: as `check_access` and `ensure`.
    """
    check_access(settings, role, generation, timeout_s=timeout_s)
    partitions = ensure(settings, generation, role=role, timeout_s=timeout_s)
    for line in differences(settings, generation, role):
        log.warning("%s", line)
    return partitions


def bindings(grants: Iterable[Grant], user: str) -> list[AclBinding]:
    """Grants to a user as the admin client takes them."""
    return [
        AclBinding(
            ResourceType[grant.resource.replace("-", "_").upper()],
            grant.name,
            ResourcePatternType.PREFIXED if grant.prefixed else ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            AclOperation[constant(operation)],
            AclPermissionType.ALLOW,
        )
        for grant in grants
        for operation in grant.operations
    ]


def allow(admin: AdminClient, grants: Iterable[Grant], user: str) -> None:
    """Give a user what is granted, as an administrator. Raises BrokerError."""
    for binding, made in admin.create_acls(bindings(grants, user)).items():
        try:
            made.result()
        except KafkaException as error:
            raise mapped(error, f"giving {user} {binding.operation}") from error


def constant(operation: str) -> str:
    """DescribeConfigs as DESCRIBE_CONFIGS."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()
