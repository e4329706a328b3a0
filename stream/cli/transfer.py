"""`braid models push|pull`: versions to and from the hub, an object store or a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from ..registry.versions import status_line, status_of
from ..settings import Settings
from .common import AsJson
from .versions import Version


def add(models: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to `braid models`."""

    @models.command()
    def push(
        context: typer.Context,
        version: Version,
        target: Annotated[
            str, typer.Argument(help="hf://owner/name, s3://, gs://, az://, or a folder.")
        ],
        with_records: Annotated[
            bool,
            typer.Option(
                "--with-records",
                help="With its frozen queries, which are records of the stream as they came.",
            ),
        ] = False,
        public: Annotated[
            bool,
            typer.Option("--public", help="A repository that is made on the hub is public."),
        ] = False,
        licence: Annotated[
            str | None,
            typer.Option(help="In the model card, as the hub names it: apache-2.0."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Push a version with a model card: weights, manifest, tokenisers.

        A version that is there is replaced. The hub wants a token: HF_TOKEN, or hf auth login.

        Example: braid models push 2 hf://team/braid-model
        """
        from ..trainer.exchange import push_version

        done = push_version(
            settings_of(context),
            version,
            target,
            records=with_records,
            public=public,
            licence=licence,
        )
        if as_json:
            report = {"name": done.manifest.name, "place": done.place, "files": list(done.files)}
            print(json.dumps(report))
        else:
            count = len(done.files)
            print(
                f"{done.manifest.name} is at {done.place}, {count} files: "
                f"braid models pull {done.place}"
            )

    @models.command()
    def pull(
        context: typer.Context,
        source: Annotated[
            str, typer.Argument(help="hf://owner/name, s3://, gs://, az://, or a folder.")
        ],
        promote: Annotated[
            bool | None,
            typer.Option(help="Make it champion; by default only the first version."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Pull a version that was pushed: it is checked, and gets the registry's next name.

        One that the registry has already is not doubled.

        Example: braid models pull hf://team/braid-model
        """
        from ..trainer.exchange import pull_version

        done = pull_version(settings_of(context, service=True), source, promote=promote)
        manifest, outcome = done.outcome.manifest, done.outcome
        serves, building = outcome.serves, outcome.building
        if as_json:
            report = {
                "name": manifest.name,
                "version": manifest.version,
                "space": manifest.space,
                "known": done.known,
                "pulled": manifest.pulled,
                "status": status_of(manifest, serves=serves, building=building),
                "champion": serves,
                "building": building,
            }
            print(json.dumps(report))
            return
        line = status_line(manifest, serves=serves, building=building)
        known = ", which is here already," if done.known else ""
        print(f"{manifest.name}{known} (space {manifest.space}) is {line}")
