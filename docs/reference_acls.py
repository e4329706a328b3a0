"""The reference of the ACLs on Kafka, from the roles in `stream/kafka/acls.py`."""

from __future__ import annotations

from reference_markdown import code, page, table

from braid.stream.kafka import acls
from braid.stream.settings import Settings
from braid.stream.settings.source_groups import Source


def acls_page() -> str:
    own = Source.model_validate({"topic": "your-topic", "map": {"id": "id", "text": "text"}})
    settings = Settings.model_construct(prefix="", sources=[own])
    parts = [
        "What the principal of each process needs on a Kafka with ACLs, beside a set-up whose "
        "topics exist; [how to](../how-to/secure.md#acls). Every name is preceded by `prefix`; "
        "`vectors.*` are all names that begin so. Read, Write and Delete include Describe.",
        "One that also makes missing topics needs Create on them, or on the cluster.",
    ]
    for role, commands in acls.ROLES.items():
        rows = [
            [grant.resource, code(grant.name + "*" * grant.prefixed), ", ".join(grant.operations)]
            for grant in acls.grants(settings, role)
        ]
        table_ = table(["resource", "name", "operations"], rows)
        parts += [f"## {role.capitalize()}", f"{commands}.", table_]
    return page("ACLs on Kafka", *parts)
