"""The watchdog: what is stuck ends, what waits, rests or stood still as a whole does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from braid.stream.liveness.progress import Progress
from braid.stream.liveness.progress_watch import Watchdog, Watched
from braid.stream.liveness.watchdog import STUCK
from braid.stream.local.child import free_port
from braid.stream.registry.promotion import promote
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings
from braid.stream.worker.health import health, uncommitted
from tests.stream.harness import MODEL, Deployment, wait_for

BOUND_S = 30.0


class OneWorker:
    """A watchdog with a clock and a worker of the test's own."""

    def __init__(self, tmp_path: Any, *, lagging: bool) -> None:
        self.now = 0.0
        self.ended: list[str] = []
        self.settings = Settings(home=tmp_path, worker={"progress_timeout_s": BOUND_S})
        self.worker: Any = SimpleNamespace(
            progress=Progress(lambda: self.now),
            is_member=True,
            owned=[0],
            waits_for=None,
            model=SimpleNamespace(name="null-16"),
        )
        watched = Watched(
            name="the worker",
            progress=self.worker.progress,
            readable=lambda: lagging,
            bound_s=BOUND_S,
        )
        self.dog = Watchdog(
            self.settings, lambda: [watched], end=self.ended.append, clock=lambda: self.now
        )

    def run(self, seconds: int, *, passes: bool = True, moves: bool = False) -> None:
        for _ in range(seconds):
            self.now += 1.0
            if passes:
                self.worker.progress.pass_()
            if moves:
                self.worker.progress.moved()
            self.dog.look()


@pytest.fixture
def stuck(tmp_path: Any) -> OneWorker:
    return OneWorker(tmp_path, lagging=True)


def test_no_commit_though_there_is_lag_ends_the_process(stuck: OneWorker) -> None:
    stuck.run(100, moves=True)
    stuck.run(25)
    assert not stuck.ended
    stuck.run(10)
    assert "no offset has moved" in stuck.ended[0]
    well, facts = health(stuck.settings, stuck.worker, "g0001", None)
    assert not well
    assert facts["progress_age_s"] == 35


def test_a_loop_that_stands_ends_the_process_even_without_lag(tmp_path: Any) -> None:
    watched = OneWorker(tmp_path, lagging=False)
    watched.run(10)
    watched.run(35, passes=False, moves=True)
    assert "its loop has not passed" in watched.ended[0]


def test_an_idle_worker_or_one_without_its_broker_is_left_alone(tmp_path: Any) -> None:
    watched = OneWorker(tmp_path, lagging=False)  # also what no answer comes to
    watched.run(200)
    assert not watched.ended
    assert health(watched.settings, watched.worker, "g0001", "no broker")[1]["status"] == (
        "waiting for Kafka: no broker"
    )


def test_time_during_which_the_process_was_stopped_does_not_count(stuck: OneWorker) -> None:
    stuck.run(10)
    stuck.now += 600.0
    stuck.run(5, passes=False)
    assert not stuck.ended


@pytest.mark.kafka
def test_an_independent_client_sees_what_is_left_to_read(deployment: Deployment) -> None:
    settings = deployment.settings
    group = settings.group(settings.generation)
    assert not uncommitted(settings, group, [])
    deployment.produce([{"id": "a", "text": "x"}])
    assert uncommitted(settings, group, [])
    worker = deployment.worker("one")
    wait_for("it is committed", lambda: deployment.lag() == 0, timeout=60)
    assert not uncommitted(settings, group, [])
    assert worker.running


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_a_worker_without_a_model_is_well_and_says_what_it_waits_for(
    deployment: Deployment, three_versions: Registry
) -> None:
    port = free_port()
    deployment.worker("one", model=None, BRAID_METRICS__PORT=str(port))

    def status() -> tuple[int, str]:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/healthz")
        except httpx.TransportError:
            return 0, ""
        return answer.status_code, answer.json()["status"]

    waits = (200, "waiting for the first model: braid retrain or braid models import makes it")
    wait_for("it says what it waits for", lambda: status() == waits, timeout=90)
    promote(deployment.settings, three_versions, "tiny-0001")
    wait_for("it works", lambda: status() == (200, "ok"), timeout=90)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_index_node_whose_event_loop_hangs_ends_with_its_stacks(deployment: Deployment) -> None:
    deployment.worker("one")
    node = deployment.child(
        "index",
        ["-m", "braid", "index", "--model", MODEL],
        {"BRAID_FAILPOINT": "after-apply:hang", "BRAID_WORKER__PROGRESS_TIMEOUT_S": "5"},
    )
    deployment.produce([{"id": "a", "text": "x"}])
    assert node.wait(timeout=240) == STUCK
    log = node.log.read_text()
    assert "the reader of g0001: its loop has not passed for" in log
    assert "in _read" in log
