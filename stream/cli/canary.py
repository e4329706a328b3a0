"""`braid models canary`: compare a version with the champion on a share of the live records."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, RegistryError
from ..registry.canaries import KEY, Canaries, Canary
from ..registry.versions import Champion, Registry, registry_of
from ..settings import Settings
from .common import AsJson, bar

if TYPE_CHECKING:
    from ..monitoring.canary_comparison import Comparison

SHARE = 0.05
LOOK_S = 1.0


def add(models: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to `braid models`."""

    @models.command()
    def canary(
        context: typer.Context,
        version: Annotated[
            str | None, typer.Argument(help="The challenger; without it the last canary is shown.")
        ] = None,
        share: Annotated[
            float | None,
            typer.Option(
                help="Share of the records, over 0 to 1; else 0.05, or 1 with --partitions."
            ),
        ] = None,
        partitions: Annotated[
            str | None, typer.Option(help="Only records of these partitions: 0,3.")
        ] = None,
        records: Annotated[
            int | None,
            typer.Option(min=1, help="Wait until so many records are compared, then end it."),
        ] = None,
        promote: Annotated[
            bool, typer.Option("--promote", help="Promote it if it passes.")
        ] = False,
        force: Annotated[
            bool, typer.Option(help="Even if it did not pass its examination.")
        ] = False,
        stop: Annotated[bool, typer.Option("--stop", help="End the running canary.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Let a version predict a share of the live records beside the champion.

        Its predictions are marked and carry the champion's, so that both are compared on the same
        records; all vectors are the champion's. Records that it fails at are predicted by the
        champion. With --records the command waits and ends with status 1 if it does not pass.
        Interrupted, the canary continues: --stop ends it.

        Example: braid models canary 2 --share 0.05 --records 1000 --promote
        """
        settings = settings_of(context)
        registry = registry_of(settings)
        if version is None or stop:
            options = (version, share, partitions, records, promote or None, force or None)
            if any(option is not None for option in options):
                raise ConfigError("--stop, and the state without a version, take --json only")
            shown = _compared(settings, registry, stop=stop)
        elif promote and records is None:
            raise ConfigError("--promote needs --records: how many are to be compared before")
        else:
            shown = _begin(settings, registry, version, share, partitions, records, force=force)
            if records is not None:
                comparison = _watched(settings, registry, shown, records, quiet=as_json)
                state, why = "stopped", "it passed; promoting it was not asked for"
                if not comparison.passed:
                    state, why = "failed", comparison.reason
                elif promote:
                    state, why = _promoted(settings, registry, shown, comparison, force=force)
                shown = _ended(settings, registry, shown, state, why, asdict(comparison))
        if as_json:
            print(json.dumps(None if shown is None else asdict(shown)))
        elif shown is None:
            print("no canary yet: braid models canary VERSION --share 0.05")
        else:
            print("\n".join(_lines(shown)))
        if shown is not None and records is not None and shown.state == "failed":
            print(f"braid: {shown.model} is not promoted: {shown.why}", file=sys.stderr)
            raise typer.Exit(1)


def _begin(
    settings: Settings,
    registry: Registry,
    version: str,
    share: float | None,
    partitions: str | None,
    records: int | None,
    *,
    force: bool,
) -> Canary:
    from ..kafka.topics import ensure
    from ..monitoring.canary_comparison import limits_of
    from ..registry.announcements import announce
    from ..trainer.job import prove

    limits = limits_of(settings)
    if records is not None and records < limits.min_records:
        raise ConfigError(
            f"--records is {records}, canary.min_records wants at least {limits.min_records}"
        )
    name = registry.resolve(version)
    registry.admit(name, force=force, unproven=True)
    prove(registry, name, settings.model.device)
    numbers = (
        _numbers(partitions, ensure(settings, settings.generation, role="operator"))
        if partitions is not None
        else []
    )
    if share is None:
        share = 1.0 if numbers else SHARE
    began = Canaries(registry.log).begin(
        registry, name, share=share, partitions=numbers, force=force
    )
    announce(settings, KEY, began.facts())
    return began


def _numbers(text: str, count: int) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(numbers) < len(words) or not all(number < count for number in numbers):
        raise ConfigError(
            f"--partitions: expected numbers from 0 to {count - 1} like 0,3, got {text!r:.60}"
        )
    return numbers


def _watched(
    settings: Settings, registry: Registry, canary: Canary, records: int, *, quiet: bool
) -> Comparison:
    """Wait until so many records are compared.

    Raises:
        RegistryError: it was ended, or another version was promoted.
    """
    from ..monitoring.canary_comparison import Comparing, limits_of

    canaries, comparing = Canaries(registry.log), Comparing(canary)
    with bar("canary", quiet) as progress:
        while True:
            comparing.read(settings)
            seen, now = comparing.seen, canaries.last()
            if now is None or now.number != canary.number or now.state != "running":
                why = "it is gone" if now is None else now.why
                raise RegistryError(f"canary {canary.number} ended after {seen} records: {why}")
            progress("canary", min(seen, records), records, {})
            if seen >= records:
                return comparing.result(limits_of(settings))
            time.sleep(LOOK_S)


def _promoted(
    settings: Settings,
    registry: Registry,
    canary: Canary,
    comparison: Comparison,
    *,
    force: bool,
) -> tuple[str, str]:
    """Promote the challenger; returns the canary's state and the reason.

    A canary that compared labels is the evidence that the judge did not have.
    """
    from ..registry.promotion import promote

    why = f"passed canary {canary.number}"
    try:
        labelled = any(task.interval is not None for task in comparison.tasks.values())
        if labelled:
            registry.admit(canary.model, force=force, unproven=True)
            force = True
        done = promote(settings, registry, canary.model, after=canary.seq, force=force, why=why)
    except RegistryError as error:
        return "failed", f"it passed, but {error}"
    if isinstance(done, Champion):
        return "promoted", f"champion number {done.seq}"
    return "promoted", f"{done.generation} is built for it and takes over by itself"


def _ended(
    settings: Settings,
    registry: Registry,
    canary: Canary,
    state: str,
    why: str,
    comparison: Mapping[str, Any] | None = None,
) -> Canary:
    """End the canary and notify the workers, which would notice at their next poll."""
    from ..registry.announcements import announce

    ended = Canaries(registry.log).end(canary, state, why=why, comparison=comparison)
    announce(settings, KEY, ended.facts())
    return ended


def _compared(settings: Settings, registry: Registry, *, stop: bool) -> Canary | None:
    """The last canary with its comparison: now if it runs, else at its end."""
    from ..monitoring.canary_comparison import compared

    canaries = Canaries(registry.log)
    canary = canaries.last()
    if stop:
        if canary is None or canary.state != "running":
            raise RegistryError("no canary runs")
        canary = _ended(settings, registry, canary, "stopped", "stopped by hand")
    elif canary is None or (canary.state != "running" and canary.comparison is not None):
        return canary
    comparison = asdict(compared(settings, canary))
    if canary.state == "running":
        return replace(canary, comparison=comparison)
    return canaries.keep(canary, comparison)


def _lines(canary: Canary) -> Iterator[str]:
    of = f" of partitions {', '.join(map(str, canary.partitions))}" if canary.partitions else ""
    why = f": {canary.why}" if canary.why else ""
    yield (
        f"canary {canary.number}: {canary.model} beside {canary.champion} on {canary.share:g} of "
        f"the records{of}, {canary.state}{why}"
    )
    comparison = canary.comparison
    if comparison is None:
        return
    yield f"  {comparison['records']} records compared, {comparison['failures']} failed"
    for reason, count in comparison["reasons"].items():
        yield f"    {count} times {reason}"
    if comparison["seconds"]:
        champion_s, challenger_s = comparison["seconds"]
        yield (
            f"  encoding one took {1000 * champion_s:.2f} ms, the challenger "
            f"{1000 * challenger_s:.2f} ms"
        )
    for name, task in comparison["tasks"].items():
        yield f"  {name}: {'; '.join(_of_task(task))}"
    decision = {True: "passes", False: "does not pass", None: "no verdict yet"}[
        comparison["passed"]
    ]
    yield f"  {decision}: {comparison['reason']}"


def _of_task(task: Mapping[str, Any]) -> Iterator[str]:
    if task["agreement"] is not None:
        yield f"both decide alike for {task['agreement']:.1%}"
    if task["confidence"]:
        yield "confidence {:.3f}, the challenger {:.3f}".format(*task["confidence"])
    if task["scores"]:
        yield "{} {:.4f}, the challenger {:.4f} on {} labelled".format(
            task["metric"], *task["scores"], task["labelled"]
        )
    if task["interval"]:
        yield "difference {:+.4f} (95 %: {:+.4f} to {:+.4f}, limit {:+.4f})".format(
            task["difference"], *task["interval"], task["limit"]
        )
    if task["missing"]:
        yield f"the challenger lacks it in {task['missing']}"
