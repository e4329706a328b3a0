"""The Chrome trace of a worker: valid JSON at any time, and bounded."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from braid.encoders.timings import SubBatch
from braid.stream.errors import ConfigError
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.monitoring.steps import Steps, step, traced
from braid.stream.monitoring.trace import FLUSH_S, Trace, trace_of
from braid.stream.settings import Settings


def events(file: Path) -> list[dict[str, Any]]:
    """The events of a file that may still be written: the closing bracket is missing."""
    read: list[dict[str, Any]] = json.loads(file.read_text().rstrip().rstrip(",") + "]")
    return read


def test_spans_and_waits_are_read_while_the_file_is_open(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json")
    trace.span("decode", 10.0, 10.25, records=3)
    trace.span("poll", 10.3, 10.3)  # nothing was done
    thread = threading.Thread(
        target=lambda: trace.wait("collect wait", 9.0, 10.5 + FLUSH_S), name="other"
    )
    thread.start()
    thread.join()
    name, decode, other, began, ended = events(tmp_path / "t.json")
    assert (name["ph"], name["name"], name["tid"]) == ("M", "thread_name", decode["tid"])
    assert (decode["name"], decode["ph"], decode["ts"], decode["dur"]) == (
        ("decode", "X", 10_000_000, 250_000)
    )
    assert decode["args"] == {"records": 3}
    assert other["args"] == {"name": "other"}
    assert (began["ph"], ended["ph"], began["id"]) == ("b", "e", ended["id"])
    assert (began["ts"], ended["ts"]) == (9_000_000, 11_500_000)
    trace.close()


def test_it_stops_at_its_limit_with_whole_events(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json", limit=2000)
    for number in range(1000):
        trace.span("decode", 2.0 * number, 2.0 * number + 1)
    trace.close()
    assert 1500 < (tmp_path / "t.json").stat().st_size <= 2002
    assert len(events(tmp_path / "t.json")) > 10


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert trace_of(Settings(home=tmp_path)) is None
    file = tmp_path / "absent" / "t.json"
    with pytest.raises(ConfigError, match=r"worker\.profile: .*absent/t\.json cannot be written"):
        trace_of(Settings(home=tmp_path, worker={"profile": str(file)}))


def test_a_step_and_a_sub_batch_are_counted_and_traced(tmp_path: Path) -> None:
    metrics, trace = WorkerMetrics(), Trace(tmp_path / "t.json")

    class Works:
        steps = Steps(metrics.of("g0001"), trace)

        @step("decode")
        def decode(self, fails: bool) -> str:
            if fails:
                raise ValueError
            return "done"

    assert Works().decode(False) == "done"
    with pytest.raises(ValueError):
        Works().decode(True)
    Works.steps.waited("collect wait", time.monotonic() - 5, records=2)
    part = SubBatch("text", 4, 30, 40, began=20.0, ended=22.5, on_cpu=True)
    for watcher in (traced(trace), metrics.sub_batches.add):
        watcher(part)
        watcher(part._replace(on_cpu=False))
    trace.close()
    trace.span("late", 50.0, 60.0)  # a thread that ends after it
    value = metrics.registry.get_sample_value
    of = {"generation": "g0001"}
    assert value("braid_step_seconds_count", of | {"step": "decode"}) == 2
    assert 5 <= value("braid_step_seconds_sum", of | {"step": "collect wait"}) < 3600  # type: ignore[operator]
    assert value("braid_core_busy_seconds_total") == 2.5  # launches on a GPU are no time of it
    for kind, size in (("real", 60), ("computed", 80)):
        labels = {"modality": "text", "kind": kind}
        assert value("braid_encoded_size_total", labels) == size
    assert metrics.sub_batches.totals == (2.5, 60, 80)
    (first, _) = (one for one in events(tmp_path / "t.json") if one["name"] == "sub-batch text")
    assert first["args"] == {"inputs": 4, "size": 30, "computed": 40}


def test_a_full_disk_ends_the_trace_and_not_the_step(caplog: pytest.LogCaptureFixture) -> None:
    trace = Trace(Path("/dev/full"))
    for number in range(3):
        trace.span("decode", 10.0 + number, 10.5 + number + FLUSH_S)
    assert [record.getMessage() for record in caplog.records] == [
        "the trace ends: No space left on device"
    ]
    trace.close()
