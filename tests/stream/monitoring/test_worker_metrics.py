"""What a worker's process tells: each generation by itself, and the serving one's heartbeat."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import generate_latest

from braid.stream.monitoring.heartbeat import Heartbeat, workers
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings


def two() -> WorkerMetrics:
    """A process that serves from g0001 and builds g0002."""
    metrics = WorkerMetrics()
    for number, (generation, name) in enumerate((("g0001", "old"), ("g0002", "new")), start=1):
        its = metrics.of(generation)
        its.model(name)
        its.assigned(number)
        its.lag({0: 10 * number})
        its.published(records=100 * number, seconds=0.1)
        its.batch(number, 0.1)
        its.dead_letter("decode", "BadRecord")
    return metrics


def test_two_workers_of_one_process_are_counted_apart() -> None:
    metrics = two()
    for number, (generation, name) in enumerate((("g0001", "old"), ("g0002", "new")), start=1):
        its = {"generation": generation}
        for metric, labels, value in (
            ("braid_records_total", {}, 100 * number),
            ("braid_partitions", {}, number),
            ("braid_lag", {"partition": "0"}, 10 * number),
            ("braid_model_info", {"model": name}, 1),
            ("braid_batch_records_sum", {}, number),
            ("braid_dead_letters_total", {"stage": "decode", "kind": "BadRecord"}, 1),
            ("braid_transactions_refused_total", {}, 0),
        ):
            assert metrics.registry.get_sample_value(metric, its | labels) == value, metric
    metrics.of("g0001").model("newer")
    said = generate_latest(metrics.registry).decode()
    assert 'model="old"' not in said
    assert 'model="new"' in said


def test_nothing_is_said_of_a_generation_that_is_fed_no_longer() -> None:
    metrics = two()
    metrics.forget("g0001")
    said = generate_latest(metrics.registry).decode()
    assert "g0001" not in said
    assert 'braid_records_total{generation="g0002"} 200.0' in said


@pytest.mark.redis
def test_the_heartbeat_is_of_the_generation_that_serves(valkey: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis={"url": valkey}, prefix=f"{tmp_path.name}-")
    metrics = two()
    heart = Heartbeat(settings, "one", metrics)
    heart.beat("g0001", [0, 1], {"g0002": "its worker fails"})
    (told,) = (workers(settings) or {}).values()
    assert (told["generation"], told["model"], told["records"]) == ("g0001", "old", 100)
    assert told["problems"] == {"g0002": "its worker fails"}
    heart.beat("g0002", [0], {})  # it took over: the difference is no rate
    (told,) = (workers(settings) or {}).values()
    assert (told["generation"], told["model"], told["records"]) == ("g0002", "new", 200)
    assert (told["records_per_s"], told["partitions"]) == (0.0, [0])
    serving = settings.replace(generation="g0002")  # `braid status` after the flip
    assert list(workers(serving) or {}) == ["one"]
    assert workers(settings.replace(prefix="other-")) == {}
    heart.close()
    assert workers(settings) == {}
