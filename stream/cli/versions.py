"""`braid models show|diff|gc`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer
from pydantic_core import to_json

from ..registry.versions import registry_of
from ..settings import Settings
from .common import AsJson

Version = Annotated[str, typer.Argument(help="A name or a number: braid-0002, 2.")]


def add(models: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to `braid models`."""

    @models.command()
    def show(context: typer.Context, version: Version, as_json: AsJson = False) -> None:
        """Show a version's model card: its configuration, training data and verdict.

        Its plots are written beside the version, as a page.

        Example: braid models show 2
        """
        from braid.index.files import replaced

        from ..registry.model_card import lines, model_card, plots

        registry = registry_of(settings_of(context))
        name = registry.resolve(version)
        card = model_card(registry, name)
        page = registry.page(name)
        replaced(page, plots(card).encode())
        card["page"] = str(page)
        print(json.dumps(card) if as_json else "\n".join([*lines(card), "", f"plots: {page}"]))

    @models.command()
    def diff(
        context: typer.Context,
        left: Version,
        right: Version,
        every: Annotated[
            bool, typer.Option("--all", help="Every figure, also within its error.")
        ] = False,
        as_json: AsJson = False,
    ) -> None:
        """Compare two versions: model, data, settings, and what they are measured to differ by.

        Of the measures those are shown that differ by more than their error: the judge's, if it
        compared the two, else those of each one's validation records. --json shows all, too.

        Example: braid models diff 1 2
        """
        from ..registry.difference import all_lines, difference, short_lines

        registry = registry_of(settings_of(context))
        ours, theirs = (registry.manifest(registry.resolve(one)) for one in (left, right))
        if as_json:
            changes = difference(ours, theirs)
            print(to_json(changes, inf_nan_mode="null").decode())  # JSON has no NaN
        else:
            print("\n".join((all_lines if every else short_lines)(ours, theirs)))

    @models.command()
    def gc(
        context: typer.Context,
        keep: Annotated[int, typer.Option(min=0, help="Number of newest versions to keep.")] = 5,
        champions: Annotated[
            int, typer.Option(min=2, help="Number of last promotions whose versions to keep.")
        ] = 10,
        dry_run: Annotated[bool, typer.Option(help="Only list what would be removed.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Remove versions that nothing needs, and the training windows of those that are gone.

        Example: braid models gc --keep 3 --dry-run
        """
        from ..registry.generations import GenerationRecords
        from ..trainer.gc import RemovalPlan, plan, remove
        from ..trainer.lock import TrainerLock
        from ..trainer.runs import runs_of

        settings = settings_of(context)
        registry, runs = registry_of(settings), runs_of(settings)

        def planned() -> RemovalPlan:
            needed = GenerationRecords(registry.log).fed().values()
            return plan(registry, runs, newest=keep, champions=champions, needed=list(needed))

        if dry_run:
            garbage = planned()
        else:
            with TrainerLock(settings):  # a running trainer may need them
                garbage = planned()
                remove(registry, runs, garbage)
        if as_json:
            print(json.dumps({**asdict(garbage), "removed": not dry_run}))
            return
        for name, why in garbage.kept.items():
            print(f"keep    {name}  {why}")
        verb = "would go" if dry_run else "removed"
        for name in [*garbage.versions, *(f"run {id_}" for id_ in garbage.windows)]:
            print(f"{verb}  {name}")
        print(f"{garbage.bytes / 1e6:.1f} MB")
