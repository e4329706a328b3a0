"""All processes on a secured Apache Kafka under the documented ACLs, and without one of them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer as RawProducer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBindingFilter,
    AclPermissionType,
    AdminClient,
)

from braid.index.client import Client
from braid.stream.cli.main import app
from braid.stream.cli.reports import status
from braid.stream.cli.up import config_file, secured_services
from braid.stream.errors import AccessError, EmbeddedError
from braid.stream.kafka.access import allow, bindings, check_access, constant
from braid.stream.kafka.acls import ROLES, Grant, Role, grants
from braid.stream.kafka.admin import Admin, Topic
from braid.stream.kafka.client import create
from braid.stream.kafka.packing import pack
from braid.stream.kafka.producer import Producer
from braid.stream.local.child import ChildError, free_port
from braid.stream.local.embedded import JVM
from braid.stream.local.fleet import Fleet
from braid.stream.local.secured import ADMIN, SecuredKafka
from braid.stream.settings import Settings, load
from tests.conftest import missing
from tests.stream.harness import sink_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.timeout(900)]

RECORDS = 60
# What this run does not come to.
RARE = {
    # A sink looks there for transactions whose end markers a broker lost (kafka/hanging.py).
    *(f"worker: Read {topic}" for topic in ("vectors.", "predictions", "dead-letters")),
    *(f"ingest: Read {topic}" for topic in ("records", "parts", "dead-letters")),
    *(f"ingest: Write {topic}" for topic in ("parts", "dead-letters")),  # of other messages
    "index: Read records",  # a thumbnail that Redis has lost
    "worker: Read parts-seen",  # the state of the join, after a rebalance
    "trainer: Create vectors.",  # retrain --promote of another space
    "operator: Read predictions",  # models canary
    *(f"operator: Delete {name}" for name in ("vectors.", "braid-embed-")),  # models drop
}
DECISION = re.compile(
    r"Principal = User:(\S+) is (Allowed|Denied) operation = (\w+) from host = \S+ "
    r"on resource = (\w+):LITERAL:(\S+) for request = (\w+)"
)


@dataclass
class Stack:
    """The services of `braid up --secured`, and the settings of each role."""

    settings: Settings
    own: dict[Role, Settings]

    @property
    def admins(self) -> Settings:
        """Of the administrator."""
        values = self.own["worker"].kafka.model_dump() | {"sasl_username": ADMIN}
        users = Path(str(values["sasl_password_file"])).parent
        values["sasl_password_file"] = users / f"{ADMIN}.password"
        return load(kafka=values)

    @property
    def admin(self) -> AdminClient:
        return create(AdminClient, self.admins)

    @property
    def log(self) -> Path:
        """The broker's, which has each decision of its authoriser."""
        return self.settings.home / "services" / "secured" / "kafka" / "kafka.log"

    def decisions(self, start: int) -> dict[tuple[str, str, str, str], set[str]]:
        """(user, decision, resource, name) -> operations, from a position in the log on."""
        made: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
        for user, decision, operation, kind, name, _ in DECISION.findall(
            self.log.read_text()[start:]
        ):
            made[user, decision, kind, name].add(operation)
        return made

    def without(self, role: Role, grant: Grant, operation: str) -> None:
        """Take one operation from a role."""
        (binding,) = bindings(
            [Grant(grant.resource, grant.name, (operation,), grant.prefixed)], role
        )
        fields = (binding.restype, binding.name, binding.resource_pattern_type, binding.principal)
        one = AclBindingFilter(*fields, "*", binding.operation, AclPermissionType.ALLOW)
        admin = self.admin  # its futures fail when it is collected
        (done,) = admin.delete_acls([one]).values()
        assert len(done.result()) == 1


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, _three_versions: Path) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("acls") / "home"
    shutil.copytree(_three_versions, home / "models")
    settings = Settings(
        home=home,
        kafka={"partitions": 2},
        http={"port": free_port()},
        index={"snapshot_every_s": 1.0},
        model={"name": "tiny", "poll_s": 0.5},
        sources=[{"topic": "shop", "map": {"id": "id", "text": "text"}}],
        refresh={"rollback_window_s": 1.0},
    )
    with pytest.MonkeyPatch.context() as patch:
        log = "-Dorg.slf4j.simpleLogger.log.kafka.authorizer.logger=debug"
        patch.setattr(SecuredKafka, "jvm", [*JVM, log])
        try:
            with secured_services(settings) as (own, _):
                made = Stack(settings, own)
                shop = Topic(name="shop", partitions=1, replication=1, config={})
                Admin(made.admins).create([shop])
                yield made
        except EmbeddedError as error:
            missing(str(error))


@pytest.mark.parametrize("role", list(ROLES))
def test_what_is_missing_is_named_at_the_start(stack: Stack, role: Role) -> None:
    """An operation on each topic and group in turn; nothing else is."""
    settings = stack.own[role]
    check_access(settings, role, "g0001")
    for grant in grants(stack.settings, role):
        if grant.resource == "transactional-id":
            continue
        operation = grant.operations[0]
        # Without any right on a topic the broker tells of none.
        words = re.compile(rf"{operation}\b[^;]* on {grant.resource} {named(stack, grant)[0]}")

        def named_now(words: re.Pattern[str] = words) -> bool:
            return words.search(refusal(settings, role)) is not None

        stack.without(role, grant, operation)
        wait_for(words.pattern, named_now, timeout=20)
        assert refusal(settings, role).count(" on ") == len(named(stack, grant))
        allow(stack.admin, [grant], role)
    wait_for("all is back", lambda: not refusal(settings, role), timeout=20)


def named(stack: Stack, grant: Grant) -> list[str]:
    """The existing resources that a grant covers."""
    if grant.resource == "topic":
        names = ["records", "parts", "parts-seen", "vectors.g0001", "predictions", "statistics"]
        names += ["models", "dead-letters", "dead-letters-replayed", "shop"]
        names += [stack.settings.changelog(name) for name in ("drift-windows", "drift-versions")]
    else:
        names = [stack.settings.group("g0001"), stack.settings.ingest_group("shop"), grant.name]
    return sorted({name for name in names if grant.covers(name) and not name.endswith("-")})


def refusal(settings: Settings, role: Role) -> str:
    try:
        check_access(settings, role, "g0001")
    except AccessError as error:
        return str(error)
    return ""


def test_a_missing_transactional_id_is_named(stack: Stack) -> None:
    grant = next(g for g in grants(stack.settings, "worker") if g.resource == "transactional-id")
    id_ = f"{grant.name}g0001-somewhere"
    stack.without("worker", grant, "Write")
    try:
        sink = sink_of(stack.own["worker"], id_)

        def opened() -> str:
            try:
                sink.open()
            except AccessError as error:
                return str(error)
            sink.close()
            return ""

        wait_for(
            "it is refused", lambda: f"Write on transactional-id {id_}" in opened(), timeout=20
        )
    finally:
        allow(stack.admin, [grant], "worker")


def test_a_process_without_a_right_ends_and_says_which(stack: Stack) -> None:
    grant = next(g for g in grants(stack.settings, "worker") if g.name == "predictions")
    stack.without("worker", grant, "Write")
    try:
        wait_for("it is gone", lambda: bool(refusal(stack.own["worker"], "worker")), timeout=20)
        with (
            Fleet(stack.own["worker"], stack.settings.home / "ends") as fleet,
            pytest.raises(ChildError, match=r"(?s)status 78.*Write on topic predictions: not auth"),
        ):
            fleet.run("embed", timeout=120)

        async def send() -> None:
            async with Producer(stack.own["operator"].replace(prefix="other-")) as producer:
                await producer.send(id="a", text="a")

        with pytest.raises(AccessError, match="Write on topic other-records is missing"):
            asyncio.run(send())
        with pytest.raises(AccessError, match="Describe on group braid-embed-g0001 is missing"):
            status(stack.own["producer"])
    finally:
        allow(stack.admin, [grant], "worker")


def test_every_process_works_under_its_acls_and_each_is_needed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records to search results, a new generation, dead letters: by six users, each with its own
    rights. The broker's log names every operation: none is denied, and none is granted in vain."""

    def braid(role: Role, *words: str) -> Any:
        monkeypatch.setenv("BRAID_CONFIG", str(config_file(stack.settings, role)))
        capsys.readouterr()
        app(args=[*words, "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    async def send(first: int, last: int) -> None:
        async with Producer(stack.own["producer"]) as producer:
            for number in range(first, last):
                colour = ("red", "blue")[number % 2]
                text = f"a {colour} tile {number}"
                await producer.send(id=f"r{number}", text=text, labels={"colour": colour})

    def searchable() -> int:
        return client.status().records if client.ready() else -1

    for role in ROLES:
        wait_for(f"{role} has its rights", lambda: not refusal(stack.own[role], role), timeout=20)  # noqa: B023
    start = len(stack.log.read_text())
    asyncio.run(send(0, RECORDS))
    braid("operator", "models", "promote", "tiny-0001", "--force")
    logs = stack.settings.home / "logs"
    client_url = f"http://127.0.0.1:{stack.settings.http.port}"
    with (
        Fleet(stack.own["worker"], logs) as fleet,
        Client(client_url) as client,
    ):
        fleet.start("embed")
        fleet.start("index", settings=stack.own["index"])
        fleet.start("ingest", settings=stack.own["ingest"])
        fleet.check()
        wait_for("records are searchable", lambda: searchable() == RECORDS, timeout=60)
        trained = braid("trainer", "retrain", "--preset", "tiny", "--heads-only")
        assert trained["version"] == 4
        lines = stack.settings.home / "more.jsonl"
        lines.write_text(json.dumps({"id": "line", "text": "a green tile"}) + "\n")
        braid("producer", "produce", str(lines))
        shop = create(RawProducer, stack.admins)
        shop.produce("shop", value=b'{"id": "bag", "text": "a blue bag"}')
        assert shop.flush(30) == 0

        braid("operator", "models", "promote", "tiny-0003", "--force", "--drop-missing")
        wait_for("it flips", lambda: client.status().generation == "g0002", timeout=60)
        old = stack.settings.vectors_topic("g0001")
        admin = Admin(stack.own["worker"])
        wait_for("g0001 is gone", lambda: old not in admin.partition_counts(), timeout=60)
        client.delete("r0")
        wait_for("all but r0", lambda: searchable() == RECORDS + 1, timeout=60)

        raw = create(RawProducer, stack.own["producer"])
        part = {"v": 1, "id": "part", "text": "a part", "expects": ["text"]}
        for topic, key, value in (
            ("records", b"bad", b"\xc1"),
            ("parts", b"bad-part", b"\xc1"),
            ("parts", b"part", pack(part)),
        ):
            raw.produce(stack.settings.topic(topic), key=key, value=value)
        assert raw.flush(30) == 0
        wait_for("the part is a record", lambda: searchable() == RECORDS + 2, timeout=60)
        letters = lambda: braid("operator", "status")["dead_letters"]["total"]  # noqa: E731
        wait_for("dead letters", lambda: letters() == 2, timeout=60)
        with pytest.raises(SystemExit):  # they fail again
            braid("operator", "dead-letters", "replay", "--wait", "30")
        assert braid("operator", "dead-letters", "list")["replayed"] == 2
        httpx.get(f"{client_url}/v1/dead-letters").raise_for_status()
        braid("operator", "dead-letters", "purge", "--before", "0s", "--yes")
        checks = braid("operator", "doctor")
        assert [name for name, check in checks.items() if not check["ok"]] == []
        fleet.check()

    decisions = stack.decisions(start)
    denied = {
        key: made for key, made in decisions.items() if key[0] in ROLES and key[1] == "Denied"
    }
    assert denied == {}
    unused = {
        f"{role}: {operation} {grant.name}"
        for role in ROLES
        for grant in grants(stack.settings, role)
        for operation in grant.operations
        if not any(
            key[0] == role
            and key[2].lower() == grant.resource.replace("-", "")
            and grant.covers(key[3])
            and constant(operation) in made
            for key, made in decisions.items()
        )
    }
    assert unused == RARE
    secrets = [file.read_text() for file in stack.settings.home.rglob("users/*.password")]
    assert secrets
    for file in logs.glob("*.log"):
        assert [secret for secret in secrets if secret in file.read_text()] == []
