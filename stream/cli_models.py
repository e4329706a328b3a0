"""`braid retrain` and `braid models`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from encoders.errors import EncodersError

from .cli_common import AsJson, bar
from .errors import ConfigError, RegistryError, StreamError
from .models import Champion, Registry
from .rollout import Rollouts
from .settings import Settings

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Give the command line these commands."""
    models = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="The model registry: versions and the champion.\n\nExample: braid models list",
    )
    app.add_typer(models, name="models")

    @app.command()
    def retrain(
        context: typer.Context,
        preset: Annotated[str, typer.Option(help="tiny, demo or base.")] = "demo",
        heads_only: Annotated[
            bool, typer.Option(help="Keep the space: train only heads and decision.")
        ] = False,
        seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
        promote: Annotated[
            bool | None,
            typer.Option(
                help="Make it champion; without either only the first version becomes it."
            ),
        ] = None,
        every: Annotated[
            str | None, typer.Option(help="Again and again, e.g. every 6h (s, m, h, d).")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Train a new model version from what is on `records`.

        Example: braid retrain --heads-only --promote
        """
        from .retrain import retrain as run

        settings = settings_of(context)
        period = None if every is None else seconds_of(every)

        def once() -> None:
            started = time.monotonic()
            with bar("retrain", as_json) as progress:
                manifest, serves = run(
                    settings,
                    preset=preset,
                    heads_only=heads_only,
                    seed=seed,
                    promote=promote,
                    progress=progress,
                )
            report = {
                "name": manifest.name,
                "version": manifest.version,
                "space": manifest.space,
                "champion": serves,
                "metrics": manifest.metrics,
                "seconds": round(time.monotonic() - started, 1),
            }
            if as_json:
                print(json.dumps(report), flush=True)
            else:
                state = "is champion" if serves else "waits: braid models promote"
                print(f"{manifest.name} (space {manifest.space}) {state}", flush=True)

        if period is None:
            once()
            return
        while True:
            began = time.monotonic()
            try:
                once()
            except (StreamError, EncodersError) as error:
                # The champion goes on serving; the next run may find what this one lacked.
                print(f"braid: this run made no version: {error}", file=sys.stderr, flush=True)
            time.sleep(max(0.0, period - (time.monotonic() - began)))

    @models.command("list")
    def list_(context: typer.Context, as_json: AsJson = False) -> None:
        """All versions, oldest first.

        Example: braid models list --json
        """
        registry = registry_of(settings_of(context))
        champion = registry.champion()
        rows = [
            {
                "name": manifest.name,
                "version": manifest.version,
                "space": manifest.space,
                "created_at": manifest.created_at,
                "champion": champion is not None and champion.name == manifest.name,
                "metrics": manifest.metrics,
            }
            for manifest in map(registry.manifest, registry.names())
        ]
        if as_json:
            print(json.dumps(rows))
            return
        for row in rows:
            mark = "*" if row["champion"] else " "
            print(f"{mark} {row['name']}  space {row['space']}  {row['created_at']}")
        if not rows:
            print("no versions yet: braid retrain")

    @models.command()
    def promote(
        context: typer.Context,
        version: Annotated[str, typer.Argument(help="A name or a number: braid-0002, 2.")],
        drop_missing: Annotated[
            bool,
            typer.Option(
                "--drop-missing", help="Let a new generation serve though it lacks some records."
            ),
        ] = False,
        as_json: AsJson = False,
    ) -> None:
        """Make a version champion; running workers and index nodes go over to it.

        A version of another space is built beside first: a generation of its own, which takes over
        when it has caught up and finds as well as the one that serves.

        Example: braid models promote 2
        """
        from .flipping import promote as run

        settings = settings_of(context)
        registry = registry_of(settings)
        done = run(settings, registry, registry.resolve(version), drop_missing=drop_missing)
        if isinstance(done, Champion):
            tell(done, as_json)
        elif as_json:
            print(json.dumps(asdict(done)))
        else:
            print(
                f"{done.generation} is built for {done.model}; it takes over by itself: "
                "braid models generations"
            )

    @models.command()
    def rollback(context: typer.Context, as_json: AsJson = False) -> None:
        """Go back to the champion before this one, and to its generation.

        Example: braid models rollback
        """
        from .flipping import rollback as run

        settings = settings_of(context)
        tell(run(settings, registry_of(settings)), as_json)

    @models.command()
    def generations(context: typer.Context, as_json: AsJson = False) -> None:
        """Which generations are built, serve, or wait out their grace.

        Example: braid models generations
        """
        registry = registry_of(settings_of(context))
        rows = [asdict(rollout) for rollout in Rollouts(registry.root).all()]
        if as_json:
            print(json.dumps(rows))
            return
        for row in rows:
            print(f"{row['generation']}  {row['state']:8}  {row['model']}  {row['why']}")
        if not rows:
            print("one generation, the first; a version of another space opens the next")

    @models.command("drop")
    def drop_(
        context: typer.Context,
        generation: Annotated[str, typer.Argument(help="Its name: g0002.")],
        as_json: AsJson = False,
    ) -> None:
        """Drop a generation that does not serve: its topic, its group, its index.

        Example: braid models drop g0002
        """
        from .flipping import drop as run

        settings = settings_of(context)
        registry = registry_of(settings)
        rollout = Rollouts(registry.root).get(generation)
        champion = registry.champion()
        if champion is not None and champion.generation == generation:
            raise RegistryError(f"{generation} serves: promote or roll back first")
        if rollout is None:
            raise RegistryError(f"no generation {generation!r}: braid models generations")
        run(settings, registry, rollout, why="dropped by hand")
        print(json.dumps({"dropped": generation}) if as_json else f"{generation} is dropped")


def registry_of(settings: Settings) -> Registry:
    return Registry(settings.models_dir, base=settings.model_name)


def tell(champion: Champion, as_json: bool) -> None:
    """Say who is champion."""
    if as_json:
        print(json.dumps(asdict(champion)))
    else:
        print(f"{champion.name} is champion number {champion.seq} ({champion.why})")


def seconds_of(every: str) -> int:
    """ "90s", "15m", "6h", "1d" in seconds. Raises ConfigError."""
    number, unit = every[:-1], every[-1:]
    if unit not in UNITS or not number.isdigit() or int(number) == 0:
        raise ConfigError(f"--every: expected a number and one of s, m, h, d; got {every!r}")
    return int(number) * UNITS[unit]
