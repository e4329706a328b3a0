"""`braid produce`, `braid delete` and `braid search`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from braid.modalities import MODALITIES, listed

from ..settings import Settings
from .common import AsJson, bar, json_option, service_url

MAX_LISTED = 50  # the most refused files that are listed
STARTING = 6  # retries of a search, 5 s apart while a node loads its model


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to the command line."""

    @app.command()
    def produce(
        context: typer.Context,
        paths: Annotated[
            list[str],
            typer.Argument(
                help="Folders, pictures, sounds, videos, .txt, .jsonl, .csv, .parquet or .tar "
                "files; also URLs such as s3://bucket/train-{000..127}.tar."
            ),
        ],
        label: Annotated[
            str | None,
            typer.Option(help="Send the names of top folders, or .cls, as labels of this task."),
        ] = None,
        source: Annotated[
            str | None,
            typer.Option(help="Map the columns of tables as the messages of this source."),
        ] = None,
        checkpoint: Annotated[
            Path | None,
            typer.Option(help="Keep in this file how far it came, and go on from there."),
        ] = None,
        rate: Annotated[
            float | None, typer.Option(min=0.01, help="At most so many records a second.")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Send files, JSON lines, CSV, Parquet or WebDataset shards as records.

        Files of one folder and stem are one record: bird.png, bird.txt and bird.ogg; its id is
        the path below PATHS without the ending, preceded by the folder where two of PATHS hold
        the same. A JSON line is {"id": ..., "text": ..., "image": PATH or link, "audio": ...,
        "video": ..., "labels": {...}, "meta": {...}}. Columns of a table are the same names, and
        labels.TASK and meta.FIELD, or what --source maps. Members of one key in a .tar are one
        record.

        What cannot be sent is listed at the end, with its line; the exit status is 1 then.

        Example: braid produce pictures/ events.jsonl table.csv --label category
        """
        from .produce.sending import send_all

        settings = settings_of(context)
        with bar("producing", as_json, unit="B") as progress:
            report = asyncio.run(
                send_all(
                    settings,
                    paths,
                    label=label,
                    progress=progress,
                    source=source,
                    checkpoint=checkpoint,
                    rate=rate,
                )
            )
        refused, count = report["refused"], report["refused_count"]
        if as_json:
            print(json.dumps(report))
        else:
            print(f"sent {report['sent']} records, refused {count}")
            for line in refused[:MAX_LISTED]:
                print(f"  refused {line}", file=sys.stderr)
            if (more := count - len(refused[:MAX_LISTED])) > 0:
                print(f"  and {more} more; --json lists all", file=sys.stderr)
        if count:
            raise SystemExit(1)

    @app.command()
    def delete(
        context: typer.Context,
        ids: Annotated[list[str], typer.Argument(help="The ids of the records.")],
        as_json: AsJson = False,
    ) -> None:
        """Delete records: send a null to `records` for each id.

        Workers and index nodes follow: the record leaves the index when its deletion is read. An
        id that there is no record of is deleted just the same.

        Example: braid delete bird-1 bird-2
        """
        from .produce.sending import delete_all

        settings = settings_of(context)
        sent = asyncio.run(delete_all(settings, ids))
        if as_json:
            print(json.dumps(sent))
            return
        topic = settings.topic("records")
        for one in sent:
            at = f"partition {one['partition']}, offset {one['offset']}"
            print(f"{one['id']}: its deletion is sent to {topic}, {at}")

    @app.command()
    def mcp(
        context: typer.Context,
        url: Annotated[str | None, typer.Option(help="The query service.")] = None,
        http: Annotated[
            bool, typer.Option("--http", help="Streamable HTTP on loopback; else stdio.")
        ] = False,
        port: Annotated[int, typer.Option(help="Port for --http.")] = 8078,
        allow_delete: Annotated[
            bool, typer.Option("--allow-delete", help="Also offer a tool that deletes records.")
        ] = False,
    ) -> None:
        """Serve search to programs that speak the Model Context Protocol.

        Example: braid mcp --url http://127.0.0.1:8077
        """
        from ..mcp_server import mcp_server

        settings = settings_of(context)
        key = settings.client_key(own=url is None)
        server = mcp_server(url or service_url(settings), api_key=key, deletes=allow_delete)
        if http:
            server.run("streamable-http", host="127.0.0.1", port=port)
        else:
            server.run("stdio")

    @app.command()
    def search(
        context: typer.Context,
        text: Annotated[str | None, typer.Argument(help="Text of the query.")] = None,
        image: Annotated[Path | None, typer.Option(help="Picture of the query.")] = None,
        audio: Annotated[Path | None, typer.Option(help="Sound of the query.")] = None,
        video: Annotated[Path | None, typer.Option(help="Video of the query.")] = None,
        id: Annotated[str | None, typer.Option(help="Find records similar to this one.")] = None,
        k: Annotated[int, typer.Option("-k", help="How many hits.")] = 10,
        vector: Annotated[
            str, typer.Option(help=f"Which vector to search: fused, {listed(MODALITIES, 'or')}.")
        ] = "fused",
        filter: Annotated[
            str | None,
            typer.Option(
                help='On meta and labels, as JSON: {"lang": "de", "labels.category": "animals"}.'
            ),
        ] = None,
        url: Annotated[str | None, typer.Option(help="The query service.")] = None,
        as_json: AsJson = False,
    ) -> None:
        """Search the index for similar records.

        Example: braid search "a red bird" -k 5 --vector image
        """
        from braid.index.client import Client, Retry

        settings = settings_of(context)
        key = settings.client_key(own=url is None)
        retry = Retry(times=STARTING)
        with Client(url or service_url(settings), api_key=key, retry=retry) as client:
            answer = client.search(
                text=text,
                image=image,
                audio=audio,
                video=video,
                id=id,
                k=k,
                vector=vector,
                filter=json_option("--filter", filter),
            )
        if as_json:
            print(json.dumps(answer.model_dump(exclude_unset=True)))
            return
        for hit in answer.hits:
            predicted = [f"{task}: {label}" for task, label in (hit.predicted or {}).items()]
            shown = [f"{hit.score:.3f}", hit.id, (hit.text or "")[:80], ", ".join(predicted)]
            print("  ".join(part for part in shown if part))
        print(
            f"{len(answer.hits)} hits in {answer.took_ms:.0f} ms, model {answer.model}, "
            f"generation {answer.generation}",
            file=sys.stderr,
        )
