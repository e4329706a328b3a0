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
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import TaskConfig, TrainConfig
from ..errors import TrainingError
from ..model.caption import Captioner, vocabulary
from ..tasks import Task
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
        task_config = declared.get(name)
        if (
            task_config is not None
            and task_config.kind == "generation"
            and task_config.source == "text"
        ):
            rows = list(texts)
        kind = task_config.kind if task_config is not None else _kind(rows, train)
        if kind is None:
            continue
        kept = [row if row is not None and _FITS[kind](row) else None for row in rows]
        wrong = sum(row is not None for row in rows) - sum(row is not None for row in kept)
        if wrong:
            left_out["label of another kind"] += wrong
        if task_config is not None and not any(
            row is not None and here for row, here in zip(kept, train, strict=True)
        ):
            raise TrainingError(f"task {name!r} is declared, but no sample to train on has a label")
        made = _MAKE[kind](name, kept, train, config, task_config)
        if made is not None:
            tasks[name], target_by_task[name] = made
    return tasks, target_by_task


def _kind(rows: Sequence[Label | None], train: Sequence[bool]) -> str | None:
    counts = Counter(
        kind
        for row, here in zip(rows, train, strict=True)
        if row is not None and here
        for kind in ("classification", "regression", "multilabel")
        if _FITS[kind](row)
    )
    return counts.most_common(1)[0][0] if counts else None


def _is_number(label: object) -> bool:
    return isinstance(label, (int, float)) and not isinstance(label, bool)


_FITS: dict[str, Callable[[object], bool]] = {
    "classification": lambda label: isinstance(label, str),
    "generation": lambda label: isinstance(label, str),
    "regression": lambda label: _is_number(label) and bool(np.isfinite(label)),  # type: ignore[call-overload]
    "multilabel": lambda label: (
        isinstance(label, (list, tuple)) and all(isinstance(one, str) for one in label)
    ),
}


def _classes(name: str, seen: set[str], limit: int) -> tuple[str, ...]:
    if len(seen) > limit:
        raise TrainingError(
            f"task {name!r} has {len(seen)} classes, the limit is {limit}: is it a caption (then "
            "declare it as generation) or an id?"
        )
    return tuple(sorted(seen))


def _class_targets(
    name: str,
    rows: Sequence[Label | None],
    train: Sequence[bool],
    config: TrainConfig,
    task_config: TaskConfig | None,
) -> TaskTargets:
    seen = {str(row) for row, here in zip(rows, train, strict=True) if row is not None and here}
    classes = _classes(name, seen, config.max_classes)
    if len(classes) < 2:
        return None  # a single class: nothing to predict
    place = {label: i for i, label in enumerate(classes)}
    label_N = torch.tensor([-1 if row is None else place.get(str(row), -1) for row in rows])
    return Task(classes=classes), label_N


def _label_targets(
    name: str,
    rows: Sequence[Label | None],
    train: Sequence[bool],
    config: TrainConfig,
    task_config: TaskConfig | None,
) -> TaskTargets:
    chosen = [None if row is None else {str(one) for one in _list(row)} for row in rows]
    seen: set[str] = set()
    for row, here in zip(chosen, train, strict=True):
        seen |= row if row is not None and here else set()
    classes = _classes(name, seen, config.max_classes)
    if not classes:
        return None
    target_NC = torch.full((len(rows), len(classes)), float("nan"))
    for i, row in enumerate(chosen):
        if row is not None:
            target_NC[i] = torch.tensor([float(label in row) for label in classes])
    return Task(kind="multilabel", classes=classes), target_NC


def _list(label: Label) -> Sequence[str]:
    assert not isinstance(label, (str, int, float))
    return label


def _number_targets(
    name: str,
    rows: Sequence[Label | None],
    train: Sequence[bool],
    config: TrainConfig,
    task_config: TaskConfig | None,
) -> TaskTargets:
    value_N = np.array([np.nan if row is None else float(row) for row in rows])  # type: ignore[arg-type]
    known_n = value_N[np.array(train) & ~np.isnan(value_N)]
    if len(known_n) == 0:
        return None
    mean, spread = float(known_n.mean()), float(known_n.std()) or 1.0
    scaled_N = torch.from_numpy((value_N - mean) / spread).float()
    return Task(kind="regression", mean=mean, spread=spread), scaled_N


def _caption_targets(
    name: str,
    rows: Sequence[Label | None],
    train: Sequence[bool],
    config: TrainConfig,
    task_config: TaskConfig | None,
) -> TaskTargets:
    assert task_config is not None, "captions are declared"
    known = [str(row) for row, here in zip(rows, train, strict=True) if row is not None and here]
    words = vocabulary(known, task_config.least)
    task = Task(
        kind="generation", words=words, source=task_config.source, length=task_config.length
    )
    captioner = Captioner(words, 1, task_config.length, width=1)
    ids_NL = torch.full((len(rows), task_config.length + 1), -1)
    for i, row in enumerate(rows):
        if row is not None:
            ids = captioner.encode(str(row))
            ids_NL[i, : len(ids)] = torch.tensor(ids)
    return task, ids_NL


_MAKE: dict[str, Callable[..., TaskTargets]] = {
    "classification": _class_targets,
    "multilabel": _label_targets,
    "regression": _number_targets,
    "generation": _caption_targets,
}
