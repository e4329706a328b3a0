"""Converts labels to tasks and training targets.

A task's targets, one row for each sample:

    classification  int[N], the class's position, -1 where unknown
    multilabel      float[N, C] of 0 and 1, NaN where unknown
    regression      float[N], (value - mean) / spread of the train split, NaN where unknown
    generation      int[N, L], word numbers, -1 behind the end and where unknown

Shapes: N samples, C classes, L words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import TaskConfig, TrainConfig
from ..errors import TrainingError
from ..model.caption import Captioner, vocabulary
from ..tasks import FITS, Task
from ..types import Label

TaskTargets = tuple[Task, Tensor] | None


def targets(
    labels: Sequence[Mapping[str, Label]],
    texts: Sequence[str | None],
    train: Sequence[bool],
    config: TrainConfig,
    left_out: Counter[str],
) -> tuple[dict[str, Task], dict[str, Tensor]]:
    """The tasks that the labels make, and their targets.

    A task whose labels are of several kinds takes the most frequent kind; labels of other kinds are
    left out and counted. Classes that the train split lacks count as unknown.

    Raises:
        TrainingError: more classes than `max_classes`, a declared task without any label.
    """
    declared = config.model.tasks
    names = sorted({name for row in labels for name in row} | set(declared))
    tasks: dict[str, Task] = {}
    target_by_task: dict[str, Tensor] = {}
    for name in names:
        rows: list[Label | None] = [row.get(name) for row in labels]
        declaration = declared.get(name)
        if declaration and (declaration.kind, declaration.source) == ("generation", "text"):
            rows = list(texts)
        kind = declaration.kind if declaration else _kind(rows, train)
        if kind is None:
            continue
        kept = [row if FITS[kind](row) else None for row in rows]
        if wrong := kept.count(None) - rows.count(None):
            left_out["label of another kind"] += wrong
        known = [row for row, here in zip(kept, train, strict=True) if row is not None and here]
        if declaration and not known:
            raise TrainingError(f"task {name!r} is declared, but no sample to train on has a label")
        made = _MAKE[kind](_TaskLabels(name, kept, known, config.max_classes, declaration))
        if made is not None:
            tasks[name], target_by_task[name] = made
    return tasks, target_by_task


def _kind(rows: Sequence[Label | None], train: Sequence[bool]) -> str | None:
    counts = Counter(
        kind
        for row, here in zip(rows, train, strict=True)
        if row is not None and here
        for kind in ("classification", "regression", "multilabel")
        if FITS[kind](row)
    )
    return counts.most_common(1)[0][0] if counts else None


@dataclass
class _TaskLabels:
    """The labels of one task: of all samples, and those known in the train split."""

    name: str
    rows: list[Any]
    known: list[Any]
    max_classes: int
    declaration: TaskConfig | None

    def classes(self, names: Iterable[str]) -> tuple[str, ...]:
        seen = set(names)
        if len(seen) > self.max_classes:
            raise TrainingError(
                f"task {self.name!r} has {len(seen)} classes, the limit is {self.max_classes}: is "
                "it a caption (then declare it as generation) or an id?"
            )
        return tuple(sorted(seen))


def _class_targets(labels: _TaskLabels) -> TaskTargets:
    classes = labels.classes(labels.known)
    if len(classes) < 2:
        return None  # a single class: nothing to predict
    place = {label: i for i, label in enumerate(classes)}
    return Task(classes=classes), torch.tensor([place.get(row, -1) for row in labels.rows])


def _label_targets(labels: _TaskLabels) -> TaskTargets:
    classes = labels.classes(chain.from_iterable(labels.known))
    if not classes:
        return None
    target_NC = torch.full((len(labels.rows), len(classes)), float("nan"))
    for i, row in enumerate(labels.rows):
        if row is not None:
            target_NC[i] = torch.tensor([float(label in row) for label in classes])
    return Task(kind="multilabel", classes=classes), target_NC


def _number_targets(labels: _TaskLabels) -> TaskTargets:
    if not labels.known:
        return None
    known_n = np.array(labels.known, np.float64)
    mean, spread = float(known_n.mean()), float(known_n.std()) or 1.0
    value_N = np.array([np.nan if row is None else float(row) for row in labels.rows])
    scaled_N = torch.from_numpy((value_N - mean) / spread).float()
    return Task(kind="regression", mean=mean, spread=spread), scaled_N


def _caption_targets(labels: _TaskLabels) -> TaskTargets:
    declaration = labels.declaration
    assert declaration is not None, "captions are declared"
    words = vocabulary(labels.known, declaration.min_count)
    task = Task(
        kind="generation", words=words, source=declaration.source, length=declaration.length
    )
    captioner = Captioner(words, 1, declaration.length, width=1)
    ids_NL = torch.full((len(labels.rows), declaration.length + 1), -1)
    for i, row in enumerate(labels.rows):
        if row is not None:
            ids = captioner.encode(row)
            ids_NL[i, : len(ids)] = torch.tensor(ids)
    return task, ids_NL


_MAKE: dict[str, Callable[[_TaskLabels], TaskTargets]] = {
    "classification": _class_targets,
    "multilabel": _label_targets,
    "regression": _number_targets,
    "generation": _caption_targets,
}
