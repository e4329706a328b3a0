"""What a worker's process tells: each generation by itself, and the serving one's heartbeat."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import generate_latest

from braid.encoders.feature_cache import FeatureCache
from braid.encoders.timings import SubBatch
from braid.stream.cli.status import load_line
from braid.stream.monitoring.heartbeat import Heartbeat, workers
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings


def two() -> WorkerMetrics:
    """A process that serves from g0001 and builds g0002."""
    metrics = WorkerMetrics()
    for number, (generation, name) in enumerate((("g0001", "old"), ("g0002", "new")), start=1):
        generation_metrics = metrics.of(generation)
        generation_metrics.model(name)
        generation_metrics.assigned(number)
        generation_metrics.lag({0: 10 * number})
        generation_metrics.published(records=100 * number, seconds=0.1)
        generation_metrics.batch(number, 0.1)
        generation_metrics.dead_letter("decode", "BadRecord")
    return metrics


def test_two_workers_of_one_process_are_counted_apart() -> None:
    metrics = two()
    for number, (generation, name) in enumerate((("g0001", "old"), ("g0002", "new")), start=1):
        label = {"generation": generation}
        for metric, labels, value in (
            ("braid_records_total", {}, 100 * number),
            ("braid_partitions", {}, number),
            ("braid_lag", {"partition": "0"}, 10 * number),
            ("braid_model_info", {"model": name}, 1),
            ("braid_batch_records_sum", {}, number),
            ("braid_dead_letters_total", {"stage": "decode", "kind": "BadRecord"}, 1),
            ("braid_transactions_refused_total", {}, 0),
        ):
            assert metrics.registry.get_sample_value(metric, label | labels) == value, metric
    metrics.of("g0001").model("newer")
    exported = generate_latest(metrics.registry).decode()
    assert 'model="old"' not in exported
    assert 'model="new"' in exported


def test_nothing_is_said_of_a_generation_that_is_fed_no_longer() -> None:
    metrics = two()
    metrics.forget("g0001")
    exported = generate_latest(metrics.registry).decode()
    assert "g0001" not in exported
    assert 'braid_records_total{generation="g0002"} 200.0' in exported


@pytest.mark.redis
def test_the_heartbeat_is_of_the_generation_that_serves(valkey: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis={"url": valkey}, prefix=f"{tmp_path.name}-")
    metrics = two()
    heart = Heartbeat(settings, "one", metrics)
    heart.beat("g0001", [0, 1], {"g0002": "its worker fails"})
    (told,) = (workers(settings) or {}).values()
    assert (told["generation"], told["model"], told["records"]) == ("g0001", "old", 100)
    assert told["problems"] == {"g0002": "its worker fails"}
    assert told["cache"] is None
    cache = FeatureCache(1000)
    cache.get("text", [b"key"], 8, 0)
    metrics.cache.show(cache)
    heart.beat("g0002", [0], {})  # it took over: the difference is no rate
    (told,) = (workers(settings) or {}).values()
    assert (told["generation"], told["model"], told["records"]) == ("g0002", "new", 200)
    assert (told["records_per_s"], told["partitions"]) == (0.0, [0])
    assert told["cache"] == {"hits": 0, "misses": 1, "bytes": 0}
    serving = settings.replace(generation="g0002")  # `braid status` after the flip
    assert list(workers(serving) or {}) == ["one"]
    assert workers(settings.replace(prefix="other-")) == {}
    heart.close()
    assert workers(settings) == {}


@pytest.mark.redis
def test_the_heartbeat_shows_the_load_since_the_last_one(valkey: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis={"url": valkey}, prefix=f"{tmp_path.name}-")
    metrics = two()
    heart = Heartbeat(settings, "one", metrics)
    heart.beat("g0001", [0], {})
    (idle,) = (workers(settings) or {}).values()
    assert (idle["busy"], idle["batch_records"], idle["padding_efficiency"]) == (0.0, None, None)
    serving = metrics.of("g0001")
    serving.batch(30, 1e6)  # a device that is no CPU counts by its calls
    serving.batch(50, 1e6)
    serving.watch_queue(lambda: {"preparing": 3, "encoding": 4})
    where = {"generation": "g0001", "state": "encoding"}
    assert metrics.registry.get_sample_value("braid_queue_records", where) == 4
    heart.beat("g0001", [0], {})
    (told,) = (workers(settings) or {}).values()
    assert (told["busy"], told["batch_records"], told["queue"]) == (1.0, 40.0, 7)
    metrics.sub_batches.add(SubBatch("text", 4, 30, 40, began=0.0, ended=1e-9, on_cpu=True))
    serving.batch(1, 1e6)
    heart.beat("g0001", [0], {})
    (told,) = (workers(settings) or {}).values()
    assert (told["busy"], told["padding_efficiency"]) == (0.0, 0.75)
    assert load_line(told) == "device 0% busy, 7 in flight, 1 records a batch, 25% padding"
    heart.close()
