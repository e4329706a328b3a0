"""Which generation predicts what of a real `records`: quiet partitions, new topics, status."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from braid.index.client import Client
from braid.stream.cli.main import app
from braid.stream.cli.reports import status
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.topics import ensure
from braid.stream.registry.handover import Handovers, Ownership
from braid.stream.registry.ownership import finish, handovers_of
from braid.stream.registry.promotion import promote, rollback
from braid.stream.registry.versions import Registry
from tests.stream.harness import Deployment, wait_for
from tests.stream.registry.test_flipping import FIRST, OTHER, commit, flipped
from tests.stream.worker.test_hot_swap import labelled, searchable

pytestmark = pytest.mark.kafka


def test_a_quiet_topic_is_handed_over_at_its_ends(
    deployment: Deployment, three_versions: Registry
) -> None:
    ends = flipped(deployment, three_versions)
    assert [handover.offsets for handover in Handovers(three_versions.log).confirmed()] == [ends]
    assert finish(deployment.settings, three_versions, now_ms=0)
    told = status(deployment.settings)["handover"]
    assert told == {}, "no group has committed anything, so none has anything to predict"
    commit(deployment, "g0001", {**ends, 1: 0})
    assert status(deployment.settings)["handover"] == {
        "1": {
            "before": "g0001",
            "after": "g0002",
            "at": ends[1],
            "to_come": 0,
            "to_predict": ends[1],
        }
    }


def test_a_handover_that_records_do_not_reach_is_told_and_finished(
    deployment: Deployment, three_versions: Registry
) -> None:
    settings, registry = deployment.settings, three_versions
    ends = flipped(deployment, registry, ahead=3)
    commit(deployment, "g0001", ends)
    told = status(settings)["handover"]
    assert {number: (progress["at"], progress["to_come"]) for number, progress in told.items()} == {
        str(number): (end + 3, 3) for number, end in ends.items()
    }
    printed = CliRunner().invoke(app, ["status"], env=settings.environment()).output
    assert (
        f"handover of partition 2 from g0001 to g0002: at offset {ends[2] + 3}, "
        "3 records to come before it, 0 offsets to predict by g0001\n"
    ) in printed
    now_ms = 1000 * time.time()
    assert not finish(settings, registry, now_ms=now_ms), "records may be about to come"
    assert status(settings)["handover"] == told
    assert not finish(settings, registry, now_ms=now_ms + 60_000)
    assert finish(settings, registry, now_ms=now_ms)
    assert Handovers(registry.log).confirmed()[-1].offsets == ends
    assert status(settings)["handover"] == {}


def test_the_offsets_of_a_handover_do_not_hold_in_a_topic_made_anew(
    deployment: Deployment, three_versions: Registry
) -> None:
    settings, registry = deployment.settings, three_versions
    ends = flipped(deployment, registry)
    admin, topic = Admin(settings), settings.topic("records")
    admin.delete([topic])
    wait_for("it is gone", lambda: topic not in admin.partition_counts(), timeout=60)
    ensure(settings, settings.generation)
    handovers = handovers_of(settings, registry)
    for generation in ("g0001", "g0002"):
        ownership = Ownership(handovers, generation=generation, first="g0001")
        records = [(number, offset) for number, end in ends.items() for offset in (0, end)]
        assert ownership.owns(records) == [generation == "g0002"] * 8
    assert finish(settings, registry, now_ms=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_next_record_after_a_flip_is_predicted_by_the_new_version(
    deployment: Deployment, three_versions: Registry
) -> None:
    """One record an hour: each is predicted once, by the version that serves."""
    settings, registry = deployment.settings, three_versions
    deployment.produce(labelled(8))
    promote(settings, registry, FIRST)
    deployment.worker("one", model=None)
    deployment.index(model=None)
    with Client(deployment.url) as client:
        wait_for("they are searchable", lambda: searchable(client) >= 8, timeout=120)
        promote(settings, registry, OTHER)
        wait_for("it flips", lambda: client.status().generation == "g0002", timeout=120)
    deployment.produce([{"id": "the next", "text": "a red tile"}])
    wait_for("it is predicted", lambda: len(deployment.predictions()) == 9, timeout=60)
    made_by = {prediction["id"]: prediction["model"] for prediction in deployment.predictions()}
    assert made_by.pop("the next") == OTHER
    assert set(made_by.values()) == {FIRST}
    wait_for("both groups are there", lambda: status(settings)["handover"] == {}, timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_record_is_predicted_once_while_generations_change(
    deployment: Deployment, three_versions: Registry
) -> None:
    """Forth, back and forth again while records flow, and after that none is missing."""
    settings, registry = deployment.settings, three_versions
    sent = [f"c{number}" for number in range(8)]
    deployment.produce(labelled(8))
    promote(settings, registry, FIRST)
    deployment.worker("one", model=None)
    deployment.index(model=None)
    enough = threading.Event()

    def flowing() -> Iterator[dict[str, Any]]:
        while not enough.is_set() and len(sent) < 10_000:
            sent.append(f"flow-{len(sent)}")
            yield {"id": sent[-1], "text": "a red tile"}

    flow = threading.Thread(
        target=deployment.produce, args=[flowing()], kwargs={"per_second": 25}, daemon=True
    )

    def serves(client: Client, generation: str, model: str) -> None:
        """It answers, and then it predicts."""

        def predicted() -> int:
            return sum(prediction["model"] == model for prediction in deployment.predictions())

        ready = f"{generation} serves"
        wait_for(ready, lambda: client.status().generation == generation, timeout=150)
        before = predicted()
        wait_for(f"{model} predicts", lambda: predicted() > before + 20, timeout=90)

    with Client(deployment.url) as client:
        wait_for("they are searchable", lambda: searchable(client) >= 8, timeout=120)
        flow.start()
        promote(settings, registry, OTHER)
        serves(client, "g0002", OTHER)
        rollback(settings, registry)
        serves(client, "g0001", FIRST)
        promote(settings, registry, OTHER)
        serves(client, "g0002", OTHER)
    enough.set()
    flow.join()
    wait_for("all are predicted", lambda: len(deployment.predictions()) >= len(sent), timeout=90)
    wait_for("both groups are there", lambda: status(settings)["handover"] == {}, timeout=60)
    times = Counter(prediction["id"] for prediction in deployment.predictions())
    assert times == Counter(sent)
    assert len(Handovers(registry.log).confirmed()) >= 3
