"""Tasks: what a version predicts. A task's kind follows from its labels, or is declared.

    classification  a class name                   -> one of the classes
    multilabel      a list of class names          -> any of the classes
    regression      a number                       -> a number, scaled by mean and spread
    generation      a caption (must be declared)   -> a text, from the fused vector alone

Imports no torch: the manifest is read without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard


def is_number(label: object) -> TypeGuard[float]:
    """Whether a label is a finite number; a boolean is none."""
    return isinstance(label, (int, float)) and not isinstance(label, bool) and math.isfinite(label)


FITS: dict[str, Callable[[object], bool]] = {
    "classification": lambda label: isinstance(label, str),
    "multilabel": lambda label: (
        isinstance(label, (list, tuple)) and all(isinstance(one, str) for one in label)
    ),
    "regression": is_number,
    "generation": lambda label: isinstance(label, str),
}
"""Whether a label belongs to a task of this kind."""
KINDS = tuple(FITS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task of a model.

    Attributes:
        kind: one of `KINDS`.
        classes: class names, sorted (classification, multilabel).
        mean, spread: value = mean + spread * output (regression).
        words: the vocabulary (generation).
        source: the modality that a caption repeats. It is excluded from the caption's input. None
            if captions are labels (generation).
        length: most words of a caption (generation).
    """

    kind: str = "classification"
    classes: Sequence[str] = ()
    mean: float = 0.0
    spread: float = 1.0
    words: Sequence[str] = ()
    source: str | None = None
    length: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no task kind {self.kind!r}; there are {', '.join(KINDS)}")

    @property
    def outputs(self) -> int:
        """The number of outputs of each source: C; 1 for a number; 0 for a caption."""
        return {"regression": 1, "generation": 0}.get(self.kind, len(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the fields at their defaults."""
        empty = asdict(Task())
        return {"kind": self.kind} | {
            name: list(value) if isinstance(value, (list, tuple)) else value
            for name, value in asdict(self).items()
            if value != empty[name]
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Task:
        """The inverse of `to_dict`. Raises TypeError or ValueError for anything else."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(**values)
