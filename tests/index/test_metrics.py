"""Metrics of the query service, and the live recall probe."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from braid.index.errors import NotServing
from braid.index.metrics import KINDS, REFUSALS, ServiceMetrics
from braid.index.segments.live_store import LiveStore
from braid.index.service.app import Serving
from braid.index.service.dependencies import RecentQueries
from braid.index.service.recall_probe import probe_for_ever, probe_once
from braid.index.store import FUSED, Array, SupportsProbe, is_exact
from tests.index.conftest import Node, serving
from tests.index.oracle import DIM, SPACE, unit, upsert


def value(metrics: ServiceMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"generation": "g0001", **labels})


def test_what_the_reader_reports() -> None:
    metrics = ServiceMetrics()
    metric = metrics.of("g0001")
    metric.lag(0, 7)
    metric.lag(3, 2)
    metric.lag(0, 4)
    metric.lag(1, -2)  # a position may be ahead of an end that was asked for earlier
    metric.snapshot_took(0.3)
    metric.snapshot_took(7.0)
    assert value(metrics, "braid_index_lag", partition="0") == 4
    assert value(metrics, "braid_index_lag", partition="1") == 0
    assert value(metrics, "braid_index_lag", partition="3") == 2
    assert value(metrics, "braid_snapshot_seconds_count") == 2
    assert value(metrics, "braid_snapshot_seconds_bucket", le="0.5") == 1


def test_rows_by_kind_of_segment() -> None:
    metrics = ServiceMetrics()
    metric = metrics.of("g0001")
    growing, sealed = {"kind": "growing", "rows": 3}, {"kind": "ivf", "rows": 100}
    metric.rows(90, [growing, sealed, sealed | {"rows": 50}])
    assert value(metrics, "braid_index_records") == 90
    assert value(metrics, "braid_index_segment_rows", kind="ivf") == 150
    assert value(metrics, "braid_index_segment_rows", kind="growing") == 3
    metric.rows(90, [sealed])
    assert value(metrics, "braid_index_segment_rows", kind="growing") is None


def test_generations_are_counted_apart_and_forgotten_when_dropped() -> None:
    metrics = ServiceMetrics()
    old, new = metrics.of("g0001"), metrics.of("g0002")
    assert metrics.of("g0001") is old
    for one, number in ((old, 1), (new, 2)):
        one.serving(one is old)
        one.rows(number, [{"kind": "growing", "rows": number}])
        one.applied(number)
        one.fresh(number)
        one.lag(0, number)
        one.snapshot_age(number)
        one.snapshot_took(number)
        one.recall(number / 2)
    old.rows(5, [])
    assert value(metrics, "braid_index_records") == 5
    assert value(metrics, "braid_index_segment_rows", generation="g0002", kind="growing") == 2
    assert value(metrics, "braid_index_lag", partition="0") == 1
    assert value(metrics, "braid_index_lag", generation="g0002", partition="0") == 2
    assert value(metrics, "braid_index_serving") == 1
    assert value(metrics, "braid_index_serving", generation="g0002") == 0
    metrics.forget("g0001")
    left = {
        (sample.name, sample.labels["generation"])
        for family in metrics.registry.collect()
        for sample in family.samples
        if "generation" in sample.labels
    }
    assert {generation for _, generation in left} == {"g0002"}
    assert len({name.removesuffix("_created") for name, _ in left}) >= 10


class Segmented(LiveStore):
    def stats(self) -> dict[str, Any]:
        return super().stats() | {"segments": [{"kind": "growing", "rows": 2, "more": "x"}]}


def read(http: httpx.Client) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_segments_and_refusals_are_on_the_page(node: Node) -> None:
    node.store = Segmented(space=SPACE, dim=DIM)
    with serving(node) as (url, _), httpx.Client(base_url=url, timeout=20) as http:
        result = read(http)
        assert result["braid_index_segment_rows", "g0001growing"] == 2
        for kind in KINDS:
            assert result["braid_search_seconds_count", kind] == 0
        for reason in REFUSALS:
            assert result["braid_refused_total", reason] == 0
        http.post("/v1/search", json={"text": "q", "k": 0})
        http.get("/v1/records/nobody")
        http.post("/v1/search", content=b" " * 100_000)
        http.post("/v1/search/batch", json={"queries": [{"text": "a"}, {"id": "nobody"}]})
        result = read(http)
        assert result["braid_refused_total", "query"] == 2
        assert result["braid_refused_total", "size"] == 1
        assert result["braid_search_seconds_count", "batch"] == 1
        assert result["braid_search_seconds_count", "text"] == 0


# ---- the recall probe


def test_each_generation_has_its_rows_on_the_page(node: Node) -> None:
    other = filled(LiveStore(space="another", dim=DIM))

    class Two(Node):
        def serving(self, name: str | None) -> Serving:
            if name == "g0002":
                return Serving(generation="g0002", store=other)
            return super().serving(name)

    two = Two(store=node.store)
    names = ["g0001", "g0002", "g0003"]  # the last is dropped while they are listed
    with (
        serving(two, generations=lambda: names) as (url, _),
        httpx.Client(base_url=url, timeout=20) as http,
    ):
        result = read(http)
        assert result["braid_index_records", "g0001"] == len(node.store)
        assert result["braid_index_records", "g0002"] == 40
        assert result["braid_index_serving", "g0001"] == 1
        assert result["braid_index_serving", "g0002"] == 0
        assert not any("g0003" in labels for _, labels in result)


class Rough(LiveStore):
    """An approximate store: unless it is told otherwise it sees only records of even numbers."""

    def __init__(self) -> None:
        super().__init__(space=SPACE, dim=DIM)
        self.probed: list[tuple[Array, int, str]] = []

    @property
    def exact(self) -> bool:
        return False

    def search(self, queries_BD: Array, **options: Any) -> Any:
        if options.get("exact"):
            return super().search(queries_BD, **options)
        k = options.pop("k")
        every = super().search(queries_BD, k=1000, **options)
        return [[hit for hit in hits if hit.meta["even"]][:k] for hits in every]

    def probe(self, query_D: Array, k: int, vector: str = FUSED) -> float:
        self.probed.append((query_D, k, vector))
        return super().probe(query_D, k, vector)


class Bare:
    """A store that offers nothing but what every store must."""

    def __init__(self, store: LiveStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name in ("probe", "exact"):
            raise AttributeError(name)
        return getattr(self._store, name)


def filled(store: LiveStore) -> LiveStore:
    writes = [upsert(f"r{number}", number) for number in range(40)]
    store.apply(writes, positions={}, progress={})
    return store


def test_a_real_query_is_probed_against_exact_search(node: Node) -> None:
    node.store = store = Rough()
    filled(store)
    with serving(node) as (url, deps), httpx.Client(base_url=url, timeout=20) as http:
        answer = http.post("/v1/search", json={"text": "q", "k": 7, "vector": "text"}).json()
        assert answer["exact"] is False
        assert len(deps.recent) == 1
        rng = random.Random(0)
        recall = asyncio.run(probe_once(node.serving(None), deps.recent, deps.metrics, rng))
        ((query_D, k, vector),) = store.probed
        np.testing.assert_array_equal(query_D, unit("q", None, None))
        assert (k, vector) == (7, "text")
        exact = filled(LiveStore(space=SPACE, dim=DIM)).search(query_D[None], k=7, vector="text")
        best = {hit.id for hit in exact[0]}
        assert recall == len(best & {hit["id"] for hit in answer["hits"]}) / 7
        assert 0 < recall < 1
        result = read(http)
        assert result["braid_recall_last", "g0001"] == pytest.approx(recall)
        assert result["braid_recall_count", "g0001"] == 1
        assert result["braid_recall_sum", "g0001"] == pytest.approx(recall)


def test_nothing_is_probed_without_a_query_or_with_a_store_that_cannot() -> None:
    metrics, recent, rng = ServiceMetrics(), RecentQueries(), random.Random(0)
    rough, bare = Rough(), Bare(Rough())
    assert isinstance(rough, SupportsProbe)
    assert not isinstance(bare, SupportsProbe)
    assert (is_exact(rough), is_exact(bare)) == (False, True)

    def once(store: Any) -> float | None:
        return asyncio.run(
            probe_once(Serving(generation="g0001", store=store), recent, metrics, rng)
        )

    assert once(rough) is None
    recent.add("g0002", unit("q"), k=3, vector="fused")
    assert once(rough) is None  # that one asked another generation
    recent.add("g0001", unit("q"), k=3, vector="fused")
    assert once(bare) is None
    assert value(metrics, "braid_recall_count") is None
    assert value(metrics, "braid_recall_last") is None
    assert once(rough) == 1.0  # no rows, nothing missed
    assert value(metrics, "braid_recall_last") == 1.0


def test_the_last_queries_are_kept_and_no_more() -> None:
    recent = RecentQueries(most=3)
    for k in range(1, 6):
        recent.add("g0001", unit(k), k=k, vector="fused")
    assert len(recent) == 3
    rng = random.Random(0)
    chosen = [recent.choose("g0001", rng) for _ in range(50)]
    assert {one[1] for one in chosen if one} == {3, 4, 5}


def test_the_task_probes_every_so_often_until_it_is_cancelled() -> None:
    metrics, recent, store = ServiceMetrics(), RecentQueries(), Rough()
    recent.add("g0001", unit("q"), k=3, vector="fused")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) > 3:
            raise asyncio.CancelledError

    def which() -> Serving:
        if len(slept) == 1:  # the node was away at a flip
            raise NotServing("g0001 is not open")
        return Serving(generation="g0001", store=store)

    async def main() -> None:
        await probe_for_ever(
            which,
            recent,
            metrics,
            every_s=30.0,
            rng=random.Random(0),
            sleep=sleep,
        )

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert slept == [30.0] * 4
    assert value(metrics, "braid_recall_count") == len(store.probed) == 2
