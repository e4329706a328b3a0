"""What `braid status` says in words."""

from __future__ import annotations

from braid.stream.cli.status import index_line, latency_line, load_line


def test_an_index_node_is_described_without_python_objects() -> None:
    node = {
        "generation": "g0001",
        "model": "braid-0001",
        "records": 64,
        "lag": {"0": 2, "1": 1},
        "ready": True,
        "building": {"g0002": {"records": 3}},
        "rebuilt": "no snapshot",
        "segments": [{"kind": "growing"}],
    }
    assert index_line(node) == (
        "generation g0001, model braid-0001, 64 records, lag 3, ready, builds g0002, "
        "rebuilt: no snapshot"
    )
    assert index_line(node | {"ready": False, "building": {}, "rebuilt": None}) == (
        "generation g0001, model braid-0001, 64 records, lag 3, not ready"
    )
    assert index_line(None) == "does not answer"


def test_the_load_of_a_worker_is_one_line() -> None:
    worker = {"busy": 0.934, "queue": 512, "batch_records": 240.5, "padding_efficiency": 0.91}
    assert load_line(worker) == (
        "device 93% busy, 512 in flight, 240.5 records a batch, 9% padding"
    )
    idle = {"busy": 0.0, "queue": 0, "batch_records": None, "padding_efficiency": None}
    assert load_line(idle) == load_line({}) == "device 0% busy, 0 in flight"


def test_a_latency_target_and_why_it_is_missed_are_shown() -> None:
    latency = {"target_s": 0.5, "p99_s": 0.4321, "missed": None}
    assert latency_line(latency) == "latency: p99 432 ms, target 500 ms"
    assert latency_line(latency | {"p99_s": None}) == "latency: no records yet, target 500 ms"
    assert latency_line(latency | {"missed": "9 records wait"}) == (
        "latency: p99 432 ms, target 500 ms, missed: 9 records wait"
    )
