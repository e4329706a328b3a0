"""Projectors: from an encoder's features to the shared space.

Shapes: B samples, F features, D the shared space.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..config import ModelConfig


class Projector(nn.Module):
    """Features to unit vectors: dropout, then a linear map or one hidden layer; or neither, where
    the configuration has no projection; or a map without bias, of a modality that is bridged.

    Raises:
        ValueError: no projection, and features that are not as wide as D.
    """

    def __init__(self, width: int, config: ModelConfig, modality: str = "") -> None:
        super().__init__()
        dim, hidden = config.dim, config.hidden
        if modality in config.bridged:
            self.layers = nn.Sequential(nn.Linear(width, dim, bias=False))
        elif config.projection == "none":
            if width != dim:
                raise ValueError(f"dim must be {width} without a projection, is {dim}")
            self.layers = nn.Sequential()
        elif hidden == 0:
            self.layers = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, dim))
        else:
            self.layers = nn.Sequential(
                nn.Dropout(config.dropout),
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.Dropout(config.dropout),
                nn.Linear(hidden, dim),
            )

    def forward(self, features_BF: Tensor) -> Tensor:
        """Unit vectors, float32[B, D], of length 1 under autocast too."""
        return F.normalize(self.layers(features_BF).float(), dim=1)
