"""A generation that was built takes over from the champion it was begun under, and no other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from typer.testing import CliRunner

from braid.index.metrics import ServiceMetrics
from braid.index.segments.live_store import LiveStore
from braid.index.store import Array, Upsert
from braid.stream.cli.main import app
from braid.stream.cli.reports import status
from braid.stream.errors import RegistryError
from braid.stream.failpoints import FLIP, Failpoints
from braid.stream.index_node.flip_check import Readiness, absent, readiness
from braid.stream.index_node.generations import Manager
from braid.stream.kafka.admin import Admin
from braid.stream.registry.announcements import CHAMPION_KEY, read_all
from braid.stream.registry.generations import GenerationRecord, GenerationRecords
from braid.stream.registry.handover import Handovers, Ownership
from braid.stream.registry.ownership import hand_over, handovers_of
from braid.stream.registry.promotion import (
    drop,
    end_grace,
    flip,
    promote,
    return_abandoned,
    rollback,
    superseded_by,
)
from braid.stream.registry.versions import Champion, Registry
from braid.stream.settings import Settings
from tests.index.histories import make
from tests.index.lite import fresh, opened
from tests.index.oracle import delete, unit, upsert
from tests.stream.harness import Deployment

pytestmark = pytest.mark.kafka

BUILT = GenerationRecord(generation="g0002", model="tiny-0003", space="other", state="building")
FIRST, SAME, OTHER = "tiny-0001", "tiny-0002", "tiny-0003"


def flips(registry: Registry) -> list[tuple[str, str]]:
    """Every handover in force."""
    return [(handover.before, handover.after) for handover in Handovers(registry.log).confirmed()]


def test_who_was_promoted_meanwhile_is_not_replaced_unasked(
    deployment: Deployment, three_versions: Registry
) -> None:
    settings, registry = deployment.settings, three_versions
    promote(settings, registry, FIRST)
    begun = promote(settings, registry, OTHER)
    assert isinstance(begun, GenerationRecord)
    assert (begun.generation, begun.seq) == ("g0002", 1)
    assert superseded_by(registry, begun) is None

    promote(settings, registry, SAME)
    reason = superseded_by(registry, begun)
    assert reason is not None
    assert "number 2 (tiny-0002) was promoted since" in reason

    def take_over(entry: GenerationRecord) -> Champion:
        now_ms = 1000 * time.time()
        return flip(
            settings,
            registry,
            entry.generation,
            entry.model,
            why="built",
            now_ms=now_ms,
            after=entry.seq,
        )

    with pytest.raises(RegistryError, match=r"number 2 \(tiny-0002\) was promoted since"):
        take_over(begun)
    assert flips(registry) == []

    again = promote(settings, registry, OTHER)  # asked for once more: it goes on
    assert isinstance(again, GenerationRecord)
    assert (again.generation, again.state, again.seq) == ("g0002", "building", 2)
    flipped = take_over(again)
    assert (flipped.name, flipped.generation, flipped.seq) == (OTHER, "g0002", 3)
    assert flips(registry) == [("g0001", "g0002")]
    assert superseded_by(registry, again) is None  # it did take over
    with pytest.raises(RegistryError, match=r"number 3 \(tiny-0003\) was promoted since"):
        take_over(again)  # a second node comes too late, and nothing goes back
    assert flips(registry) == [("g0001", "g0002")]
    back = rollback(settings, registry)
    assert (back.name, back.generation) == (SAME, "g0001")
    assert flips(registry) == [("g0001", "g0002"), ("g0002", "g0001")]


def test_status_tells_of_the_generation_that_serves(
    deployment: Deployment, three_versions: Registry
) -> None:
    """After a flip, and when the group of the generation before is deleted."""
    settings, registry = deployment.settings, three_versions
    deployment.produce({"id": f"r{number}", "text": "a red tile"} for number in range(12))

    def told() -> tuple[str, str, int]:
        node = status(settings)
        return node["generation"], node["vectors_topic"], sum(node["lag"].values())

    def embedded(generation: str) -> None:
        topic = settings.topic("records")
        ends = Admin(settings).ends(topic, settings.kafka.partitions)
        group = Consumer(
            {
                "bootstrap.servers": settings.kafka.bootstrap,
                "group.id": settings.group(generation),
            }
        )
        group.commit(
            offsets=[TopicPartition(topic, n, end) for n, (_, end) in ends.items()],
            asynchronous=False,
        )
        group.close()

    promote(settings, registry, FIRST)
    assert told() == ("g0001", f"{settings.prefix}vectors.g0001", 12)
    embedded("g0001")
    assert told() == ("g0001", f"{settings.prefix}vectors.g0001", 0)
    promote(settings, registry, OTHER)
    assert told()[0] == "g0001", "the other is only being built"
    flip(settings, registry, "g0002", OTHER, why="built", now_ms=1000 * time.time())
    assert told() == ("g0002", f"{settings.prefix}vectors.g0002", 12)
    embedded("g0002")
    before = GenerationRecords(registry.log).get("g0001")
    assert before is not None
    drop(settings, registry, before.generation, why="its grace was over")
    assert told() == ("g0002", f"{settings.prefix}vectors.g0002", 0)


def test_predictions_never_stay_with_a_generation_that_is_dropped(
    deployment: Deployment, three_versions: Registry
) -> None:
    """Whoever made the flip died between the handover and the promotion."""
    settings, registry = deployment.settings, three_versions
    promote(settings, registry, FIRST)
    begun = promote(settings, registry, OTHER)
    assert isinstance(begun, GenerationRecord)
    hand_over(settings, registry, "g0001", "g0002")
    hand_over(settings, registry, "g0001", "g0002")  # it is so already
    assert flips(registry) == [("g0001", "g0002")]
    drop(settings, registry, begun.generation, why="dropped by hand")
    assert flips(registry) == [("g0001", "g0002"), ("g0002", "g0001")]
    dropped = GenerationRecords(registry.log).get("g0002")
    assert dropped is not None
    assert dropped.state == "dropped"


def test_predictions_go_back_when_the_flip_that_they_were_handed_over_for_never_comes(
    deployment: Deployment, three_versions: Registry
) -> None:
    settings, registry = deployment.settings, three_versions
    promote(settings, registry, FIRST)
    promote(settings, registry, OTHER)
    hand_over(settings, registry, "g0001", "g0002")
    now_ms = 1000 * time.time()
    return_abandoned(settings, registry, now_ms=now_ms)  # it may be about to come
    assert flips(registry) == [("g0001", "g0002")]
    for _ in range(2):
        return_abandoned(settings, registry, now_ms=now_ms + 3_600_000)
        assert flips(registry) == [("g0001", "g0002"), ("g0002", "g0001")]
    flip(settings, registry, "g0002", OTHER, why="built", now_ms=now_ms)
    return_abandoned(settings, registry, now_ms=now_ms + 3_600_000)
    assert flips(registry)[2:] == [("g0001", "g0002")]


def test_a_model_of_another_space_waits_until_it_is_built(
    deployment: Deployment, three_versions: Registry
) -> None:
    """Nobody runs who could build it: the champion stays, and no second one is begun."""
    registry = three_versions
    assert registry.root == deployment.settings.models_dir

    def models(*arguments: str, status: int = 0) -> Any:
        """A `braid models` command: its JSON, or what it fails with."""
        done = CliRunner().invoke(
            app, ["models", *arguments, "--json"], env=deployment.settings.environment()
        )
        assert done.exit_code == status, (done.output, done.exception)
        return json.loads(done.stdout) if status == 0 else str(done.exception)

    models("promote", FIRST)
    entry = models("promote", OTHER)
    assert (entry["generation"], entry["state"]) == ("g0002", "building")
    assert [row["champion"] for row in models("list")] == [True, False, False]
    assert models("promote", OTHER)["generation"] == "g0002"  # the same one
    generation_records = GenerationRecords(registry.log)
    generation_records.put(GenerationRecord(**{**entry, "model": "tiny-0009"}))
    assert "g0002 is being built for tiny-0009" in models("promote", OTHER, status=1)
    assert "no earlier champion" in models("rollback", status=1)
    assert "serves" in models("drop", "g0001", status=1)
    models("drop", "g0002")
    (row,) = models("generations")
    assert (row["state"], row["why"]) == ("dropped", "dropped by hand")
    assert models("promote", OTHER)["generation"] == "g0003"  # a name is never used again


def test_of_two_that_open_a_generation_at_once_one_fails(
    deployment: Deployment, three_versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one came in when this one had looked which there are."""
    settings, registry = deployment.settings, three_versions
    promote(settings, registry, FIRST)
    theirs = GenerationRecord(
        generation="g0002", model="tiny-0009", space="other", state="building"
    )

    def meanwhile(settings: Any, generation: str, *, role: str) -> int:
        GenerationRecords(registry.log).put(theirs)
        return 4

    monkeypatch.setattr("braid.stream.registry.promotion.ensure", meanwhile)
    with pytest.raises(RegistryError, match="another process opened g0002 at the same moment"):
        promote(settings, registry, OTHER)
    assert GenerationRecords(registry.log).all() == [theirs]


FLIPS = """
import sys
from braid.stream.registry.promotion import flip
from braid.stream.registry.versions import Registry
from braid.stream.settings import load
settings = load()
registry = Registry(settings.models_dir, base="tiny")
flip(settings, registry, *sys.argv[1:], why="built", now_ms=1e6)
"""


@pytest.mark.parametrize("point", FLIP)
def test_a_flip_that_was_killed_is_finished_by_whoever_looks_next(
    deployment: Deployment, three_versions: Registry, point: str
) -> None:
    """The first flip of all: of the generation that served until then no file tells yet."""
    settings, registry = deployment.settings, three_versions
    generation_records = GenerationRecords(registry.log)
    promote(settings, registry, FIRST)
    promote(settings, registry, OTHER)
    env = {"BRAID_FAILPOINT": f"{point}:kill"}
    assert deployment.child("flip", ["-c", FLIPS, "g0002", OTHER], env).wait(120) == -9
    champion = registry.champion()
    assert champion is not None
    done = point != "flip-handed-over"
    assert champion.generation == ("g0002" if done else "g0001")
    assert generation_records.fed() == {
        "g0001": FIRST,
        "g0002": OTHER,
    }  # a node that looks now

    manager = Manager(
        settings,
        registry,
        first=settings.generation,
        metrics=ServiceMetrics(),
        failpoint=Failpoints(),
        gpu=None,
        wall=lambda: 1000.0,
    )
    manager.partitions = settings.kafka.partitions
    asyncio.run(manager.look())
    assert manager.generations.names == ["g0001", "g0002"]
    manager.stop()
    announced = asyncio.run(read_all(settings))[CHAMPION_KEY]
    assert (announced["name"], announced["seq"]) == (champion.name, champion.seq)
    if not done:
        flip(settings, registry, "g0002", OTHER, why="built", now_ms=1e6)
    states = {
        record.generation: (record.state, record.model, record.until_ms)
        for record in generation_records.all()
    }
    until_ms = int(1e6 + 1000 * settings.refresh.rollback_window_s)
    assert states == {"g0001": ("grace", FIRST, until_ms), "g0002": ("serving", OTHER, None)}
    assert flips(registry) == [("g0001", "g0002")]

    back = rollback(settings, registry)
    assert (back.name, back.generation) == (FIRST, "g0001")
    assert [record.state for record in generation_records.all()] == ["serving", "grace"]


def test_a_rollback_from_a_flip_that_was_killed_leaves_nothing_being_built(
    deployment: Deployment, three_versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, registry = deployment.settings, three_versions
    promote(settings, registry, FIRST)
    promote(settings, registry, OTHER)
    monkeypatch.setenv("BRAID_FAILPOINT", "flip-promoted:raise")
    with pytest.raises(RuntimeError, match="failpoint flip-promoted"):
        flip(settings, registry, "g0002", OTHER, why="built", now_ms=0)
    monkeypatch.delenv("BRAID_FAILPOINT")
    rollback(settings, registry)
    assert [record.state for record in GenerationRecords(registry.log).all()] == [
        "serving",
        "grace",
    ]
    again = promote(settings, registry, OTHER)
    assert isinstance(again, Champion)
    assert again.why == "g0002 is still fed"


def commit(deployment: Deployment, generation: str, offsets: dict[int, int]) -> None:
    """As the generation's group does when it has published what comes before these offsets."""
    settings = deployment.settings
    config = {"bootstrap.servers": settings.kafka.bootstrap, "group.id": settings.group(generation)}
    consumer = Consumer(config)
    topic = settings.topic("records")
    positions = [TopicPartition(topic, number, at) for number, at in offsets.items()]
    for position in consumer.commit(offsets=positions, asynchronous=False):
        assert position.error is None
    consumer.close()


def flipped(
    deployment: Deployment, registry: Registry, records: int = 40, ahead: int = 0
) -> dict[int, int]:
    """Some records, then a flip from g0001 to g0002; the ends of `records`.

    Args:
        ahead: the handover lies so many offsets beyond them.
    """
    deployment.produce({"id": f"r{number}", "text": "a tile"} for number in range(records))
    promote(deployment.settings, registry, FIRST)
    promote(deployment.settings, registry, OTHER)
    ends = deployment.ends("records")
    if ahead:
        beyond = {number: end + ahead for number, end in ends.items()}
        handovers_of(deployment.settings, registry).hand_over("g0001", "g0002", lambda: beyond)
    flip(deployment.settings, registry, "g0002", OTHER, why="built", now_ms=0)
    return ends


def test_a_generation_goes_when_it_has_predicted_what_is_its(
    deployment: Deployment, three_versions: Registry
) -> None:
    """Its handover may lie ahead, and the records before it take longer to come than any grace."""
    settings, registry = deployment.settings, three_versions
    ends = flipped(deployment, registry, ahead=64)
    record = GenerationRecords(registry.log).get("g0001")
    assert record is not None
    with pytest.raises(RegistryError, match=r"records\[0\]@0 is g0001's to predict, which is at"):
        drop(settings, registry, record.generation, why="dropped by hand")
    assert end_grace(settings, registry, now_ms=1e15) == []

    # What did not come yet was handed over, once: from here on nothing is the old one's.
    assert flips(registry) == [("g0001", "g0002")] * 2
    assert Handovers(registry.log).confirmed()[-1].offsets == ends
    for name in ("g0001", "g0002"):
        ownership = Ownership(Handovers(registry.log), generation=name, first="g0001")
        assert ownership.owns([(n, end - 1) for n, end in ends.items()]) == [name == "g0001"] * 4
        assert ownership.owns(list(ends.items())) == [name == "g0002"] * 4

    commit(deployment, "g0001", {**ends, 2: ends[2] - 1})
    with pytest.raises(RegistryError, match=rf"records\[2\]@{ends[2] - 1} is g0001's.*--force"):
        drop(settings, registry, record.generation, why="dropped by hand")
    assert end_grace(settings, registry, now_ms=1e15) == []
    deployment.produce({"id": f"r{number}", "text": "a tile"} for number in range(40))
    commit(deployment, "g0001", ends)
    assert end_grace(settings, registry, now_ms=0) == []  # its grace lasts
    assert end_grace(settings, registry, now_ms=1e15) == ["g0001"]
    assert flips(registry) == [("g0001", "g0002")] * 2
    dropped = GenerationRecords(registry.log).get("g0001")
    assert dropped is not None
    drop(settings, registry, dropped.generation, why="dropped by hand")  # is nothing new


def test_a_generation_that_cannot_go_on_goes_by_force(
    deployment: Deployment, three_versions: Registry
) -> None:
    ends = flipped(deployment, three_versions)
    done = CliRunner().invoke(
        app, ["models", "drop", "g0001", "--force"], env=deployment.settings.environment()
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert Handovers(three_versions.log).confirmed()[-1].offsets == ends


def test_what_was_rolled_back_from_goes_at_once_if_nothing_came(
    deployment: Deployment, three_versions: Registry
) -> None:
    settings, registry = deployment.settings, three_versions
    ends = flipped(deployment, registry)
    rollback(settings, registry)
    record = GenerationRecords(registry.log).get("g0002")
    assert record is not None
    drop(settings, registry, record.generation, why="dropped by hand")
    assert flips(registry) == [("g0001", "g0002"), ("g0002", "g0001")]
    ownership = Ownership(Handovers(registry.log), generation="g0001", first="g0001")
    assert ownership.owns([(n, end + more) for n, end in ends.items() for more in (0, 64)]) == (
        [True] * 8
    )


def holding(versions: Iterable[int], *, reached: int) -> LiveStore:
    """A store of the records with these offsets in `records`, which has read up to `reached`."""
    store = make()
    writes = [upsert(f"r{version}", version) for version in versions]
    store.apply(writes, positions={}, progress={0: reached})
    return store


def ready(
    old: LiveStore, new: LiveStore, *, end: int, first: int = 0, drop_missing: bool = False
) -> Readiness:
    entry = GenerationRecord(**{**asdict(BUILT), "drop_missing": drop_missing})
    stores = {"g0001": old, "g0002": new}
    return readiness(Settings(), entry, stores, serving="g0001", ends={0: (first, end)})


def test_what_is_on_its_way_is_waited_for_and_hides_nothing_that_is_missing() -> None:
    old = holding(range(100), reached=100)
    check = ready(old, holding(range(35), reached=35), end=100)
    assert check.waits_for == "65 offsets of records are not embedded, 64 may be"
    on_its_way = ready(old, holding(range(60), reached=60), end=100)
    assert (on_its_way.behind, on_its_way.missing) == (40, 0)
    assert on_its_way.waits_for is on_its_way.stops is None

    lacking = holding(range(30, 60), reached=60)  # retention took the first 30
    check = ready(old, lacking, end=100, first=30)
    assert (check.behind, check.missing, check.waits_for) == (40, 30, None)
    assert check.stops is not None
    assert "30 records of g0001 cannot be embedded again" in check.stops
    check = ready(old, lacking, end=100, first=30, drop_missing=True)
    assert (check.missing, check.waits_for, check.stops) == (30, None, None)
    gone = ready(holding([], reached=9), holding([], reached=9), end=99, first=99)
    assert gone.behind == 0  # nobody can read what retention took


def test_what_came_after_the_ends_were_read_is_no_reason_to_wait() -> None:
    store = holding(range(100), reached=100)
    check = ready(store, holding(range(100), reached=100), end=97)
    assert (check.behind, check.missing, check.waits_for, check.stops) == (0, 0, None, None)


def test_what_is_deleted_is_not_missing() -> None:
    """The new index may have read a deletion that the old one has not."""
    old, new = holding(range(100), reached=100), holding(range(100), reached=100)
    new.apply([delete("r5", 100)], positions={}, progress={0: 101})
    check = ready(old, new, end=101)
    assert (check.missing, check.stops) == (0, None)
    assert check.waits_for is not None
    assert "1 records are missing, or deleted as g0001 has not read yet" in check.waits_for
    old.apply([delete("r5", 100)], positions={}, progress={0: 101})
    assert ready(old, new, end=101).waits_for is None


def test_a_generation_that_finds_worse_does_not_take_over() -> None:
    def filled(image: Callable[[int], Array]) -> LiveStore:
        store = make()
        for number in range(100):
            text = unit(number, "text")
            write = Upsert(
                id=f"r{number}",
                partition=0,
                version=number,
                ts=0,
                model="m",
                fused=text,
                by={"text": text, "image": image(number)},
            )
            store.apply([write], positions={}, progress={0: number + 1})
        return store

    good = filled(lambda number: unit(number, "text"))
    assert ready(good, good, end=100).stops is None
    check = ready(good, filled(lambda number: unit(number, "another")), end=100)
    assert check.recall["g0001"] == 1.0
    assert check.stops is not None
    assert "recall@10 of g0002 is" in check.stops


def test_new_ones_do_not_hide_what_is_missing_in_milvus(tmp_path: Path) -> None:
    with opened(tmp_path / "lite.db") as client:
        old, new = fresh(client), fresh(client)
        old.apply([upsert("a", 0), upsert("b", 1)], positions={}, progress={0: 2})
        new.apply([upsert("b", 1), upsert("c", 2)], positions={}, progress={0: 2})
        assert absent(old, new) == (1, 0)
        assert absent(new, new) == (0, 0)
