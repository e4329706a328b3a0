"""Heads: for each task one classifier a modality and one on the fused vector.

Shapes: B samples, C classes, F features, D the shared space. A *source* is a modality or "fused".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from encoders.types import FUSED

SCALE = 10.0
"""Inputs have length 1; without this the logits would stay too small for a confident answer."""


class Classifier(nn.Module):
    """Dropout and a linear map from a vector of length 1 to the logits of one task."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, vector_BF: Tensor) -> Tensor:
        """Logits, float[B, C]."""
        logits_BC: Tensor = SCALE * self.linear(self.dropout(vector_BF))
        return logits_BC


class Heads(nn.Module):
    """All classifiers of all tasks.

    Args:
        tasks: task name to its class names.
        widths: source to the width of what its classifier sees.
    """

    def __init__(
        self, tasks: Mapping[str, Sequence[str]], widths: Mapping[str, int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tasks = {name: tuple(classes) for name, classes in tasks.items()}
        self.sources = tuple(widths)
        # Positions, not task names, key the parameters: a name may hold a dot, a key may not.
        self.by_task = nn.ModuleList(
            nn.ModuleDict(
                {
                    source: Classifier(width, len(classes), dropout)
                    for source, width in widths.items()
                }
            )
            for classes in self.tasks.values()
        )

    def forward(self, task: str, source: str, vector_BF: Tensor) -> Tensor:
        """Logits of `task` as `source` sees it, float[B, C]."""
        heads = cast(nn.ModuleDict, self.by_task[list(self.tasks).index(task)])
        return cast(Tensor, heads[source](vector_BF))


def sources_of(modalities: Sequence[str]) -> tuple[str, ...]:
    """The sources of a decision over `modalities`: each of them, then "fused"."""
    return (*modalities, FUSED)
