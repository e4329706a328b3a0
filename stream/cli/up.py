"""`braid up`: all services on this machine until Ctrl-C; a service that ends is restarted."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient

from ..errors import ConfigError
from ..kafka.access import allow
from ..kafka.acls import ROLES, Role, grants
from ..kafka.topics import ensure
from ..local.child import Child
from ..local.embedded import GRACE_S, KAFKA_PORT
from ..local.fleet import Fleet, embedded_services, with_addresses
from ..local.secured import ADMIN, SecuredServices, write_private
from ..local.supervisor import Supervisor
from ..logs import say
from ..settings import Settings
from .common import service_url

CHECK_S = 0.5


def run(settings: Settings, *, secured: bool = False) -> None:
    """Start broker and Redis unless the settings name them, one worker, the index node, and
    `braid ingest` if there are sources.

    Args:
        secured: with TLS, passwords and ACLs, and a user for each role.

    Raises:
        ConfigError: `model` names no folder.
        FileLockError: another process runs the services of this home.
        EmbeddedError, ChildError: a service cannot be started.
        ChildError: a process refused its configuration; the others are stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if secured:
            _run_secured(settings)
        else:
            _run(settings)
    except KeyboardInterrupt:  # during the start, or a second one during the stop
        say("stopped")


def _run(settings: Settings) -> None:
    folder = settings.home / "services"
    with embedded_services(settings, folder, prefer=KAFKA_PORT, grace=GRACE_S) as embedded:
        own = with_addresses(settings, embedded)
        ensure(own, own.generation)
        say(f"KAFKA_BOOTSTRAP={own.kafka.bootstrap}")
        say(f"REDIS_URL={own.redis.url or ''}")
        say(f"the query service will answer at {service_url(own)}; logs: {own.home}/logs")
        say("set the variables above in another terminal to produce, retrain and search")
        _supervise(own, own, own, embedded.children)


def _run_secured(settings: Settings) -> None:
    with secured_services(settings) as (own, children):
        for role in own:
            say(f"{role:9} BRAID_CONFIG={config_file(settings, role)}")
        say(f"Kafka at {own['worker'].kafka.bootstrap}, Redis at {own['worker'].redis.url}")
        say(f"the query service will answer at {service_url(settings)}; logs: {settings.home}/logs")
        say("set BRAID_CONFIG in another terminal: producer to produce, trainer to retrain, ...")
        _supervise(own["worker"], own["index"], own["ingest"], children)


def _supervise(
    worker: Settings, index: Settings, ingest: Settings, servers: Sequence[Child]
) -> None:
    """Run the worker, the index node and the sources until Ctrl-C."""
    with Fleet(worker, worker.home / "logs") as fleet:
        fleet.start("embed")
        fleet.start("index", settings=index)
        if ingest.sources:
            fleet.start("ingest", settings=ingest)
        supervisor = Supervisor([*servers, *fleet.children], say)
        try:
            while True:
                supervisor.check()
                time.sleep(CHECK_S)
        except KeyboardInterrupt:
            say("stopping")


@contextmanager
def secured_services(settings: Settings) -> Iterator[tuple[dict[Role, Settings], list[Child]]]:
    """The settings of each role, whose user has its ACLs, and the servers; the topics are made.

    Raises:
        ConfigError: the settings name servers of their own.
    """
    for name in ("kafka.bootstrap", "kafka.security_protocol", "redis.url"):
        group, _, part = name.partition(".")
        if part in getattr(settings, group).model_fields_set:
            raise ConfigError(f"{name}: must not be set for --secured, which starts the servers")
    folder = settings.home / "services" / "secured"
    services = SecuredServices(folder, list(ROLES), prefer=KAFKA_PORT, grace=GRACE_S)
    with services:
        admin = settings.replace(**services.settings(ADMIN))
        ensure(admin, admin.generation)
        client = AdminClient(services.kafka.client())
        own: dict[Role, Settings] = {}
        for role in ROLES:
            allow(client, grants(settings, role), role)
            own[role] = settings.replace(**services.settings(role))
            _write(config_file(settings, role), own[role])
        yield own, services.children


def config_file(settings: Settings, role: str) -> Path:
    """Where the settings of a role are written, for BRAID_CONFIG."""
    return settings.home / "services" / "secured" / f"{role}.toml"


def _write(path: Path, settings: Settings) -> None:
    """Those settings that differ from the defaults, as TOML; passwords are in their own files."""
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    tables = {name: value for name, value in changed.items() if isinstance(value, Mapping)}
    lines = [*_assigned({name: v for name, v in changed.items() if name not in tables})]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_assigned(table)]
    write_private(path, "".join(f"{line}\n" for line in lines).encode())


def _assigned(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if value is not None:
            key = name if name.isidentifier() and name.isascii() else json.dumps(name)
            yield f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(_assigned(value))}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
