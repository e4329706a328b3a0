"""The event loop stays responsive, and each node has its own counters."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from braid.index.metrics import ServiceMetrics
from braid.index.segments.live_store import LiveStore
from tests.index.conftest import Node
from tests.index.oracle import DIM, SPACE


class Slow(LiveStore):
    """A store whose search takes until somebody else has been answered."""

    def __init__(self) -> None:
        super().__init__(space=SPACE, dim=DIM)
        self.searching, self.answered = threading.Event(), threading.Event()
        self.in_time: bool | None = None

    def search(self, *args: Any, **options: Any) -> Any:
        self.searching.set()
        self.in_time = self.answered.wait(5)  # only a blocked loop waits this long
        return super().search(*args, **options)


def test_others_are_answered_while_a_search_goes_on(node: Node, http: httpx.Client) -> None:
    node.store = slow = Slow()
    asking = threading.Thread(
        target=lambda: httpx.post(f"{node.url}/v1/search", json={"text": "q"}, timeout=20)
    )
    asking.start()
    try:
        assert slow.searching.wait(20)
        assert http.get("/healthz").status_code == 200
        slow.answered.set()
    finally:
        asking.join()
    assert slow.in_time


def test_writes_freshness_and_snapshots_are_counted() -> None:
    metrics = ServiceMetrics()
    metric = metrics.of("g0001")
    metric.applied(3)
    metric.applied(2)
    for seconds in (0.2, 40.0, -7.0):  # a producer's clock may be ahead
        metric.fresh(seconds)
    metric.snapshot_age(12.5)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"generation": "g0001", **labels})

    assert value("braid_index_writes_total") == 5
    assert value("braid_freshness_seconds_count") == 3
    assert value("braid_freshness_seconds_sum") == pytest.approx(40.2)
    assert value("braid_freshness_seconds_bucket", le="0.25") == 2
    assert value("braid_snapshot_age_seconds") == 12.5


def test_two_services_in_one_process_count_apart(node: Node, http: httpx.Client) -> None:
    other = ServiceMetrics()
    http.post("/v1/search", json={"text": "q"})
    families = text_string_to_metric_families(http.get("/metrics").text)
    counts = [
        s.value
        for family in families
        for s in family.samples
        if s.name == "braid_search_seconds_count" and s.labels["kind"] == "text"
    ]
    assert counts[0] >= 1
    assert other.registry.get_sample_value("braid_search_seconds_count", {"kind": "text"}) == 0
