"""The bounds of a decoded message, counted before it is decoded."""

from __future__ import annotations

from ..errors import BadRecord
from ..kafka.packing import MAX_DEPTH, MAX_OBJECTS


class Budget:
    """Counts the objects of one message, and how deep they are nested."""

    def __init__(self) -> None:
        self._left = MAX_OBJECTS
        self._depth = 0

    def spend(self, objects: int) -> None:
        """Raises BadRecord: more than MAX_OBJECTS."""
        self._left -= objects
        if self._left < 0:
            raise BadRecord("value", f"holds more than the limit of {MAX_OBJECTS} objects")

    def enter(self, objects: int) -> None:
        """One level down, into a container with so many entries. Raises BadRecord."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BadRecord("value", f"is nested deeper than the limit of {MAX_DEPTH}")
        self.spend(objects)

    def leave(self) -> None:
        self._depth -= 1
