"""`braid simulate`: what a cluster would do, by the measured costs of each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..settings import Settings
from .common import AsJson

if TYPE_CHECKING:
    from ..simulation.cluster import Cluster, Costs

MOST_WORKERS = 1000
AGREES = 0.2


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to the command line."""

    @app.command()
    def simulate(
        context: typer.Context,
        workers: Annotated[str, typer.Option(help="How many, joined by commas.")] = "1,2,4,8",
        records: Annotated[float, typer.Option(help="Of the topic, as 1e9.")] = 1e6,
        partitions: Annotated[int, typer.Option(min=1, help="Of `records`.")] = 64,
        cores: Annotated[int, typer.Option(min=1, help="Of a machine.")] = 2,
        per_machine: Annotated[int, typer.Option(min=1, help="Workers on a machine.")] = 1,
        brokers: Annotated[
            int, typer.Option(min=0, help="On machines of their own; 0: one with the workers.")
        ] = 3,
        rate: Annotated[
            float, typer.Option(help="Records that arrive a second; 0: all wait already.")
        ] = 0.0,
        rebuild: Annotated[
            float, typer.Option(help="Records that a new generation embeds meanwhile.")
        ] = 0.0,
        lose_broker_at: Annotated[
            float | None, typer.Option(help="When a broker is lost, in seconds.")
        ] = None,
        costs: Annotated[Path | None, typer.Option(help="JSON: seconds of each step.")] = None,
        against: Annotated[
            Path | None,
            typer.Option(help="Output of `python -m benchmarks.scaling --json`, to compare with."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Simulate a cluster: throughput, lag and bottleneck, by measured costs of each step.

        With --against, the costs are fitted to the runs of one worker and of the most.

        Example: braid simulate --workers 1,10,100,1000 --records 1e9 --partitions 1000
        """
        from ..simulation.cluster import Cluster

        settings = settings_of(context)
        measured = None if against is None else _rows(against)
        known = _costs(costs) if measured is None else fitted(measured)
        base = Cluster(
            workers=1,
            records=int(records),
            partitions=partitions,
            cores=cores,
            per_machine=per_machine,
            brokers=brokers,
            rate=rate,
            rebuild=int(rebuild),
            rebuild_share=settings.refresh.backfill_duty_cycle,
            lost_at_s=lose_broker_at,
        )
        rows = report(base, known, _counts(workers), measured)
        print(json.dumps(rows) if as_json else "\n".join(lines(rows)), flush=True)


def report(
    base: Cluster,
    costs: Costs,
    counts: list[int],
    measured: Mapping[int, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """A row for each number of workers; with what was measured, where it was.

    Args:
        measured: number of workers -> the row of benchmarks.scaling. All of it is on one machine.
    """
    from ..simulation.cluster import simulate

    if measured is not None:
        counts = sorted(measured)
        base = replace(base, brokers=0, per_machine=max(counts))
    rows = []
    for count in counts:
        row = simulate(replace(base, workers=count), costs)
        if measured is not None:
            row["measured"] = measured[count]["records a second"]
            row["simulated / measured"] = round(row["records a second"] / row["measured"], 3)
            row["within 20 %"] = abs(row["simulated / measured"] - 1) <= AGREES
        rows.append(row)
    return rows


def fitted(measured: Mapping[int, Mapping[str, float]]) -> Costs:
    """The costs by which one worker, and the cores of the most workers, do what was measured.

    What a record costs the cores is taken where they are full: one worker alone wakes and waits.
    """
    from ..simulation.cluster import Costs

    worker_s = 1 / measured[1]["records a second"]
    # The rest of what the machine's cores did is the broker's, mostly.
    broker_s = measured[max(measured)]["core ms a record"] / 1000 - worker_s
    return Costs(worker_s=worker_s, broker_s=max(0.0, broker_s))


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The report for a person."""
    names = [name for name in rows[0] if name != "utilisation"]
    table = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    ]


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--workers: numbers joined by commas, not {text!r}") from None
    if not all(1 <= count <= MOST_WORKERS for count in counts):
        raise ConfigError(f"--workers: 1 to {MOST_WORKERS}")
    return counts


def _costs(file: Path | None) -> Costs:
    from ..simulation.cluster import Costs

    try:
        return Costs(**({} if file is None else json.loads(file.read_text())))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--costs: {file}: {error}") from None


def _rows(file: Path) -> dict[int, Mapping[str, float]]:
    """Number of workers -> its row."""
    try:
        rows = json.loads(file.read_text())["rows"]
        measured = {int(name.split()[0]): row for name, row in rows.items() if "worker" in name}
        fitted(measured)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"--against: {file} is no output of benchmarks.scaling: {error}"
        ) from None
    return measured
