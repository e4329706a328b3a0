"""Checks command lines of `braid` without running them."""

from __future__ import annotations

from typing import Any

import typer.main

from braid.stream.cli.main import app, common_first


def check_command(arguments: list[str]) -> None:
    """Parse a command line as `braid` would, without running it.

    Raises typer's UsageError: no such command or option, or a value that does not fit.
    """
    command: Any = typer.main.get_command(app)  # of click's classes, which typer brings itself
    parent, rest = None, common_first(arguments)
    while True:
        if rest[-1:] == ["--help"]:
            rest = rest[:-1]
            if not rest:
                return
        context = command.make_context(command.name, rest, parent=parent)
        if not hasattr(command, "commands"):
            return
        name, result, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert name is not None
        command, parent = result, context
