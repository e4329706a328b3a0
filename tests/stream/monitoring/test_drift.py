"""Drift of what a worker makes of its records: windows that close, and the whole way on Kafka."""

from __future__ import annotations

import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faust import TumblingWindow

from braid.encoders.drift import Limits
from braid.encoders.model.null import NullModel
from braid.encoders.output_statistics import Tally
from braid.encoders.types import Sample
from braid.stream.errors import BadRecord, ConfigError
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.schemas import decode_tally
from braid.stream.local.child import free_port
from braid.stream.monitoring.drift import Judge, Watch, Window, limits_of
from braid.stream.monitoring.drift_results import line, reports
from braid.stream.monitoring.metrics import SHOWN, DriftMetrics
from braid.stream.settings import Settings, load
from braid.stream.trainer.runs import Runs
from braid.stream.worker.outputs import OutputTopics, Tallies, every_s
from tests.documents import block
from tests.stream.harness import Deployment, wait_for
from tests.stream.worker.test_hot_swap import braid

MODEL = NullModel(16)
VERSION = "g0001/null-16"


def made(samples: list[Sample]) -> Tally:
    """What the null model makes of samples."""
    tally = Tally()
    tally.add_all(MODEL.encode([MODEL.prepare(sample) for sample in samples]))
    return tally


def whole(number: int) -> dict[str, Any]:
    """A record of all modalities."""
    data = str(number).encode()
    return {"id": f"r{number}", "text": f"text {number}", "image": data, "audio": data}


def odd(number: int) -> dict[str, Any]:
    """A record with text only, that the null model calls odd."""
    for again in itertools.count():
        record: dict[str, Any] = {"id": f"r{number}", "text": f"text {number} {again}"}
        if made([Sample(**record)]).tasks["parity"].labels["odd"]:
            return record
    raise AssertionError


def tallies(count: int, start: int = 0) -> Tally:
    return made([Sample(**whole(number)) for number in range(start, start + count)])


# ---- windows


def watch(size: int = 10) -> Watch:
    return Watch({}, {}, TumblingWindow(size).current)


def test_a_window_is_complete_when_a_later_one_begins_and_holds_all_of_it() -> None:
    watched = watch()
    for offset, (at, version) in enumerate(
        [(100.0, "a"), (101.5, "b"), (104.0, "a"), (109.9, "a"), (103.0, "b")]
    ):
        assert watched.completed(version, at) is None
        assert watched.count(version, tallies(3, start=offset), at=at, offset=offset)
    done = watched.completed("a", 110.0)
    assert done is not None
    assert (done.start, done.tally.count) == (100.0, 9)
    assert watched.count("a", tallies(1), at=110.0, offset=5)
    assert watched.completed("a", 119.9) is None
    done = watched.completed("b", 135.0)
    assert done is not None, "its next window is not the one just after"
    assert (done.start, done.tally.count) == (100.0, 6)
    again = watched.completed("a", 200.0)
    assert again is not None
    assert (again.start, again.tally.count) == (110.0, 1)


def test_a_tally_that_comes_twice_or_late_counts_once_or_not() -> None:
    watched = watch()
    assert watched.count("a", tallies(3), at=100.0, offset=7)
    assert not watched.count("a", tallies(3), at=100.0, offset=7)
    assert watched.count("a", tallies(3), at=101.0, offset=8)
    assert watched.count("a", tallies(1), at=110.0, offset=9)
    assert not watched.count("a", tallies(3), at=109.0, offset=10), "that window is judged"
    done = watched.completed("a", 120.0)
    assert done is not None
    assert done.tally.count == 1


def test_the_reference_outlives_windows_and_a_model_of_another_width_begins_anew() -> None:
    watched = watch()
    watched.count("a", tallies(3), at=100.0, offset=0)
    watched.keep("a", tallies(3))
    watched.count("a", tallies(2), at=110.0, offset=1)
    reference = watched.reference("a")
    assert reference is not None
    assert reference.count == 3
    assert watched.reference("b") is None
    narrow = NullModel(8)
    other = Tally()
    other.add_all(narrow.encode([narrow.prepare(Sample(id="x", text="x"))]))
    assert watched.count("a", other, at=111.0, offset=2)
    done = watched.completed("a", 120.0)
    assert done is not None
    assert done.tally.count == 1


# ---- what a window came to


def test_the_first_window_of_enough_records_is_the_reference(tmp_path: Path) -> None:
    judge = Judge(Settings(home=tmp_path, model={"spec": "null:16"}), Limits(min_records=50))
    few = judge(VERSION, Window(start=0.0, tally=tallies(49)), None)
    assert (few["became_reference"], few["drifted"]) == (False, False)
    assert "50 are needed" in few["note"]
    first = judge(VERSION, Window(start=300.0, tally=tallies(500)), None)
    assert (first["became_reference"], first["end"], first["serving"]) == (True, 600.0, True)
    calm = judge(VERSION, Window(start=600.0, tally=tallies(500, start=500)), tallies(500))
    assert (calm["drifted"], calm["became_reference"]) == (False, False)
    assert calm["reference"] == {"from": "first window", "records": 500}
    assert not judge("g0002/null-16", Window(start=0.0, tally=tallies(9)), None)["serving"]
    changed = made([Sample(**odd(number)) for number in range(100)])
    report = judge(VERSION, Window(start=900.0, tally=changed), tallies(500))
    assert report["drifted"]
    names = {statistic["name"] for statistic in report["statistics"] if statistic["exceeds"]}
    assert {"labels parity", "missing image", "missing audio"} <= names
    assert "missing text" not in names
    assert report["missing"] == {"text": 0.0}
    assert "missing image 1, limit 0.1" in report["says"]
    assert "missing image 1 (0.1) DRIFT" in line(VERSION, report)


def test_metrics_show_the_last_window_of_a_few_versions(tmp_path: Path) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    metrics = DriftMetrics(registry)
    judge = Judge(Settings(home=tmp_path), Limits(min_records=10))
    for number in range(SHOWN + 2):
        window = Window(start=0.0, tally=tallies(20))
        metrics.show(judge(f"g0001/m{number}", window, tallies(30)))
    text = generate_latest(registry).decode()
    assert 'model="m1"' not in text
    assert 'braid_window_records{generation="g0001",model="m9"} 20.0' in text
    assert 'braid_drift_limit{generation="g0001",model="m9",statistic="labels parity"} 0.25' in text
    assert 'braid_window_missing{generation="g0001",modality="image",model="m9"} 0.0' in text
    metrics.clear()
    assert "m9" not in generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("drift", "words"),
    [
        ({"label": 0.2}, "label.*the limits are labels, confidence"),
        ({"labels": 0.0}, r"drift.labels must be a number above 0, is 0"),
        ({"min_records": 2.5}, "drift.min_records must be a whole number from 1 on, is 2.5"),
    ],
)
def test_a_wrong_limit_is_named(drift: dict[str, Any], words: str) -> None:
    assert limits_of(Settings(drift={"limits": {"labels": 0.5}})) == Limits(labels=0.5)
    with pytest.raises(ConfigError, match=words):
        limits_of(Settings(drift={"limits": drift}))


def test_the_pages_settings_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("braid.toml").write_text(block("how-to/drift.md", "toml", "[drift]"))
    settings = load()
    assert limits_of(settings) == Limits(labels=0.4, min_records=1000)
    assert settings.drift.retrain
    told = load(home=tmp_path).environment()
    assert json.loads(told["BRAID_DRIFT__LIMITS"]) == {"labels": 0.4, "min_records": 1000}


# ---- the worker's half


def test_a_worker_says_what_it_made_once_a_second_at_most(tmp_path: Path) -> None:
    assert [every_s(seconds) for seconds in (1, 300, 86_400)] == [1.0, 3.0, 10.0]
    of_worker = Tallies(OutputTopics(Settings(home=tmp_path), "g0001"), window_s=1)
    embeddings = MODEL.encode([MODEL.prepare(Sample(**whole(number))) for number in range(5)])
    assert of_worker.take(0.0) == []
    of_worker.add("null-16", embeddings)
    (output,) = of_worker.take(0.0)
    assert (output.topic, output.key) == ("statistics", VERSION.encode())
    tally = decode_tally(output.value or b"")
    assert (tally.count, tally.tasks) == (5, tallies(5).tasks)
    assert tally.vectors_D == pytest.approx(tallies(5).vectors_D, abs=1e-5)
    of_worker.add("null-16", embeddings)
    assert of_worker.take(0.5) == []
    of_worker.add("other", embeddings)
    assert [decode_tally(one.value or b"").count for one in of_worker.take(1.0)] == [5, 5]
    of_worker.add("null-16", embeddings)
    of_worker.forget()
    assert of_worker.take(9.0) == []


def test_what_is_no_tally_is_refused() -> None:
    for value in (b"\xc1", b"\x80", b"\x81\xa1v\x01", b"\x82\xa1v\x01\xa7vectors\x05"):
        with pytest.raises(BadRecord):
            decode_tally(value)


# ---- on Kafka


@contextmanager
def flowing(deployed: Deployment, make: Callable[[int], dict[str, Any]]) -> Iterator[None]:
    """Records flow until the block ends."""
    enough = threading.Event()

    def records() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            if enough.is_set():
                return
            yield make(number)

    flow = threading.Thread(
        target=deployed.produce, args=(records(),), kwargs={"per_second": 100.0}
    )
    flow.start()
    try:
        yield
    finally:
        enough.set()
        flow.join()


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_drift_is_seen_everywhere_and_starts_a_trainer(
    kafka: str, valkey: str, tmp_path: Path
) -> None:
    port = free_port()
    with Deployment(
        kafka,
        tmp_path,
        redis={"url": valkey},
        drift={"limits": {"min_records": 40}, "window_s": 1, "retrain": True},
        refresh={"retrain_options": ["--preset", "tiny"]},
        metrics={"port": port},
    ) as deployed:
        settings = deployed.settings

        def last() -> dict[str, Any]:
            return (reports(settings) or {}).get(VERSION) or {"statistics": [], "drifted": False}

        assert braid(deployed, "status", "--json")["drift"] == {}
        deployed.worker("one")
        drifting = threading.Event()
        with flowing(deployed, lambda number: (odd if drifting.is_set() else whole)(number)):
            wait_for("a window is compared", lambda: bool(last()["statistics"]), timeout=90)
            assert last()["reference"]["from"] == "first window"
            assert not last()["drifted"]
            drifting.set()
            wait_for("the drift is seen", lambda: bool(last()["drifted"]), timeout=60)
            wait_for("a trainer has begun", lambda: bool(runs(tmp_path)), timeout=60)
            shown = braid(deployed, "status", "--json")["drift"][VERSION]
            assert shown["drifted"]
            assert shown["serving"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                metrics = answer.read().decode()
        labels = 'generation="g0001",model="null-16",statistic="missing image"'
        assert f"braid_drift{{{labels}}}" in metrics
        (run,) = runs(tmp_path)
        assert run.reason.startswith("drift: ")
        assert "limit 0.1" in run.reason
        assert committed(deployed) > 0


def runs(home: Path) -> list[Any]:
    return Runs(home / "training").all()


def committed(deployed: Deployment) -> int:
    """How far Faust has read `statistics`: marks of transactions are gaps in its offsets."""
    settings = deployed.settings
    offsets = Admin(settings).committed(
        f"{settings.prefix}braid-app", settings.topic("statistics"), settings.kafka.partitions
    )
    return max(offsets.values(), default=0)


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_a_killed_worker_goes_on_with_its_open_window(kafka: str, tmp_path: Path) -> None:
    now = time.time()
    size = next(size for size in range(80, 200) if now % size < size / 4)  # no edge is near
    with Deployment(kafka, tmp_path, drift={"window_s": size}) as deployed:
        prefix = deployed.settings.prefix
        changelog = f"{prefix}braid-app-{prefix}drift-windows-changelog"

        def counts() -> list[int]:
            """Records in the window, each time that it was kept."""
            if changelog not in Admin(deployed.settings).partition_counts():
                return []
            kept = [json.loads(message.value or b"") for message in deployed.read_named(changelog)]
            return [int(window["tally"]["count"]) for window in kept]

        first = deployed.worker("one")
        with flowing(deployed, whole):
            wait_for("some are counted", lambda: max(counts(), default=0) > 100, timeout=90)
        first.stop(grace=0)
        before = counts()
        deployed.worker("one")
        with flowing(deployed, whole):
            wait_for("more are counted", lambda: len(counts()) > len(before) + 1, timeout=90)
        after = counts()
        assert after == sorted(after), "a window that began anew would have fewer"
        assert after[len(before)] > before[-1]
