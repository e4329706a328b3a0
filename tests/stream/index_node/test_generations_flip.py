"""A refresh into a new space while records flow: built beside, flipped, rolled back, dropped.

`FLIP_RECORDS=20000` is the run that benchmarks/RESULTS.md keeps.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from braid.index.client import Client
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.schemas import decode_map
from braid.stream.registry.handover import Handovers
from braid.stream.registry.versions import registry_of
from tests.stream.harness import Deployment, wait_for
from tests.stream.worker.test_hot_swap import braid, labelled, searchable

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]

RECORDS, LAST = int(os.environ.get("FLIP_RECORDS", "4000")), 500
# Few records are judged, and a version must embed in no time at all.
STRICT = {"min_records": 2, "resamples": 100, "rounds": 1, "latency": 0.0}


class Asking:
    """A thread that searches all the time and checks that each answer is of one space."""

    def __init__(self, url: str, spaces: dict[str, str]) -> None:
        self.failures: list[str] = []
        self.answers: Counter[str] = Counter()
        self._url, self._spaces = url, spaces
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with Client(self._url) as client:
            while not self._stop.is_set():
                try:
                    answer = client.search(text="a red tile", k=20)
                except Exception as error:  # noqa: BLE001 (no answer may fail)
                    self.failures.append(repr(error))
                    continue
                models = {hit.model for hit in answer.hits} | {str(answer.model)}
                spaces = {self._spaces.get(model, model) for model in models}
                if spaces != {answer.space}:
                    self.failures.append(f"{answer.generation}: {models}")
                self.answers[answer.generation] += 1
                time.sleep(0.1)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_three_refreshes_while_records_flow(deployment: Deployment) -> None:
    """One in the same space, one into a new space, one refused; and back under load."""
    deployment.produce(labelled(60))
    first = braid(deployment, "retrain", "--preset", "tiny", "--json")
    same = braid(deployment, "retrain", "--preset", "tiny", "--heads-only", "--json")
    other = braid(deployment, "retrain", "--preset", "tiny", "--seed", "5", "--json")
    broken = braid(deployment, "retrain", "--preset", "tiny", "--seed", "6", "--json")
    assert same["space"] == first["space"]
    assert other["space"] != first["space"]
    deployment.worker("one", model=None, BRAID_REFRESH__ROLLBACK_WINDOW_S="3600")
    deployment.index(model=None)
    spaces = {version["name"]: version["space"] for version in (first, same, other)}
    sent: list[str] = [f"c{number}" for number in range(60)]
    hurry = threading.Event()

    def flowing() -> Iterator[dict[str, Any]]:
        """RECORDS, or more on a slow machine: LAST at least come after the last flip."""
        number, end = 0, None
        while end is None or number < end:
            id_ = f"flow-{number}"
            sent.append(id_)
            number += 1
            yield {"id": id_, "text": f"a {('red', 'blue', 'green')[number % 3]} tile {number}"}
            if end is None and hurry.is_set():
                end = max(RECORDS, number + LAST)

    with Client(deployment.url) as client:
        wait_for("the first are searchable", lambda: searchable(client) >= 60, timeout=90)
        pace = {"per_second": RECORDS / 100, "hurry": hurry}
        flow = threading.Thread(
            target=deployment.produce, args=(flowing(),), kwargs=pace, daemon=True
        )
        flow.start()
        asking = Asking(deployment.url, spaces)

        braid(deployment, "models", "promote", same["name"], "--force", "--json")
        wait_for("it serves", lambda: client.status().model == same["name"], timeout=60)

        entry = braid(deployment, "models", "promote", other["name"], "--force", "--json")
        assert (entry["generation"], entry["state"]) == ("g0002", "building")
        wait_for("it flips", lambda: client.status().generation == "g0002", timeout=240)
        assert client.status().model == other["name"]

        path = deployment.settings.models_dir / "versions" / broken["name"] / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        printed = braid(deployment, "models", "promote", broken["name"], "--force", status=1)
        assert "damaged" in printed

        strict = ["--window", same["name"], "--seed", "7", "--promote", "--json"]
        refused = braid(deployment, "retrain", *strict, BRAID_REFRESH__GATES=json.dumps(STRICT))
        assert refused["champion"] is False
        assert "embed ms a record" in refused["failed"]
        assert client.status().model == other["name"]

        began = time.monotonic()
        back = braid(deployment, "models", "rollback", "--json")
        assert (back["name"], back["generation"]) == (same["name"], "g0001")
        wait_for("it is back", lambda: client.status().generation == "g0001", timeout=30)
        rolled_back_s = time.monotonic() - began
        braid(deployment, "models", "promote", other["name"], "--force", "--json")
        wait_for("and forth", lambda: client.status().generation == "g0002", timeout=60)

        hurried_ms = 1000 * time.time()
        hurry.set()
        flow.join()
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=240)
        wait_for("all is searchable", lambda: searchable(client) == len(sent), timeout=120)
        asking.stop()
    assert not asking.failures, asking.failures[:3]
    assert set(asking.answers) == {"g0001", "g0002"}
    assert min(asking.answers.values()) > 10

    predictions = deployment.predictions()
    times = Counter(prediction["id"] for prediction in predictions)
    assert set(times) == set(sent)
    assert set(times.values()) == {1}
    made_by = Counter(prediction["model"] for prediction in predictions)
    assert set(made_by) == {first["name"], same["name"], other["name"]}, made_by
    assert len(Handovers(registry_of(deployment.settings).log).confirmed()) == 3
    for generation, models in (
        ("g0001", {first["name"], same["name"]}),
        ("g0002", {other["name"]}),
    ):
        settings = deployment.settings.replace(generation=generation)
        messages = deployment.read_of(settings, "vectors")
        vectors = [decode_map(message.value or b"") for message in messages]
        assert {vector["id"] for vector in vectors} == set(sent)
        assert {(v["space"], v["model"] in models) for v in vectors} == {
            (spaces[next(iter(models))], True)
        }
    gaps = published_gaps(deployment, before_ms=hurried_ms)
    steady = (p for p in predictions if p["id"].startswith("flow-") and p["ts"] < hurried_ms)
    waits = [p["latency_ms"] / 1000 for p in steady]
    print(
        f"\n{len(sent)} records; longest gap between published batches {max(gaps):.3f} s, median "
        f"{statistics.median(gaps):.3f} s; a record waited {max(waits):.3f} s at most, median "
        f"{statistics.median(waits):.3f} s; rolled back after {rolled_back_s:.2f} s; "
        f"answers {dict(asking.answers)}"
    )

    braid(deployment, "models", "drop", "g0001", "--json")
    topic = deployment.settings.vectors_topic(deployment.settings.generation)
    with Client(deployment.url) as client:
        wait_for("the index lets go", lambda: held(client) == ["g0002"], timeout=60)
    wait_for(
        "its topic is gone",
        lambda: topic not in Admin(deployment.settings).partition_counts(),
        timeout=60,
    )
    printed = braid(deployment, "models", "rollback", status=1)
    assert "dropped" in printed


def held(client: Client) -> list[str]:
    return [generation.name for generation in client.generations().generations]


def published_gaps(deployment: Deployment, *, before_ms: float) -> list[float]:
    """Seconds between the broker's time stamps of predictions that follow one another, while
    records came at a steady rate and generations were built, swapped and rolled back."""
    flow = (m for m in deployment.read("predictions") if (m.key or b"").startswith(b"flow-"))
    stamps = sorted({message.ts for message in flow if message.ts < before_ms})
    return [(after - before) / 1000 for before, after in itertools.pairwise(stamps)]
