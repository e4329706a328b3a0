"""`braid retrain`: one run, or a schedule."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from ..errors import ConfigError
from ..local.child import Child
from ..logs import say
from ..settings import Settings
from .common import AsJson, bar

SHAPING = (
    "preset",
    "config_file",
    "start",
    "heads_only",
    "projections",
    "lora",
    "seed",
    "compatible",
    "from_scratch",
)
"""The options that a run's result depends on; a repeated run takes them from the first."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to the command line."""

    @app.command()
    def retrain(
        context: typer.Context,
        preset: Annotated[
            str | None,
            typer.Option(
                help="tiny, demo, demo-scratch-audio or base; by default demo, or the "
                "configuration of the version that is trained further."
            ),
        ] = None,
        config_file: Annotated[
            str | None,
            typer.Option("--config", help="A TOML file of what differs from that."),
        ] = None,
        start: Annotated[
            str | None,
            typer.Option("--from", help="The version to start from; else the champion."),
        ] = None,
        heads_only: Annotated[
            bool, typer.Option(help="Keep the space: train only heads and decision.")
        ] = False,
        projections: Annotated[
            bool, typer.Option(help="Learn projections behind the version's frozen encoders.")
        ] = False,
        lora: Annotated[
            int | None,
            typer.Option(min=1, help="Train low-rank adapters of this rank in its encoders."),
        ] = None,
        seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
        compatible: Annotated[
            float, typer.Option(min=0, help="Weight of the pull towards the champion's vectors.")
        ] = 0.0,
        promote: Annotated[
            bool | None,
            typer.Option(help="Make it champion if it passes; by default only the first version."),
        ] = None,
        force: Annotated[bool, typer.Option(help="Promote it even if it does not pass.")] = False,
        from_scratch: Annotated[
            bool, typer.Option(help="Do not start from the champion's weights.")
        ] = False,
        fresh: Annotated[bool, typer.Option(help="Do not resume an unfinished run.")] = False,
        window: Annotated[
            str | None,
            typer.Option(help="Repeat the run of this id or version on its window."),
        ] = None,
        every: Annotated[
            str | None, typer.Option(help="Repeat at this period, e.g. 6h (s, m, h, d).")
        ] = None,
        reason: Annotated[
            str, typer.Option(help="The reason, kept in the run's file.")
        ] = "asked for",
        metrics_port: Annotated[int | None, typer.Option(help="Serve /metrics here.")] = None,
        as_json: AsJson = False,
    ) -> None:
        """Train a new model version on `records`.

        One trainer runs at a time; the next one resumes the run of a killed one. Under torchrun
        several processes train one version: torchrun --nproc-per-node 4 -m braid retrain

        Example: braid retrain --heads-only --promote
        """
        from ..trainer.options import Options

        settings = settings_of(context, service=True, metrics={"port": metrics_port})
        if every is not None:
            _again_and_again(settings, seconds_of(every), as_json)
            return
        options = Options(
            preset=preset,
            config_file=config_file,
            start=start,
            heads_only=heads_only,
            projections=projections,
            lora=lora,
            seed=seed,
            compatible=compatible,
            from_scratch=from_scratch,
            promote=promote,
            force=force,
            fresh=fresh,
            window=window,
            reason=reason,
        )
        if window is not None:
            explicit = {
                name: getattr(options, name)
                for name in SHAPING
                if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
            }
            options = repeated(settings, options, explicit)
        _once(settings, options, as_json)


def repeated(settings: Settings, options: Any, explicit: dict[str, Any]) -> Any:
    """The options of the run that `options.window` names, with the `explicit` ones replaced."""
    from dataclasses import replace

    from ..trainer.runs import runs_of

    run = runs_of(settings).resolve(options.window)
    return replace(options, **{n: run.asked[n] for n in SHAPING if n in run.asked} | explicit)


def _once(settings: Settings, options: Any, as_json: bool) -> None:
    from ..collector import collect_as_usual
    from ..media.thumbnails import isolated_decoding
    from ..registry.announcements import warn_of_other_registries
    from ..registry.versions import status_line, status_of
    from ..trainer.retrain import retrain as run

    signal.signal(signal.SIGTERM, _terminated)  # so that the lock is released
    collect_as_usual()
    started = time.monotonic()
    first = os.environ.get("RANK", "0") == "0"
    quiet = as_json or not first or settings.log_format == "json"
    if first:
        warn_of_other_registries(settings)
    with isolated_decoding(settings), bar("retrain", quiet) as progress:
        outcome = run(settings, options, progress=progress)
    if not first:
        return
    manifest = outcome.manifest
    report = {
        "name": manifest.name,
        "version": manifest.version,
        "space": manifest.space,
        "parent": manifest.parent,
        "run": outcome.run,
        "resumed": outcome.resumed,
        "status": status_of(manifest, serves=outcome.serves, building=outcome.building),
        "champion": outcome.serves,
        "building": outcome.building,
        "failed": outcome.failed,
        "metrics": manifest.metrics,
        "seconds": round(time.monotonic() - started, 1),
    }
    if as_json:
        print(json.dumps(report), flush=True)
        return
    state = status_line(manifest, serves=outcome.serves, building=outcome.building)
    print(f"{manifest.name} (space {manifest.space}) is {state}", flush=True)


def _again_and_again(settings: Settings, period_s: int, as_json: bool) -> None:
    from ..trainer.schedule import FirstVersion, command, every

    options = without_every(sys.argv[1:])

    def make() -> Child:
        line = [*command([])[:-1], *options]
        log = settings.home / "logs" / "retrain.log"
        return Child("retrain", line, log=log, env=settings.environment())

    try:
        every(period_s, make, say=lambda line: say(f"braid: {line}"), first=FirstVersion(settings))
    except KeyboardInterrupt:
        say("braid: the schedule stops")


def without_every(line: Sequence[str]) -> list[str]:
    """The schedule's command line without `--every`: that of one run."""
    kept: list[str] = []
    words = iter(line)
    for word in words:
        if word == "--every":
            next(words, None)
        elif not word.startswith("--every="):
            kept.append(word)
    return kept


def seconds_of(every: str) -> int:
    """ "90s", "15m", "6h", "1d" in seconds. Raises ConfigError."""
    number, unit = every[:-1], every[-1:]
    if unit not in UNITS or not number.isdigit() or int(number) == 0:
        raise ConfigError(f"--every: expected a number and one of s, m, h, d; got {every!r}")
    return int(number) * UNITS[unit]


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
