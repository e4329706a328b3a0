"""`braid status` and `braid doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import typer

from ..settings import Settings
from .common import AsJson


def index_line(node: Mapping[str, Any] | None) -> str:
    """An index node's answer to `GET /v1/status`, in a line."""
    if node is None:
        return "does not answer"
    lag = sum((node.get("lag") or {}).values())
    parts = [
        f"generation {node.get('generation')}",
        f"model {node.get('model')}",
        f"{node.get('records', 0)} records",
        f"lag {lag}",
        "ready" if node.get("ready") else "not ready",
    ]
    parts += [f"builds {name}" for name in node.get("building") or {}]
    if node.get("rebuilt"):
        parts.append(f"rebuilt: {node['rebuilt']}")
    return ", ".join(parts)


def source_line(source: Mapping[str, Any]) -> str:
    """A source of `braid ingest`, in a line."""
    lag = sum(source["lag"].values()) if source["lag"] else "unknown: there is no such topic"
    return f"topic {source['topic']}, lag {lag}"


def load_line(worker: Mapping[str, Any]) -> str:
    """How loaded a worker is, by its heartbeat, in a line."""
    batch, efficiency = worker.get("batch_records"), worker.get("padding_efficiency")
    parts = [f"device {worker.get('busy', 0):.0%} busy", f"{worker.get('queue', 0)} in flight"]
    parts += [f"{batch:g} records a batch"] if batch is not None else []
    parts += [f"{1 - efficiency:.0%} padding"] if efficiency is not None else []
    return ", ".join(parts)


def latency_line(latency: Mapping[str, Any]) -> str:
    """What a worker says of `batch.latency_ms`."""
    p99_s, target_ms = latency["p99_s"], 1000 * latency["target_s"]
    measured = "no records yet" if p99_s is None else f"p99 {1000 * p99_s:.0f} ms"
    line = f"latency: {measured}, target {target_ms:g} ms"
    return f"{line}, missed: {latency['missed']}" if latency["missed"] else line


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to the command line."""

    @app.command()
    def status(context: typer.Context, as_json: AsJson = False) -> None:
        """Show lag, workers, versions, drift and the index.

        Example: braid status --json
        """
        from ..monitoring.drift_results import line
        from ..trainer.lock import described
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
        for name, source in state["sources"].items():
            print(f"source {name}: {source_line(source)}")
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
            print(f"            {load_line(worker)}")
            if latency := worker.get("latency"):
                print(f"            {latency_line(latency)}")
            if (cache := worker.get("cache")) and (total := cache["hits"] + cache["misses"]):
                share, mb = cache["hits"] / total, cache["bytes"] / 1e6
                print(f"            cache: {share:.0%} of {total} features, {mb:.0f} MB")
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
        print(f"index       {index_line(state['index'])}")

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
