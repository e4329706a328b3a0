"""Generation records in the registry: building, serving, in the rollback window, dropped.

    models/generations/g0002.json   the generation's model, space and state

The file of a generation is replaced atomically. The champion's file
(`braid.stream.registry.versions`) decides which generation serves. The states of the others:

    building   its group reads `records` from the beginning; it answers only queries that name it
    grace      in its rollback window: it served and is still fed, so that a rollback takes seconds
    dropped    its topic and group are deleted
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from braid.index.files import created, replaced

from ..errors import RegistryError
from .versions import Registry

FOLDER = "generations"
STATES = ("building", "serving", "grace", "dropped")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRecord:
    """One generation, as recorded in the registry.

    Attributes:
        until_ms: when its rollback window ends.
        source: the generation whose vectors are mapped by the model's adapter; None: every record
            is embedded.
        drop_missing: flip even if some ids could not be embedded again.
        seq: the champion's number when it was opened; it takes over from that one only.
        why: the reason for its state, for display.
    """

    generation: str
    model: str
    space: str
    state: str
    until_ms: int | None = None
    source: str | None = None
    drop_missing: bool = False
    seq: int | None = None
    why: str = ""


class GenerationRecords:
    """The generations below a registry's folder."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER

    def all(self) -> list[GenerationRecord]:
        """Oldest first. Raises RegistryError for an invalid file."""
        if not self._folder.is_dir():
            return []
        return [
            self._read(path)
            for path in sorted(self._folder.iterdir())
            if re.fullmatch(r"g[0-9]{4}\.json", path.name)
        ]

    def get(self, generation: str) -> GenerationRecord | None:
        path = self._path(generation)
        return self._read(path) if path.exists() else None

    def add(self, entry: GenerationRecord) -> None:
        """Open a generation. Raises RegistryError if another process did so at the same moment."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            created(self._path(entry.generation), _plain(entry))
        except FileExistsError:
            raise RegistryError(
                f"another process opened {entry.generation} at the same moment; look again"
            ) from None

    def put(self, entry: GenerationRecord) -> None:
        """Replace the record of a generation."""
        self._folder.mkdir(parents=True, exist_ok=True)
        replaced(self._path(entry.generation), _plain(entry))

    def next(self, *, serving: str) -> str:
        """An unused generation name."""
        taken = [entry.generation for entry in self.all()]
        return f"g{1 + max(int(name[1:]) for name in [*taken, serving]):04d}"

    def fed(self, registry: Registry) -> Mapping[str, str]:
        """Generation -> the model that feeds it, for all that are fed.

        These are the champion's generation, those that are built, and those in their rollback
        window, with the last champion of the generation.
        """
        champion = registry.champion()
        if champion is None:
            return {}
        models = {champion.generation: champion.name}
        last = {promotion.generation: promotion.name for promotion in registry.history()}
        for entry in self.all():
            if entry.generation in models or entry.state == "dropped":
                continue
            models[entry.generation] = last.get(entry.generation, entry.model)
        return models

    def _path(self, generation: str) -> Path:
        return self._folder / f"{generation}.json"

    def _read(self, path: Path) -> GenerationRecord:
        try:
            entry = GenerationRecord(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise RegistryError(f"{path} is no generation: {error}") from error
        if entry.state not in STATES:
            raise RegistryError(f"{path}: state {entry.state!r:.40}, not one of {STATES}")
        return entry


def _plain(entry: GenerationRecord) -> bytes:
    return json.dumps(asdict(entry)).encode()
