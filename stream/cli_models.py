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

from .announcements import announce_champion
from .cli_common import AsJson, bar
from .errors import ConfigError, StreamError
from .models import Champion, Registry
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
        as_json: AsJson = False,
    ) -> None:
        """Make a version champion; running workers and index nodes go over to it.

        Example: braid models promote 2
        """
        settings = settings_of(context)
        registry = registry_of(settings)
        champion = registry.promote(registry.resolve(version), generation=settings.generation)
        tell(settings, champion, registry, as_json)

    @models.command()
    def rollback(context: typer.Context, as_json: AsJson = False) -> None:
        """Go back to the champion before this one.

        Example: braid models rollback
        """
        settings = settings_of(context)
        registry = registry_of(settings)
        tell(settings, registry.rollback(), registry, as_json)


def registry_of(settings: Settings) -> Registry:
    return Registry(settings.models_dir, base=settings.model_name)


def tell(settings: Settings, champion: Champion, registry: Registry, as_json: bool) -> None:
    """Announce the champion to every process, and say so here."""
    announce_champion(settings, champion, registry)
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
