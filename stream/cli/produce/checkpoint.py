"""The checkpoint of `braid produce`: how much of each input Kafka has acknowledged.

A run that is killed goes on behind the last checkpoint; what was sent since is sent again, under
the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from braid.index.files import replaced

from ...errors import ConfigError
from .inputs import Input

VERSION = 1
MAX_LINES = 1000  # refused ones that are kept


@dataclass(slots=True)
class Progress:
    """What a run has done.

    Attributes:
        entries: of each input, by its name.
        refused: the last MAX_LINES of the lines that say why.
    """

    entries: dict[str, int] = field(default_factory=dict)
    sent: int = 0
    refused_count: int = 0
    refused: list[str] = field(default_factory=list)

    def refuse(self, line: str) -> None:
        self.refused_count += 1
        self.refused.append(line)


class Checkpoint:
    """The file of one run; without a path nothing is kept.

    Raises:
        ConfigError: the file is none of a run, or an input has changed since.
    """

    def __init__(self, path: Path | None, inputs: Iterable[Input]) -> None:
        self._path = path
        self._versions = {one.name: one.version for one in inputs}
        self.progress = Progress()
        if path is not None and path.exists():
            self._load(path)

    def save(self) -> None:
        """Keep the progress: everything counted in it is acknowledged. Raises OSError."""
        if self._path is None:
            return
        progress = self.progress
        content = {
            "version": VERSION,
            "inputs": {
                name: {"version": version, "entries": progress.entries.get(name, 0)}
                for name, version in self._versions.items()
            },
            "sent": progress.sent,
            "refused": progress.refused_count,
            "lines": progress.refused[-MAX_LINES:],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replaced(self._path, json.dumps(content, indent=1).encode())

    def _load(self, path: Path) -> None:
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            inputs = {
                name: (one["version"], int(one["entries"]))
                for name, one in content["inputs"].items()
            }
            wrong = content["version"] != VERSION
            sent, refused, lines = content["sent"], content["refused"], list(content["lines"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: no checkpoint of braid produce: {error!r}") from None
        if wrong:
            raise ConfigError(f"{path}: is of another version of braid")
        changed = [
            name
            for name, (version, entries) in inputs.items()
            if entries and self._versions.get(name) != version
        ]
        if changed:
            raise ConfigError(
                f"{path}: {changed[0]} is not what it was at the checkpoint; delete the file to "
                "begin anew"
            )
        entries = {name: count for name, (_, count) in inputs.items()}
        self.progress = Progress(entries, sent, refused, lines)
