"""The command line: `braid COMMAND`; each command imports its own modules when it runs."""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from ..collector import collect_rarely
from ..errors import ConfigError, StreamError, plain
from ..local.child import ChildError
from ..logs import say, set_up
from ..settings import Settings, load
from . import bench, config, dead_letters, evaluate, ingest, models, retrain, simulate, status
from . import data as cli_data
from .common import check_model

log = logging.getLogger(__name__)

NO_SETTINGS = ("context", "version")  # parameters of settings_from_flags

app = typer.Typer(
    name="braid",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Kafka streams of text, pictures and sound become one live, searchable space.\n\n"
    "The options below may stand before or after the command.\n\n"
    "Example: braid demo",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"braid {version('braid-stream')}")
        raise typer.Exit


@app.callback()
def settings_from_flags(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option(help="Folder for models and snapshots.")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, as host:port.")] = None,
    redis: Annotated[str | None, typer.Option(help="Redis, as redis://host:port.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of every topic's name.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Settings that every command takes; others come from BRAID_* and braid.toml."""
    context.obj = {
        "home": home,
        "kafka": {"bootstrap": bootstrap},
        "redis": {"url": redis},
        "prefix": prefix,
        "log_level": log_level,
        "log_format": log_format,
    }


def settings_of(context: typer.Context, *, service: bool = False, **flags: Any) -> Settings:
    """The settings of one command: its own flags over the common ones.

    Args:
        service: the process runs until it is stopped, or makes a version: it logs what it works
            with, since others must have the same registry.
    """
    settings = load(**(context.obj | flags))
    set_up(settings)
    if service:
        check_model(settings)
        log.info(
            "home %s, broker %s, registry %s",
            settings.home,
            settings.kafka.bootstrap,
            settings.model.registry or settings.models_dir,
        )
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
    profile: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace of each batch's steps here.")
    ] = None,
) -> None:
    """Embed records: one worker of the group; start as many as you have GPUs.

    Example: braid embed --device cuda:0 --metrics-port 9101
    """
    from ..worker.app import run

    run(
        settings_of(
            context,
            service=True,
            model={"spec": model, "device": device},
            worker={"slot": slot, "profile": profile},
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
    from ..index_node.start import run

    run(
        settings_of(
            context,
            service=True,
            http={"host": host, "port": port},
            model={"spec": model},
            index={"folder": folder, "store": store},
        )
    )


@app.command()
def up(
    context: typer.Context,
    secured: Annotated[
        bool, typer.Option(help="With TLS, passwords and ACLs, a user for each role.")
    ] = False,
) -> None:
    """Everything on this machine: broker, Redis, one worker, the index node and the sources.

    Nothing has to be installed first. The broker, Apache Kafka, keeps its data in the home's
    folder. What ends is started again. With KAFKA_BOOTSTRAP and REDIS_URL set, those are used.

    Example: braid up
    """
    from .up import run

    run(settings_of(context, service=True), secured=secured)


@app.command()
def demo(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="Your own folder: CATEGORY/NAME.{txt,png,ogg}.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Answer queries at the end until Ctrl-C.")] = False,
    preset: Annotated[
        str, typer.Option(help="Of the training: demo, demo-scratch-audio, ...")
    ] = "demo",
) -> None:
    """Run the main job once on real pictures, captions and spoken captions.

    Without --data the first run needs the network: apt-get downloads the pictures (161 MB).

    Example: braid demo --keep
    """
    from .demo import run_demo

    raise SystemExit(run_demo(settings_of(context), data=data, keep=keep, preset=preset))


cli_data.add(app, settings_of)
ingest.add(app, settings_of)
retrain.add(app, settings_of)
models.add(app, settings_of)
evaluate.add(app, settings_of)
bench.add(app, settings_of)
simulate.add(app, settings_of)
status.add(app, settings_of)
config.add(app, settings_of)
dead_letters.add(app, settings_of)


def main() -> None:
    """Entry point: an error that braid raises on purpose is one line, not a traceback.

    The exit status is `os.EX_CONFIG` (78) for errors that a restart does not fix, else 1.
    """
    status = 1

    def leave() -> None:  # registered first, so called last
        logging.shutdown()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    # Without Python's own finalization: until 3.14 it ends a native thread that asks for the GIL
    # then, such as obstore's, and with it the process by SIGABRT (python/cpython#87135).
    atexit.register(leave)
    collect_rarely()
    from braid.encoders.errors import EncodersError
    from braid.index.errors import BraidIndexError

    try:
        app(args=common_first(sys.argv[1:]))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except (StreamError, EncodersError, BraidIndexError, ChildError, OSError) as error:
        say(f"braid: {plain(error)}", logging.CRITICAL)
        status = os.EX_CONFIG if isinstance(error, ConfigError) else 1
        raise SystemExit(status) from None


def common_first(words: Sequence[str]) -> list[str]:
    """The command line with the flags of `settings_from_flags` before the command's name.

    They may stand behind it as well: `braid status --home X`.
    """
    parameters = inspect.signature(settings_from_flags).parameters
    names = {f"--{name.replace('_', '-')}" for name in parameters if name not in NO_SETTINGS}
    first: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        name, assigned, _ = word.partition("=")
        if word == "--":
            others += [word, *rest]
        elif name in names:
            first += [word] if assigned else [word, *islice(rest, 1)]
        else:
            others.append(word)
    return [*first, *others]
