"""`braid status` and `braid doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable

import typer

from ..settings import Settings
from ..trainer.lock import described
from .common import AsJson


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to the command line."""

    @app.command()
    def status(context: typer.Context, as_json: AsJson = False) -> None:
        """Show lag, workers, versions, drift and the index.

        Example: braid status --json
        """
        from ..monitoring.drift_results import line
        from .reports import status as report

        state = report(settings_of(context))
        if as_json:
            print(json.dumps(state))
            return
        print(f"generation  {state['generation']}   topic {state['vectors_topic']}")
        champion = state["champion"] or "none yet: braid retrain"
        print(f"champion    {champion}")
        for partition, lag in state["lag"].items():
            print(f"partition {partition:>3}  lag {lag}")
        for partition, move in state["handover"].items():
            print(
                f"handover of partition {partition} from {move['before']} to {move['after']}: "
                f"at offset {move['at']}, {move['to_come']} records to come before it, "
                f"{move['to_predict']} offsets to predict by {move['before']}"
            )
        dead = state["dead_letters"]
        kinds = [f"{row['stage']} {row['kind']} {row['count']}" for row in dead["by"]]
        more = "" if dead["complete"] else "at least "
        print(
            f"dead letters {more}{dead['total']} in the last hour"
            + (f": {', '.join(kinds)} (braid dead-letters list)" if kinds else "")
        )
        if state["workers"] is None:
            print("workers     unknown: Redis does not answer")
        for slot, worker in (state["workers"] or {}).items():
            print(
                f"worker {slot}: {worker.get('records_per_s', 0)} records/s, "
                f"generation {worker.get('generation')}, model {worker.get('model')}, "
                f"partitions {worker.get('partitions')}"
            )
            for generation, why in (worker.get("problems") or {}).items():
                print(f"            {generation} is not fed as it should be: {why}")
        if state["drift"] is None:
            print("drift       unknown: Redis does not answer")
        for version, window in (state["drift"] or {}).items():
            print(f"drift       {line(version, window)}")
        if (canary := state["canary"]) is not None:
            print(
                f"canary      {canary['name']} predicts {canary['share']:.0%}: braid models canary"
            )
        if state["trainer"] is not None:
            print(f"trainer     {described(state['trainer'])}")
        print(f"index       {state['index'] or 'does not answer'}")

    @app.command()
    def doctor(context: typer.Context, as_json: AsJson = False) -> None:
        """Check what braid depends on: broker, Redis, FAISS, torch, versions.

        Example: braid doctor
        """
        from .reports import doctor as report

        checks = report(settings_of(context))
        if as_json:
            print(json.dumps(checks))
        else:
            for name, check in checks.items():
                print(f"{'ok ' if check['ok'] else 'BAD'}  {name:10} {check['says']}")
        if not all(check["ok"] for check in checks.values()):
            raise SystemExit(1)
