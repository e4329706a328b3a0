"""Heads: for each task one per modality and one on the fused vector; the caption decoder.

Shapes: B samples, C classes, F features, D the shared space. A *source* is a modality or "fused".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from ..tasks import Task
from ..types import FUSED
from .caption import Captioner

SCALE = 10.0
"""Inputs have length 1; without this factor the logits would be too small for high confidence."""


class Head(nn.Module):
    """Dropout and a linear map from a vector of length 1 to the outputs of one task: the logits of
    its classes, or one number."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, outputs)

    def forward(self, vector_BF: Tensor) -> Tensor:
        """Logits, float[B, C]."""
        logits_BC: Tensor = SCALE * self.linear(self.dropout(vector_BF))
        return logits_BC


class Heads(nn.Module):
    """All heads of all tasks.

    Args:
        tasks: by name.
        widths: source to the width of its head's input.
        dim: D, the width of the fused vector.
    """

    def __init__(
        self, tasks: Mapping[str, Task], widths: Mapping[str, int], dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.sources = tuple(widths)
        # Positions, not task names, key the parameters: a name may hold a dot, a key may not.
        self.by_task = nn.ModuleList(
            Captioner(task.words, dim, task.length)
            if task.kind == "generation"
            else nn.ModuleDict(
                {source: Head(width, task.outputs, dropout) for source, width in widths.items()}
            )
            for task in self.tasks.values()
        )

    def forward(self, task: str, source: str, vector_BF: Tensor) -> Tensor:
        """The output of `source` for `task`, float[B, C]: logits, or a scaled number."""
        return cast(Tensor, self.head(task, source)(vector_BF))

    def head(self, task: str, source: str) -> Head:
        """The head of `source` for a task that is not generation."""
        return cast(Head, cast(nn.ModuleDict, self._of(task))[source])

    def captioner(self, task: str) -> Captioner:
        """The decoder of a generation task."""
        return cast(Captioner, self._of(task))

    def _of(self, task: str) -> nn.Module:
        return self.by_task[list(self.tasks).index(task)]


def sources_of(modalities: Sequence[str]) -> tuple[str, ...]:
    """The sources of a decision over `modalities`: each of them, then "fused"."""
    return (*modalities, FUSED)
