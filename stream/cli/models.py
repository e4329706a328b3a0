"""`braid models`: list, promote, rollback, generations, drop; the other modules' commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..errors import RegistryError
from ..registry.generations import GenerationRecords
from ..registry.versions import (
    Champion,
    Registry,
    failures,
    registry_of,
    status_line,
    status_of,
)
from ..settings import Settings
from . import canary, evaluate, import_model, transfer, versions
from .common import AsJson


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to the command line."""
    models = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="The model registry: versions and the champion.\n\nExample: braid models list",
    )
    app.add_typer(models, name="models")

    versions.add(models, settings_of)
    canary.add(models, settings_of)
    import_model.add(models, settings_of)
    transfer.add(models, settings_of)
    evaluate.add_judge(models, settings_of)

    @models.command("list")
    def list_(context: typer.Context, as_json: AsJson = False) -> None:
        """All versions, oldest first.

        Example: braid models list --json
        """
        registry = registry_of(settings_of(context))
        champion = registry.champion()
        entries = GenerationRecords(registry.log).all()
        building = {entry.model: entry.generation for entry in entries if entry.state == "building"}
        rows = [_row(registry, name, champion, building) for name in registry.names()]
        if as_json:
            print(json.dumps(rows))
            return
        for row in rows:
            mark = "*" if row["champion"] else " "
            if "damaged" in row:
                print(f"{mark} {row['name']}  DAMAGED: {row['damaged']}")
                continue
            print(f"{mark} {row['name']}  space {row['space']}  {row['created_at']}  {row['line']}")
        if not rows:
            print("no versions yet: braid retrain")

    @models.command()
    def promote(
        context: typer.Context,
        version: Annotated[str, typer.Argument(help="A name or a number: braid-0002, 2.")],
        drop_missing: Annotated[
            bool,
            typer.Option(
                "--drop-missing", help="Let a new generation serve even if it lacks some records."
            ),
        ] = False,
        force: Annotated[
            bool, typer.Option(help="Even if it did not pass its examination.")
        ] = False,
        as_json: AsJson = False,
    ) -> None:
        """Make a version champion; running workers and index nodes switch to it.

        For a version of another space a generation is built first, which takes over when it has
        caught up and has the recall of the serving one.

        Example: braid models promote 2
        """
        from ..registry.promotion import promote as run
        from ..trainer.job import prove

        settings = settings_of(context)
        registry = registry_of(settings)
        name = registry.resolve(version)
        registry.admit(name, force=force)
        prove(registry, name, settings.model.device)
        done = run(settings, registry, name, drop_missing=drop_missing, force=force)
        if isinstance(done, Champion):
            print_champion(done, as_json)
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

        A second rollback goes one champion further back; braid models promote goes forward.

        Example: braid models rollback
        """
        from ..registry.promotion import rollback as run

        settings = settings_of(context)
        print_champion(run(settings, registry_of(settings)), as_json)

    @models.command()
    def generations(context: typer.Context, as_json: AsJson = False) -> None:
        """List the generations: building, serving, or in their rollback window.

        Example: braid models generations
        """
        registry = registry_of(settings_of(context))
        rows = [asdict(entry) for entry in GenerationRecords(registry.log).all()]
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
        force: Annotated[
            bool,
            typer.Option(help="Even if its pending records get no prediction."),
        ] = False,
        as_json: AsJson = False,
    ) -> None:
        """Drop a generation that does not serve: its topic, its group, its index.

        Its pending predictions are handed over to the serving generation.

        Example: braid models drop g0002
        """
        from ..registry.promotion import drop as run

        settings = settings_of(context)
        run(settings, registry_of(settings), generation, why="dropped by hand", force=force)
        print(json.dumps({"dropped": generation}) if as_json else f"{generation} is dropped")


def _row(
    registry: Registry, name: str, champion: Champion | None, building: Mapping[str, str]
) -> dict[str, Any]:
    """A version's row in the list; also of one whose manifest cannot be read."""
    serves = champion is not None and champion.name == name
    try:
        manifest = registry.manifest(name)
    except RegistryError as error:
        return {"name": name, "champion": serves, "damaged": str(error)}
    return {
        "name": manifest.name,
        "version": manifest.version,
        "space": manifest.space,
        "created_at": manifest.created_at,
        "champion": serves,
        "status": status_of(manifest, serves=serves, building=building.get(name, "")),
        "line": status_line(manifest, serves=serves, building=building.get(name, "")),
        "failed": failures(manifest),
        "metrics": manifest.metrics,
    }


def print_champion(champion: Champion, as_json: bool) -> None:
    """Print the champion."""
    if as_json:
        print(json.dumps(asdict(champion)))
    else:
        print(f"{champion.name} is champion number {champion.seq} ({champion.why})")
