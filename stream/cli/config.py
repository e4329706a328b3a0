"""`braid config`: the settings that hold; `braid acls`, `braid topics`: the set-up of Kafka."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from ..kafka.acls import Role, grants
from ..settings import Settings, origins
from .common import AsJson


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to the command line."""

    @app.command()
    def config(context: typer.Context, as_json: AsJson = False) -> None:
        """The settings that hold, and where each comes from; secrets as stars.

        Example: braid config
        """
        values, froms = settings_of(context).shown(), origins(context.obj)
        if as_json:
            print(
                json.dumps({name: {"value": values[name], "from": froms[name]} for name in froms})
            )
            return
        width = max(map(len, froms))
        for name, where in froms.items():
            print(f"{name:{width}}  {json.dumps(values[name]):24}  {where}")

    @app.command()
    def acls(
        context: typer.Context,
        role: Annotated[Role, typer.Argument(help="The kind of process.")],
        principal: Annotated[str, typer.Option(help="Who gets them.")] = "User:braid",
        as_json: AsJson = False,
    ) -> None:
        """Print the ACLs on Kafka that a role needs, as commands of its tool kafka-acls.sh.

        Example: braid acls worker --principal User:braid-worker
        """
        settings = settings_of(context)
        needed = grants(settings, role)
        if as_json:
            print(json.dumps([asdict(grant) for grant in needed]))
            return
        for grant in needed:
            words = ["kafka-acls.sh", *_administrator(settings), "--add"]
            words += ["--allow-principal", principal]
            for operation in grant.operations:
                words += ["--operation", operation]
            words += [f"--{grant.resource}", grant.name]
            words += ["--resource-pattern-type", "prefixed"] if grant.prefixed else []
            print(shlex.join(words))

    @app.command()
    def topics(context: typer.Context, as_json: AsJson = False) -> None:
        """Print braid's topics, as commands of Kafka's tool kafka-topics.sh that make them.

        Example: braid topics
        """
        from ..kafka.topics import plan

        settings = settings_of(context)
        planned = plan(settings, settings.generation)
        if as_json:
            print(json.dumps([asdict(topic) for topic in planned]))
            return
        for topic in planned:
            words = ["kafka-topics.sh", *_administrator(settings), "--create", "--if-not-exists"]
            words += ["--topic", topic.name, "--partitions", str(topic.partitions)]
            words += ["--replication-factor", str(topic.replication)]
            for name, value in topic.config.items():
                words += ["--config", f"{name}={value}"]
            print(shlex.join(words))


def _administrator(settings: Settings) -> list[str]:
    secured = settings.kafka.security_protocol != "PLAINTEXT"
    config = ["--command-config", "admin.properties"] if secured else []
    return ["--bootstrap-server", settings.kafka.bootstrap, *config]
