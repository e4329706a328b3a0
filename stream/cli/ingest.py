"""`braid ingest`: topics of others become records."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..settings import Settings
from .common import AsJson

if TYPE_CHECKING:
    from ..kafka.client import Output
    from ..settings.source_groups import Source


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to the command line."""

    @app.command()
    def ingest(
        context: typer.Context,
        sources: Annotated[
            list[str] | None, typer.Argument(help="Names of sources; without any, all.")
        ] = None,
        check: Annotated[
            bool,
            typer.Option("--check", help="Map the newest message of each source, and end."),
        ] = False,
        slot: Annotated[str | None, typer.Option(help="Name of this process; see slots.")] = None,
        metrics_port: Annotated[int | None, typer.Option(help="Serve /metrics here.")] = None,
        as_json: AsJson = False,
    ) -> None:
        """Turn the topics of [[sources]] in braid.toml into records, exactly once.

        Start as many as you like: they share the partitions. With --check nothing is consumed;
        the record that a sample of each source becomes is printed, and the exit status is 1 if
        one does not map.

        Example: braid ingest --check
        """
        if check:
            raise SystemExit(_check(settings_of(context), sources or (), as_json))
        from ..worker.ingest.app import run

        settings = settings_of(
            context, service=True, worker={"slot": slot}, metrics={"port": metrics_port}
        )
        run(settings, sources or ())


def _check(settings: Settings, names: Any, as_json: bool) -> int:
    """Print a sample of each source; the exit status."""
    from ..worker.ingest.app import converters_of

    reports = {
        converter.source.title: _report(settings, converter.source)
        for converter in converters_of(settings, names)
    }
    if as_json:
        print(json.dumps(reports))
    for name, report in () if as_json else reports.items():
        at = report.get("at", "" if "error" in report else "its topic has no message")
        print(f"{name}: {at}")
        if "error" in report:
            print(f"{name}: {report['error']}", file=sys.stderr)
        for output in report.get("outputs", ()):
            shown = json.dumps(output["value"], indent=2, ensure_ascii=False)
            print(f"to {output['topic']}, key {output['key']}:\n{shown}")
    return int(any("error" in report for report in reports.values()))


def _report(settings: Settings, source: Source) -> dict[str, Any]:
    from ..sources.samples import check_sample

    try:
        sample = check_sample(settings, source)
    except ConfigError as error:  # the other sources are checked, too
        return {"error": str(error)}
    if sample is None:
        return {}
    report: dict[str, Any] = {"at": sample.where}
    if sample.error is not None:
        return report | {"error": f"does not map: {sample.error}"}
    return report | {"outputs": [_shown(output) for output in sample.outputs]}


def _shown(output: Output) -> dict[str, Any]:
    from ..dead_letters.letters import view

    return {
        "topic": output.topic,
        "key": (output.key or b"").decode(),
        "value": view(output.value),
    }
