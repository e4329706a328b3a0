"""`braid dead-letters`: list, show, replay, purge."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..settings import Settings
from .common import AsJson
from .retrain import UNITS

if TYPE_CHECKING:
    from ..dead_letters.letters import Selection

REASON_CHARS = 120

Reason = Annotated[
    str | None, typer.Option(help="Part of the reason, the field or the kind of error.")
]
Stage = Annotated[str | None, typer.Option(help="Such as decode, prepare, encode.")]
Model = Annotated[str | None, typer.Option(help="The version that prepared or encoded it.")]
Since = Annotated[
    str | None,
    typer.Option(help="From this time: 2026-11-28T12:00 (UTC), or 90s, 15m, 6h, 1d ago."),
]
Until = Annotated[str | None, typer.Option(help="Before this time, in the same form.")]
Source = Annotated[
    str | None, typer.Option("--from", help="records or parts, or a partition: records:3.")
]
Last = Annotated[int, typer.Option(min=0, max=1000, help="The number of newest letters to list.")]
Before = Annotated[str, typer.Option(help="A time as of --since, or a letter's id: 3:1200.")]


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the commands to the command line."""
    dead = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Records that could not be processed: list, show, replay, purge.\n\n"
        "Example: braid dead-letters list",
    )
    app.add_typer(dead, name="dead-letters")

    @dead.command("list")
    def list_(
        context: typer.Context,
        reason: Reason = None,
        stage: Stage = None,
        model: Model = None,
        since: Since = None,
        until: Until = None,
        source: Source = None,
        last: Last = 20,
        as_json: AsJson = False,
    ) -> None:
        """Count letters by stage and kind of error, and list the newest.

        Example: braid dead-letters list --stage prepare --since 6h
        """
        from ..dead_letters.letters import letters, replayed, summary

        settings = settings_of(context)
        selection = selection_of(reason, stage, model, since, until, source)
        marks = replayed(settings)
        again = 0

        def counted() -> Any:
            nonlocal again
            for letter in letters(settings, selection):
                again += letter.id in marks
                yield letter

        report = summary(counted(), last=last).plain() | {"replayed": again}
        report["last"] = [row | {"replayed": row["id"] in marks} for row in report["last"]]
        if as_json:
            print(json.dumps(report))
            return
        print(f"{report['total']} dead letters, {again} of them sent again")
        for row in report["by"]:
            print(f"  {row['count']:>7}  {row['stage']}  {row['kind']}")
        for row in report["last"]:
            mark = "  sent again" if row["replayed"] else ""
            print(f"{row['id']}  {_at(row['at_ms'])}  {_origin(row)}  {_why(row)}{mark}")

    @dead.command()
    def show(
        context: typer.Context,
        letter: Annotated[str, typer.Argument(help="Its id: PARTITION:OFFSET.")],
        out: Annotated[
            Path | None, typer.Option(help="Write the whole original value to this file.")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Show one letter: its origin, its error, and its value, decoded and shortened.

        Example: braid dead-letters show 3:1200 --out value.msgpack
        """
        from ..dead_letters.letters import letter_at, view

        dead_letter = letter_at(settings_of(context), letter)
        value = dead_letter.message.value
        if out is not None:
            out.write_bytes(value or b"")
        report = dead_letter.plain() | {"value": view(value)}
        if as_json:
            print(json.dumps(report))
            return
        report |= {"at": _at(report.pop("at_ms")), "value": json.dumps(report["value"], indent=2)}
        for name, one in report.items():
            print(f"{name:10} {'' if one is None else one}")

    @dead.command()
    def replay(
        context: typer.Context,
        ids: Annotated[
            list[str] | None,
            typer.Argument(help="PARTITION:OFFSET; without any: all that fit the options."),
        ] = None,
        reason: Reason = None,
        stage: Stage = None,
        model: Model = None,
        since: Since = None,
        until: Until = None,
        source: Source = None,
        rate: Annotated[float, typer.Option(min=0.01, help="Records a second.")] = 50.0,
        wait: Annotated[
            float, typer.Option(min=0, help="Seconds to wait for the outcome; 0: do not wait.")
        ] = 60.0,
        force: Annotated[
            bool, typer.Option("--force", help="Even if the id has a newer record.")
        ] = False,
        dry: Annotated[bool, typer.Option("--dry-run", help="Send nothing.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Send letters to their origin topic again, each once; report those that fail again.

        Exits with 1 if any failed again.

        Example: braid dead-letters replay --stage encode --model braid-0002 --since 1d
        """
        from ..dead_letters.replay import Replayer

        settings = settings_of(context)
        selection = selection_of(reason, stage, model, since, until, source, ids or [])
        replayer = Replayer(settings, groups=_groups(settings), rate=rate, force=force, wait_s=wait)
        result = replayer.run(selection, dry=dry)
        report = result.plain()
        if as_json:
            print(json.dumps(report))
        else:
            verb = "would be sent" if dry else "sent"
            print(f"{report['sent']} {verb}, {report['already']} had been sent before")
            for name, why in (
                ("superseded", "left out: the id has a newer record (--force sends them)"),
                ("foreign", "left out: they do not come from records or parts"),
                ("cut", "left out: larger than a topic takes, the letter holds a part only"),
                ("waiting", f"not processed within {wait:g} s"),
            ):
                if report[name]:
                    print(f"{len(report[name])} {why}: {_few(report[name])}")
            if report["done"]:
                print(f"{report['done']} processed")
            for id, row in report["failed"].items():
                print(f"{id} failed again, as {row['id']}: {_why(row)}")
        if result.failed:
            raise SystemExit(1)

    @dead.command()
    def purge(
        context: typer.Context,
        before: Before,
        yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Delete the letters before a time, or before one letter in its partition.

        Kafka only deletes from the beginning of a partition up to an offset: letters cannot be
        deleted by reason or stage, and a time deletes all letters before it.

        Example: braid dead-letters purge --before 7d --yes
        """
        settings = settings_of(context)
        cuts = _cuts(settings, before)
        left = sum(stop - start for start, stop in cuts.values())
        if left and not yes:
            typer.confirm(f"delete up to {left} letters in {len(cuts)} partitions?", abort=True)
        if cuts:
            from ..dead_letters.letters import TOPIC
            from ..kafka.admin import Admin

            stops = {number: stop for number, (_, stop) in cuts.items()}
            Admin(settings).truncate(settings.topic(TOPIC), stops)
        if as_json:
            print(json.dumps({str(number): stop for number, (_, stop) in cuts.items()}))
            return
        for number, (_, stop) in cuts.items():
            print(f"partition {number}: deleted what lay before offset {stop}")
        if not cuts:
            print("nothing to delete")


def selection_of(
    reason: str | None = None,
    stage: str | None = None,
    model: str | None = None,
    since: str | None = None,
    until: str | None = None,
    source: str | None = None,
    ids: list[str] | None = None,
) -> Selection:
    """The selection of the command line's options. Raises ConfigError."""
    from ..dead_letters.letters import Selection, place_of

    topic, colon, partition = (source or "").partition(":")
    if source is not None and (
        topic not in ("records", "parts") or (colon and not partition.isdecimal())
    ):
        raise ConfigError(f"--from: expected records or parts, or records:3, got {source[:80]!r}")
    return Selection(
        reason=reason,
        stage=stage,
        model=model,
        since_ms=None if since is None else time_of(since),
        until_ms=None if until is None else time_of(until),
        source=topic or None,
        partition=int(partition) if partition else None,
        ids=frozenset(place_of(id) for id in ids or []),
    )


def time_of(text: str, *, wall: Callable[[], float] = time.time) -> int:
    """A time in milliseconds since 1970: ISO 8601, by default in UTC, or an age.

    Raises ConfigError.
    """
    number, unit = text[:-1], text[-1:]
    if unit in UNITS and number.isascii() and number.isdecimal() and len(number) < 10:
        return int(1000 * (wall() - int(number) * UNITS[unit]))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"expected a time as 2026-11-28T12:00, or 90s, 15m, 6h, 1d, got {text[:80]!r}"
        ) from None
    return int(1000 * (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp())


def _cuts(settings: Settings, before: str) -> dict[int, tuple[int, int]]:
    """The offsets to delete: partition -> its first offset, and the first one that is kept."""
    from ..dead_letters.letters import TOPIC
    from ..kafka.admin import Admin

    admin, topic = Admin(settings), settings.topic(TOPIC)
    ends = admin.ends(topic)
    partition, _, offset = before.partition(":")
    if partition.isdecimal() and offset.isdecimal():
        stays = {int(partition): int(offset)}
    else:
        at = admin.offsets_at(topic, len(ends), time_of(before))
        stays = {number: at.get(number, end) for number, (_, end) in ends.items()}
    return {
        number: (ends[number][0], min(stop, ends[number][1]))
        for number, stop in stays.items()
        if number in ends and stop > ends[number][0]
    }


def _groups(settings: Settings) -> dict[str, str]:
    """Origin topic -> the consumer group that processes it."""
    from ..registry.versions import registry_of, serving_generation

    champion = registry_of(settings).champion()
    generation = serving_generation(settings, champion)
    parts = f"{settings.prefix}braid-join"
    return {settings.topic("records"): settings.group(generation), settings.topic("parts"): parts}


def _at(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def _origin(row: dict[str, Any]) -> str:
    if row["topic"] is None:
        return "from an unknown place"
    return f"{row['topic']}[{row['partition']}]@{row['offset']} {row['key'] or ''}".rstrip()


def _why(row: dict[str, Any]) -> str:
    reason = f"{row['field']}: {row['reason']}"
    return f"{row['stage']} {row['kind']}: {reason[:REASON_CHARS]}"


def _few(ids: list[str]) -> str:
    return " ".join(ids[:10]) + (" ..." if len(ids) > 10 else "")
