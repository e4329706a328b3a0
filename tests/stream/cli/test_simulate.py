"""`braid simulate`: the model of a cluster, and the comparison with what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from braid.stream.cli.main import app
from braid.stream.errors import ConfigError
from braid.stream.simulation.cluster import Cluster, Costs, simulate

COSTS = Costs(worker_s=1e-4, broker_s=1e-5, transaction_s=0.01, batch=100)


def cluster(workers: int, **rest: Any) -> Cluster:
    return Cluster(**{"workers": workers, "records": 100_000, "partitions": 8} | rest)


def rate(workers: int, costs: Costs = COSTS, **rest: Any) -> float:
    return float(simulate(cluster(workers, **rest), costs)["records a second"])


def test_workers_scale_until_something_is_full() -> None:
    one = rate(1)
    assert one == pytest.approx(10_000, rel=0.02)
    assert rate(4) == pytest.approx(4 * one, rel=0.05)
    assert rate(4, per_machine=4, cores=2) == pytest.approx(2 * one, rel=0.05)
    full = simulate(cluster(8, brokers=1, cores=1, records=400_000), Costs(broker_s=1e-4))
    assert full["bottleneck"] == "brokers"
    assert full["records a second"] == pytest.approx(10_000, rel=0.02)


def test_more_workers_than_partitions_have_nothing_to_do() -> None:
    row = simulate(cluster(16), COSTS)
    assert row["records a second"] == pytest.approx(rate(8), rel=0.01)
    assert row["bottleneck"] == "partitions"


def test_the_slowest_step_bounds_a_worker() -> None:
    row = simulate(cluster(1, records=20_000), Costs(worker_s=1e-5, encode_s=1e-3))
    assert row["records a second"] == pytest.approx(1000, rel=0.05)
    assert row["bottleneck"] == "devices"


def test_what_arrives_slowly_does_not_lag() -> None:
    row = simulate(cluster(2, rate=5000.0), COSTS)
    assert row["records a second"] == pytest.approx(5000, rel=0.02)
    assert row["records behind, most"] < 2000
    assert row["bottleneck"] == "arrivals"


def test_a_lost_broker_is_waited_for() -> None:
    whole, lost = (
        simulate(cluster(2, rate=5000.0, lost_at_s=at, failover_s=8.0), COSTS) for at in (None, 4.0)
    )
    assert lost["records behind, most"] > 5 * whole["records behind, most"]
    assert lost["seconds"] == pytest.approx(whole["seconds"], abs=3.0)  # it has caught up


def test_a_rebuild_takes_of_the_machine_and_ends() -> None:
    alone_s = 100_000 / rate(1, cores=1)
    half, tenth = (
        simulate(cluster(1, rebuild=100_000, cores=1, rebuild_share=share), COSTS)
        for share in (0.5, 0.1)
    )
    assert half["seconds"] == pytest.approx(2 * alone_s, rel=0.05)
    assert tenth["seconds"] == pytest.approx(alone_s / 0.9, rel=0.05)
    assert tenth["rebuild, seconds"] == pytest.approx(2 * alone_s, rel=0.05)


@pytest.mark.parametrize("broken", [{"workers": 0}, {"lost_at_s": 1.0, "brokers": 1}])
def test_what_cannot_be_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        cluster(**{"workers": 1} | broken)


def test_the_command_compares_with_what_was_measured(tmp_path: Path) -> None:
    measured: dict[str, dict[str, float]] = {
        "1 worker": {"records a second": 20_000, "core ms a record": 0.085},
        "2 workers": {"records a second": 26_000, "core ms a record": 0.08},
        "4 workers": {"records a second": 15_000, "core ms a record": 0.075},
        "10 times the records": {"rate / before": 1.0},
    }
    file = tmp_path / "scaling.json"
    file.write_text(json.dumps({"rows": measured}))
    result = CliRunner().invoke(app, ["simulate", "--against", str(file), "--json"])
    one, two, four = json.loads(result.stdout)
    assert one["simulated / measured"] == pytest.approx(1, rel=0.03)
    assert two["simulated / measured"] == pytest.approx(2 / 0.075 / 26, rel=0.03)
    assert (two["within 20 %"], four["within 20 %"]) == (True, False)
    del measured["4 workers"]["core ms a record"]
    file.write_text(json.dumps({"rows": measured}))
    result = CliRunner().invoke(app, ["simulate", "--against", str(file)])
    assert "is no output of benchmarks.scaling" in str(result.exception)


def test_the_command_takes_costs(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text('{"worker_s": 0.001}')
    command = ["simulate", "--workers", "1,2", "--records", "1e5", "--costs", str(file)]
    shown = CliRunner().invoke(app, command).stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["workers", "1", "2"]
    assert 950 < float(shown[1].split()[1]) < 1010
    file.write_text('{"worker": 1}')
    assert isinstance(CliRunner().invoke(app, command).exception, ConfigError)
