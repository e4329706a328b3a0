"""The command line: `braid COMMAND`; each command imports its own modules when it runs."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from braid.index.redact import RedactingFormatter, redacted

from ..errors import ConfigError, StreamError
from ..local.child import ChildError
from ..settings import Settings, load
from . import config, dead_letters, evaluate, models, retrain, status
from . import data as cli_data

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

app = typer.Typer(
    name="braid",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Kafka streams of text, pictures and sound become one live, searchable space.\n\n"
    "Example: braid demo",
)


@app.callback()
def settings_from_flags(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option(help="Folder for models and snapshots.")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, as host:port.")] = None,
    redis: Annotated[str | None, typer.Option(help="Redis, as redis://host:port.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of every topic's name.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Settings that every command takes; others come from BRAID_* and braid.toml."""
    context.obj = {
        "home": home,
        "kafka": {"bootstrap": bootstrap},
        "redis": {"url": redis},
        "prefix": prefix,
        "log_level": log_level,
    }


def settings_of(context: typer.Context, **flags: Any) -> Settings:
    """The settings of one command: its own flags over the common ones."""
    settings = load(**(context.obj | flags))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(LOG_FORMAT))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    for noisy in ("aiokafka", "faiss", "httpx", "httpcore", "faust", "mode"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    return settings


@app.command()
def embed(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="A model folder, or null:16; else the champion.")
    ] = None,
    slot: Annotated[str | None, typer.Option(help="Name of this worker; see slots.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Serve /metrics here.")] = None,
) -> None:
    """Embed records: one worker of the group; start as many as you have GPUs.

    Example: braid embed --device cuda:0 --metrics-port 9101
    """
    from ..worker.app import run

    run(
        settings_of(
            context,
            model={"spec": model, "device": device},
            worker={"slot": slot},
            metrics={"port": metrics_port},
        ),
    )


@app.command()
def index(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the query service.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model folder, or null:16; else the champion.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="faiss, or milvus (milvus.uri).")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="The node's index folder; else index in the home.")
    ] = None,
) -> None:
    """Keep the index of a generation and answer queries.

    Example: braid index --port 8077
    """
    from ..index_node.node import run

    run(
        settings_of(
            context,
            http={"host": host, "port": port},
            model={"spec": model},
            index={"folder": folder, "store": store},
        )
    )


@app.command()
def up(context: typer.Context) -> None:
    """Everything on this machine: broker, Redis, one worker and the index node.

    Nothing has to be installed first. The broker, Apache Kafka, keeps its data in the home's
    folder. What ends is started again. With KAFKA_BOOTSTRAP and REDIS_URL set, those are used.

    Example: braid up
    """
    from .up import run

    run(settings_of(context))


@app.command()
def demo(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="Your own folder: CATEGORY/NAME.{txt,png,ogg}.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Answer queries at the end until Ctrl-C.")] = False,
) -> None:
    """Run the main job once on real pictures, captions and spoken captions.

    Example: braid demo --keep
    """
    from .demo import run_demo

    raise SystemExit(run_demo(settings_of(context), data=data, keep=keep))


cli_data.add(app, settings_of)
retrain.add(app, settings_of)
models.add(app, settings_of)
evaluate.add(app, settings_of)
status.add(app, settings_of)
config.add(app, settings_of)
dead_letters.add(app, settings_of)


def main() -> None:
    """Entry point: an error that braid raises on purpose is one line, not a traceback.

    The exit status is `os.EX_CONFIG` (78) for errors that a restart does not fix, else 1.
    """
    from braid.encoders.errors import EncodersError
    from braid.index.errors import BraidIndexError

    try:
        app()
    except (StreamError, EncodersError, BraidIndexError, ChildError) as error:
        print(f"braid: {redacted(error)}", file=sys.stderr)
        raise SystemExit(os.EX_CONFIG if isinstance(error, ConfigError) else 1) from None
