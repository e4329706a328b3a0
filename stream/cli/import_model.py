"""`braid models import`: a pretrained model as a version, without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from ..errors import ConfigError
from ..registry.versions import status_line, status_of
from ..settings import Settings
from .common import AsJson


def add(models: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to `braid models`."""

    @models.command("import")
    def import_(
        context: typer.Context,
        source: Annotated[
            str, typer.Argument(help="A folder, a name on the hub, or package:NAME.")
        ],
        dim: Annotated[
            int | None,
            typer.Option(min=1, help="Only the first values of each vector (Matryoshka)."),
        ] = None,
        classes: Annotated[
            list[str] | None,
            typer.Option(help="A task and its class names: category=animals,vehicles."),
        ] = None,
        prompt: Annotated[
            str, typer.Option(help="What a class name is put into, e.g. a photo of {}.")
        ] = "{}",
        promote: Annotated[
            bool | None,
            typer.Option(help="Make it champion; by default only the first version."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Make a version of a pretrained model, without training.

        Its vectors are those of the model's own library, with the model's own preprocessing. With
        class names it predicts at once, by the vectors of the names.

        Example: braid models import openai/clip-vit-base-patch32 --classes kind=cat,dog
        """
        from braid.encoders.importing import tasks_of

        from ..trainer.import_version import import_version

        tasks = dict(map(task_of, classes or []))
        try:
            tasks_of(tasks, prompt)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        done = import_version(
            settings_of(context), source, promote=promote, dim=dim, classes=tasks, prompt=prompt
        )
        manifest, serves, building = done.manifest, done.serves, done.building
        if as_json:
            report = {
                "name": manifest.name,
                "version": manifest.version,
                "space": manifest.space,
                "dim": manifest.dim,
                "modalities": list(manifest.modalities),
                "origin": manifest.config["model"]["origin"],
                "status": status_of(manifest, serves=serves, building=building),
                "champion": serves,
                "building": building,
            }
            print(json.dumps(report))
            return
        line = status_line(manifest, serves=serves, building=building)
        print(f"{manifest.name} (space {manifest.space}) is {line}")


def task_of(classes: str) -> tuple[str, list[str]]:
    """`category=animals,vehicles`: a task and its class names. Raises ConfigError."""
    task, _, names = classes.partition("=")
    split = [name.strip() for name in names.split(",")]
    if not task or not all(split):
        raise ConfigError(f"--classes: expected TASK=NAME,NAME, got {classes!r}")
    return task, split
