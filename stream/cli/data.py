"""`braid produce` and `braid search`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..settings import Settings
from .common import AsJson, bar, json_option, service_url

MAX_LISTED = 50  # the most refused files that are listed


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to the command line."""

    @app.command()
    def produce(
        context: typer.Context,
        paths: Annotated[
            list[Path], typer.Argument(help="Folders, .jsonl files, or single files.")
        ],
        label: Annotated[
            str | None,
            typer.Option(help="Send each top folder's name as the label of this task."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Send files or JSON lines as records.

        In a folder, files of one stem are one record: bird.png, bird.txt and bird.ogg. A JSON
        line is {"id": ..., "text": ..., "image": PATH or link, "audio": ..., "labels": {...},
        "meta": {...}}.

        Example: braid produce pictures/ events.jsonl --label category
        """
        from .sending import send_all

        settings = settings_of(context)
        with bar("producing", as_json) as progress:
            report = asyncio.run(send_all(settings, paths, label=label, progress=progress))
        if as_json:
            print(json.dumps(report))
        else:
            print(f"sent {report['sent']} records, refused {len(report['refused'])}")
            for line in report["refused"][:MAX_LISTED]:
                print(f"  refused {line}", file=sys.stderr)
        if report["refused"]:
            raise SystemExit(1)

    @app.command()
    def search(
        context: typer.Context,
        text: Annotated[str | None, typer.Argument(help="Text of the query.")] = None,
        image: Annotated[Path | None, typer.Option(help="Picture of the query.")] = None,
        audio: Annotated[Path | None, typer.Option(help="Sound of the query.")] = None,
        id: Annotated[str | None, typer.Option(help="Find records similar to this one.")] = None,
        k: Annotated[int, typer.Option("-k", help="How many hits.")] = 10,
        vector: Annotated[
            str, typer.Option(help="Which vector to search: fused, text, image or audio.")
        ] = "fused",
        filter: Annotated[
            str | None, typer.Option(help='On meta, as JSON: {"lang": "de"}.')
        ] = None,
        url: Annotated[str | None, typer.Option(help="The query service.")] = None,
        as_json: AsJson = False,
    ) -> None:
        """Search the index for similar records.

        Example: braid search "a red bird" -k 5 --vector image
        """
        from braid.index.client import Client

        settings = settings_of(context)
        key = settings.client_key(own=url is None)
        with Client(url or service_url(settings), api_key=key) as client:
            answer = client.search(
                text=text,
                image=image,
                audio=audio,
                id=id,
                k=k,
                vector=vector,
                filter=json_option("--filter", filter),
            )
        if as_json:
            print(json.dumps(answer))
            return
        for hit in answer["hits"]:
            print(f"{hit['score']:.3f}  {hit['id']}  {(hit.get('text') or '')[:80]}")
        print(
            f"{len(answer['hits'])} hits in {answer['took_ms']:.0f} ms, model {answer['model']}, "
            f"generation {answer['generation']}",
            file=sys.stderr,
        )
