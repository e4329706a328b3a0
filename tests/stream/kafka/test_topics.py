"""Topics that an operator made beforehand: what differs is said; what a role touches is made."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from braid.stream.cli.main import app
from braid.stream.errors import ConfigError
from braid.stream.kafka.access import check_access, prepare
from braid.stream.kafka.acls import ROLES, grants
from braid.stream.kafka.admin import Admin, Topic
from braid.stream.kafka.topics import differences, ensure, plan
from braid.stream.settings import Settings
from tests.conftest import Topics


@pytest.fixture
def settings(kafka: str, tmp_path: Path) -> Iterator[Settings]:
    made = Settings(
        home=tmp_path,
        prefix=f"t{uuid.uuid4().hex[:8]}-",
        kafka={"bootstrap": kafka, "partitions": 2},
    )
    yield made
    admin = Admin(made)
    if names := [name for name in admin.partition_counts() if name.startswith(made.prefix)]:
        admin.delete(names)


@pytest.mark.kafka
def test_what_differs_is_named_for_each_topic(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"cleanup.policy": "delete", "max.message.bytes": "1000000"}
    records = Topic(name=settings.topic("records"), partitions=3, replication=1, config=config)
    larger = {"cleanup.policy": "compact", "max.message.bytes": "50000000"}
    seen = next(t for t in plan(settings, "g0001") if t.name == settings.topic("parts-seen"))
    other = Topic(name=seen.name, partitions=3, replication=1, config={**seen.config, **larger})
    Admin(settings).create([records, other])
    assert prepare(settings, "g0001", "worker") == 3  # as many as records has
    line = (
        f"topic {records.name}: cleanup.policy is delete, braid makes it compact, "
        "max.message.bytes is 1000000, braid makes it 16842752, "
        "compression.type is producer, braid makes it uncompressed"
    )
    assert differences(settings, "g0001", "worker") == [line]
    assert line in caplog.messages
    check_access(settings, "worker", "g0001")  # where there are no ACLs all is allowed


@pytest.mark.kafka
def test_a_role_makes_only_the_topics_that_it_touches(settings: Settings) -> None:
    def made() -> set[str]:
        names = Admin(settings).partition_counts()
        return {name.removeprefix(settings.prefix) for name in names if settings.prefix in name}

    ensure(settings, "g0001", role="producer")
    assert made() == {"records", "parts"}
    ensure(settings, "g0001")
    assert len(made()) == len(plan(settings, "g0001"))


@pytest.mark.kafka
@pytest.mark.parametrize("ask", [Admin.ends, partial(Admin.offsets_at, ts_ms=0)])
def test_partitions_that_are_not_known_yet_are_asked_for_again(
    settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., object]
) -> None:
    name, tries, sleep = topics.create("grows", partitions=1), [], time.sleep

    def grow(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 1:
            grown = AdminClient({"bootstrap.servers": settings.kafka.bootstrap})
            grown.create_partitions([NewPartitions(name, 2)])[name].result(30)
        sleep(seconds)

    monkeypatch.setattr("braid.stream.kafka.connection.time.sleep", grow)
    assert ask(Admin(settings, timeout_s=10), name, 2) in ({0: (0, 0), 1: (0, 0)}, {})
    assert tries


@pytest.mark.kafka
def test_another_number_of_partitions_ends_the_start(settings: Settings) -> None:
    def topic(name: str, partitions: int) -> Topic:
        full = settings.topic(name)
        return Topic(name=full, partitions=partitions, replication=1, config={})

    Admin(settings).create([topic("records", 2), topic("parts", 3)])
    with pytest.raises(ConfigError, match=r"parts has 3 partitions, .*records has 2"):
        prepare(settings, "g0001", "producer")


def test_the_commands_for_an_administrator(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def printed(*words: str) -> str:
        app(args=["--prefix", "p-", *words], standalone_mode=False)
        return capsys.readouterr().out

    settings = Settings(prefix="p-")
    for role in ROLES:
        lines = [shlex.split(line) for line in printed("acls", role).splitlines()]
        needed = grants(settings, role)
        named = [
            line[line.index(f"--{grant.resource}") + 1]
            for line, grant in zip(lines, needed, strict=True)
        ]
        assert named == [grant.name for grant in needed]
        assert [("prefixed" in line) for line in lines] == [grant.prefixed for grant in needed]
    topics = [shlex.split(line) for line in printed("topics").splitlines()]
    names = [line[line.index("--topic") + 1] for line in topics]
    assert names == [topic.name for topic in plan(settings, "g0001")]
    as_json = json.loads(printed("acls", "producer", "--json"))
    assert as_json[0] == asdict(grants(settings, "producer")[0]) | {"operations": ["Write"]}
