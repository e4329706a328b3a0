"""Records on which encode fails, on Apache Kafka: dead letters, and nothing else suffers."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from braid.encoders.model.null import NullModel
from braid.encoders.types import Embedding, Prepared, Sample
from braid.stream.errors import BadRecord, WorkerError
from braid.stream.liveness.watchdog import STUCK
from braid.stream.local.child import Child
from tests.stream.harness import Deployment, assigned, wait_for
from tests.stream.poison_worker import PoisonModel
from tests.stream.running import running, wait_until_idle

pytestmark = pytest.mark.kafka

KINDS = ("raise", "nan", "memory")
REASONS = {
    "raise": "FloatingPointError: a record on which encode raises",
    "nan": "FloatingPointError: the vector is not finite",
    "memory": "MemoryError: a record that does not fit",
}


def poisoned(count: int, *, every: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Records, about one of `every` on which encode fails."""
    chance = random.Random(seed)
    for number in range(count):
        bad = chance.randrange(every) == 0
        yield {
            "id": f"{chance.choice(KINDS)}-{number}" if bad else f"r{number}",
            "text": f"the text of record number {number}",
        }


def is_bad(id_: str) -> bool:
    return id_.partition("-")[0] in KINDS


def dead_letters(deployment: Deployment) -> dict[str, dict[str, str]]:
    """Headers by id; no id may be there twice."""
    letters: dict[str, dict[str, str]] = {}
    for message in deployment.read("dead-letters"):
        id_ = (message.key or b"").decode()
        assert id_ not in letters
        letters[id_] = {name: (value or b"").decode() for name, value in message.headers}
    return letters


def check_outputs(deployment: Deployment, records: Sequence[dict[str, Any]]) -> None:
    """Each healthy record has one vector and one prediction, each bad one one dead letter."""
    bad = sorted(record["id"] for record in records if is_bad(record["id"]))
    good = sorted(record["id"] for record in records if not is_bad(record["id"]))
    assert sorted(prediction["id"] for prediction in deployment.predictions()) == good
    assert sorted((message.key or b"").decode() for message in deployment.vectors()) == good
    dead = dead_letters(deployment)
    assert sorted(dead) == bad
    for id_, headers in dead.items():
        assert headers["stage"] == "encode"
        assert headers["reason"] == REASONS[id_.partition("-")[0]]


def test_each_record_on_which_encode_fails_is_a_dead_letter(deployment: Deployment) -> None:
    records = list(poisoned(2000, every=50))
    deployment.produce(records)
    with running(deployment.settings, PoisonModel(16)) as run:
        wait_until_idle(run, deployment.lag)
    check_outputs(deployment, records)


@pytest.mark.timeout(900)
def test_poison_and_restarts_kill_and_starve_nobody(deployment: Deployment) -> None:
    """Two workers, one of which is killed again and again while a record of a hundred fails."""

    def worker(name: str) -> Child:
        command = ["-m", "tests.stream.poison_worker", "embed", "--slot", name]
        return deployment.child(name, [*command, "--model", "null:16"])

    steady, victim = worker("steady"), worker("victim")
    wait_for(
        "they share the partitions",
        lambda: all(len(assigned(one)) == 2 for one in (steady, victim)),
        timeout=60,
    )
    records = list(poisoned(3000, every=100))
    for part in range(3):
        deployment.produce(records[1000 * part : 1000 * (part + 1)], per_second=500)
        victim.send(signal.SIGKILL)
        victim.wait(10)
        victim.start()
    wait_for("all is committed", lambda: deployment.lag() == 0, timeout=120)
    assert steady.running
    assert victim.running
    check_outputs(deployment, records)


class Broken(NullModel):
    """Fails on everything once it is told to."""

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_a_model_that_fails_on_everything_stops_the_worker_and_loses_nothing(
    deployment: Deployment,
) -> None:
    deployment.produce(list(poisoned(300, every=1000)))
    with running(deployment.settings, Broken(16)) as run:
        error = run.wait_for_end()
    assert isinstance(error, WorkerError)
    assert "golden batch" in str(error)
    assert "device-side assert" in str(error)
    assert deployment.read("dead-letters") == []
    with running(deployment.settings, NullModel(16)) as run:  # it is mended
        wait_until_idle(run, deployment.lag)
    assert sorted(one["id"] for one in deployment.predictions()) == sorted(
        record["id"] for record in poisoned(300, every=1000)
    )


class Picky(NullModel):
    """Refuses some texts in prepare, as media that cannot be decoded would be."""

    def prepare(self, sample: Sample) -> Prepared:
        if sample.text is not None and sample.text.startswith("bad"):
            raise BadRecord("text", f"{sample.text} is refused", stage="prepare")
        return super().prepare(sample)


def texts(word: str, count: int) -> list[dict[str, Any]]:
    return [{"id": f"{word}{number}", "text": f"{word} {number}"} for number in range(count)]


def test_a_burst_of_poison_stops_the_worker_and_is_not_committed(
    kafka: str, tmp_path: Path
) -> None:
    with Deployment(
        kafka, tmp_path, kafka={"partitions": 1}, worker={"poison_window": 100}
    ) as deployment:
        deployment.produce(texts("bad", 3))  # a few, with nothing to compare them to: no burst
        with running(deployment.settings, Picky(16)) as run:
            wait_until_idle(run, deployment.lag)
        assert sorted(dead_letters(deployment)) == ["bad0", "bad1", "bad2"]
        deployment.produce([*texts("bad-", 300), *texts("good", 10)])
        for _ in range(2):  # a supervisor starts it again: it stops where it stopped
            with running(deployment.settings, Picky(16)) as run:
                error = run.wait_for_end()
            assert isinstance(error, WorkerError)
            assert "of the last 100 records" in str(error)
            assert "BRAID_WORKER__POISON_SHARE" in str(error)
            assert "BadRecord in text, found by prepare" in str(error)
            assert deployment.lag() == 310
            assert len(dead_letters(deployment)) == 3
        allowed = deployment.settings.replace(worker={"poison_share": 1.0})
        with running(allowed, Picky(16)) as run:
            wait_until_idle(run, deployment.lag)
        assert len(dead_letters(deployment)) == 303
        assert len(deployment.predictions()) == 10


class Slow(NullModel):
    """Encodes once it is let."""

    go = threading.Event()

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        assert self.go.wait(60)
        return super().encode(prepared)


def test_a_call_that_takes_long_is_no_lack_of_progress(deployment: Deployment) -> None:
    deployment.produce(texts("r", 10))
    model = Slow(16)
    with running(deployment.settings, model) as run:
        progress = run.worker.progress
        wait_for("the device is busy", lambda: run.worker._queue.busy, timeout=60)
        for _ in range(3):
            last = progress.moved_at
            wait_for("it counts as progress", lambda: progress.moved_at > last, timeout=60)  # noqa: B023
        model.go.set()
        wait_until_idle(run, deployment.lag)


def test_a_device_call_that_hangs_ends_the_process_with_its_stacks(
    kafka: str, tmp_path: Path
) -> None:
    with Deployment(kafka, tmp_path, worker={"encode_timeout_s": 2.0}) as deployment:
        deployment.produce(texts("r", 500), per_second=1e9)
        worker = deployment.worker("one", BRAID_FAILPOINT="before-encode:hang:2")
        assert worker.wait(60) == STUCK
        log = worker.tail(300)
        assert "BRAID_WORKER__ENCODE_TIMEOUT_S" in log
        assert "failpoints.py" in log  # the stack of the thread that hangs
        worker = deployment.worker("one")
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=60)
        assert len(deployment.predictions()) == 500


def test_a_stop_does_not_wait_for_a_device_that_hangs(deployment: Deployment) -> None:
    deployment.produce(texts("r", 200))
    worker = deployment.worker("one", BRAID_FAILPOINT="before-encode:hang")
    wait_for("it owns partitions", lambda: len(assigned(worker)) == 4, timeout=60)
    time.sleep(1.0)
    worker.send(signal.SIGTERM)
    worker.wait(60)
