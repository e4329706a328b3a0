"""`braid config`: the settings that hold, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Callable

import typer

from ..settings import Settings, origins
from .common import AsJson


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to the command line."""

    @app.command()
    def config(context: typer.Context, as_json: AsJson = False) -> None:
        """The settings that hold, and where each comes from; secrets as stars.

        Example: braid config
        """
        values, froms = settings_of(context).shown(), origins(context.obj)
        if as_json:
            print(
                json.dumps({name: {"value": values[name], "from": froms[name]} for name in froms})
            )
            return
        width = max(map(len, froms))
        for name, where in froms.items():
            print(f"{name:{width}}  {json.dumps(values[name]):24}  {where}")
