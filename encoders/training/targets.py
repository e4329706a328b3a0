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
        of_task = _TaskLabels(name, kept, known, config.max_classes, declaration)
        if kind == "generation":
            tasks[name], target_by_task[name] = _caption_targets(of_task)
        elif (task := _TASK[kind](of_task)) is not None:
            tasks[name], target_by_task[name] = task, targets_of(task, kept)
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


def targets_of(task: Task, rows: Sequence[Label | None]) -> Tensor:
    """The targets of a task with known classes and scales, not a caption's.

    Labels of another kind, and classes that the task does not have, count as unknown.
    """
    labels: list[Any] = [row if FITS[task.kind](row) else None for row in rows]
    if task.kind == "classification":
        place = {label: i for i, label in enumerate(task.classes)}
        return torch.tensor([place.get(label, -1) for label in labels])
    if task.kind == "multilabel":
        target_NC = torch.full((len(rows), len(task.classes)), float("nan"))
        for i, label in enumerate(labels):
            if label is not None:
                target_NC[i] = torch.tensor([float(one in label) for one in task.classes])
        return target_NC
    value_N = np.array([np.nan if label is None else float(label) for label in labels])
    return torch.from_numpy((value_N - task.mean) / task.spread).float()


def _class_task(labels: _TaskLabels) -> Task | None:
    classes = labels.classes(labels.known)
    return Task(classes=classes) if len(classes) > 1 else None  # one class: nothing to predict


def _label_task(labels: _TaskLabels) -> Task | None:
    classes = labels.classes(chain.from_iterable(labels.known))
    return Task(kind="multilabel", classes=classes) if classes else None


def _number_task(labels: _TaskLabels) -> Task | None:
    if not labels.known:
        return None
    known_n = np.array(labels.known, np.float64)
    mean, spread = float(known_n.mean()), float(known_n.std()) or 1.0
    return Task(kind="regression", mean=mean, spread=spread)


def _caption_targets(labels: _TaskLabels) -> tuple[Task, Tensor]:
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


_TASK: dict[str, Callable[[_TaskLabels], Task | None]] = {
    "classification": _class_task,
    "multilabel": _label_task,
    "regression": _number_task,
}
