"""The difference of two versions, as `braid models diff` prints it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from braid.encoders.manifest import Manifest

from .model_card import number, table

FOREMOST = 10  # changes of each part of a difference that are shown
LEAST_CHANGE = 0.01  # of a number, relative, that is shown
MOST_SHOWN = 60  # characters of a list
_CHECKSUM = re.compile("[0-9a-f]{16,}")


def difference(left: Manifest, right: Manifest) -> dict[str, Any]:
    """What differs between two versions: facts, configuration, metrics, verdict, calibration.

    Each as path to [left, right]; None: absent.
    """
    facts = ("space", "dim", "modalities", "preprocessing", "parent", "tasks", "window", "code")
    return {
        "left": left.name,
        "right": right.name,
        "same_space": left.space == right.space,
        "facts": _changes(
            {name: getattr(left, name) for name in facts},
            {name: getattr(right, name) for name in facts},
        ),
        "config": _changes(left.config, right.config),
        "metrics": _changes(left.metrics, right.metrics),
        "verdict": _changes(left.verdict, right.verdict),
        "compatibility": _changes(left.compatibility, right.compatibility),
        "calibration": _changes(left.calibration, right.calibration),
    }


def difference_lines(changes: Mapping[str, Any], *, every: bool = False) -> list[str]:
    """A difference as lines of text: of each part what matters most.

    Args:
        every: all of it.
    """
    space = "the same space" if changes["same_space"] else "different spaces"
    shown = [f"{changes['left']} and {changes['right']}: {space}"]
    for part in ("facts", "config", "metrics", "verdict", "compatibility", "calibration"):
        changed: Mapping[str, Sequence[Any]] = changes[part]
        shown += ["", part if changed else f"{part}: no difference"]
        paths = list(changed) if every else _foremost(changed)
        rows = [(path, *map(number, changed[path]), _gain(*changed[path])) for path in paths]
        shown += [f"  {line}" for line in table(rows)]
        if left_out := len(changed) - len(paths):
            shown += [f"  and {left_out} more: braid models diff --all"]
    return shown


def _foremost(changed: Mapping[str, Sequence[Any]]) -> list[str]:
    """The paths of the largest changes of numbers, and of what is short and not two numbers.

    A number that is not finite is the largest change.
    """

    def relative(path: str) -> float:
        left, right = changed[path]
        if not (math.isfinite(left) and math.isfinite(right)):
            return math.inf
        return float(abs(right - left) / max(abs(left), abs(right), 1e-9))

    numbers = [path for path, pair in changed.items() if all(map(_is_number, pair))]
    moved = [path for path in numbers if relative(path) >= LEAST_CHANGE]
    largest = sorted(moved, key=relative, reverse=True)[:FOREMOST]
    words = [
        path
        for path, pair in changed.items()
        if path not in numbers and not any(_bulky(value) for value in pair)
    ]
    return sorted([*largest, *words[:FOREMOST]])


def _bulky(value: Any) -> bool:
    """Whether nobody reads it: a checksum, or a list of numbers such as the losses."""
    if isinstance(value, str):
        return _CHECKSUM.fullmatch(value) is not None
    return isinstance(value, list) and len(f"{value}") > MOST_SHOWN


def _changes(left: Any, right: Any) -> dict[str, list[Any]]:
    ours, theirs = dict(_leaves(left)), dict(_leaves(right))
    return {
        path: [ours.get(path), theirs.get(path)]
        for path in sorted({*ours, *theirs})
        if not _same(ours.get(path), theirs.get(path))
    }


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path to value of all values that are not maps; lists are values."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else str(name))
    elif value is not None:
        yield path, list(value) if isinstance(value, tuple) else value


def _same(left: Any, right: Any) -> bool:
    """Whether two values are equal; NaN is NaN."""
    return bool(left == right) or repr(left) == repr(right)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _gain(left: Any, right: Any) -> str:
    return f"{right - left:+.4g}" if _is_number(left) and _is_number(right) else ""
