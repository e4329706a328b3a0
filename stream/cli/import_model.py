"""`braid models import` and `bridge`: pretrained models as versions, without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from ..registry.versions import status_line, status_of
from ..settings import Settings
from .common import AsJson

if TYPE_CHECKING:
    from ..trainer.job import Outcome


def add(models: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to `braid models`."""

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
        saw_records: Annotated[
            bool,
            typer.Option(
                "--saw-records",
                help="It was trained on records of this stream: nothing is judged against it.",
            ),
        ] = False,
        video: Annotated[
            bool,
            typer.Option("--video", help="Embed videos too: the mean of 8 frames as pictures."),
        ] = False,
        space: Annotated[
            str | None,
            typer.Option(help="Of a model with several (PE-AV): audio or video, beside texts."),
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
            settings_of(context, service=True),
            source,
            promote=promote,
            dim=dim,
            classes=tasks,
            prompt=prompt,
            saw_records=saw_records,
            video=video,
            space=space,
        )
        _print(done, as_json)

    @models.command()
    def bridge(
        context: typer.Context,
        first: Annotated[str, typer.Argument(help="A name or a number; its space stays.")],
        second: Annotated[
            str, typer.Argument(help="What it has beside the first is carried over.")
        ],
        on: Annotated[Path, typer.Option(help="Captions, a line each: a few thousand or more.")],
        force: Annotated[bool, typer.Option(help="Even if it does not carry.")] = False,
        promote: Annotated[
            bool | None,
            typer.Option(help="Make it champion; by default only the first version."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Join two imported versions that both embed texts: one space for all they embed.

        A linear map between their vectors of the captions carries the second one's pictures or
        sounds into the space of the first. It is judged by captions that fitted nothing.

        Example: braid models bridge 1 2 --on captions.txt
        """
        from ..trainer.import_version import bridge_versions

        try:
            captions = on.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--on: {on}: {error}") from None
        done = bridge_versions(
            settings_of(context, service=True),
            first,
            second,
            captions,
            force=force,
            promote=promote,
        )
        _print(done, as_json)


def _print(done: Outcome, as_json: bool) -> None:
    manifest, serves, building = done.manifest, done.serves, done.building
    quality = manifest.metrics.get("bridge")
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
            **({} if quality is None else {"bridge": quality}),
        }
        print(json.dumps(report))
        return
    line = status_line(manifest, serves=serves, building=building)
    print(f"{manifest.name} (space {manifest.space}) is {line}")
    if quality is not None:
        print(
            f"of {quality['captions']} captions that fitted nothing {quality['recall@1']:.3f} find "
            f"themselves, mean cosine {quality['cosine']:.3f} ({quality['map']})"
        )


def task_of(classes: str) -> tuple[str, list[str]]:
    """`category=animals,vehicles`: a task and its class names. Raises ConfigError."""
    task, _, names = classes.partition("=")
    split = [name.strip() for name in names.split(",")]
    if not task or not all(split):
        raise ConfigError(f"--classes: expected TASK=NAME,NAME, got {classes!r}")
    return task, split
