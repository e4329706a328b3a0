"""Projectors: from an encoder's features to the shared space.

Shapes: B samples, F features, D the shared space.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Projector(nn.Module):
    """Features to unit vectors: dropout, then a linear map or one hidden layer."""

    def __init__(self, width: int, dim: int, *, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = (
            nn.Sequential(nn.Dropout(dropout), nn.Linear(width, dim))
            if hidden == 0
            else nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, dim),
            )
        )

    def forward(self, features_BF: Tensor) -> Tensor:
        """Unit vectors, float32[B, D], of length 1 under autocast too."""
        return F.normalize(self.layers(features_BF).float(), dim=1)
