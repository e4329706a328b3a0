"""Fusion makes the vector: one unit vector for any non-empty subset of modalities.

Shapes: B samples, M modalities, D the shared space.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class MeanFusion(nn.Module):
    """fused = normalise(sum over m of present_m * unit_m), the mean direction of what is present.

    Should the vectors cancel each other (opposite ones do), the first present one is taken, so
    that the result is always a unit vector.
    """

    def __init__(self, dim: int, modalities: int) -> None:
        super().__init__()

    def forward(self, unit_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Unit vectors, float[B, D].

        Args:
            unit_BMD: unit vectors; what stands where `present_BM` is False does not matter.
            present_BM: bool; every row has at least one True.
        """
        kept_BMD = torch.where(present_BM[:, :, None], unit_BMD, torch.zeros_like(unit_BMD))
        sum_BD = kept_BMD.sum(1)
        first_B = present_BM.float().argmax(1)
        first_BD = kept_BMD[torch.arange(len(first_B), device=first_B.device), first_B]
        cancelled_B1 = sum_BD.norm(dim=1, keepdim=True) < 1e-4
        return F.normalize(torch.where(cancelled_B1, first_BD, sum_BD), dim=1)


class EarlyFusion(nn.Module):
    """fused = normalise(mean + MLP(concat over m of z_m)), z_m = unit_m, or a learnt absent vector.

    Early fusion by concatenation (Baltrusaitis et al. 2019, "Multimodal Machine Learning", arXiv
    1705.09406, section 6.1). The MLP sees all modalities at once, so the result can hold what no
    single one does (an XOR); the mean direction beside it keeps the result in the shared space, so
    that fuse({text}) finds fuse({image}) from the first step on.
    """

    def __init__(self, dim: int, modalities: int) -> None:
        super().__init__()
        self.mean = MeanFusion(dim, modalities)
        self.absent_MD = nn.Parameter(F.normalize(torch.randn(modalities, dim), dim=1))
        self.layers = nn.Sequential(
            nn.Linear(modalities * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, unit_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Unit vectors, float[B, D]; the arguments are those of `MeanFusion`."""
        filled_BMD = torch.where(present_BM[:, :, None], unit_BMD, self.absent_MD)
        together_BD = self.layers(filled_BMD.flatten(1))
        return F.normalize(self.mean(unit_BMD, present_BM) + together_BD, dim=1)


FUSIONS: dict[str, Callable[[int, int], nn.Module]] = {"mean": MeanFusion, "early": EarlyFusion}


def make_fusion(name: str, dim: int, modalities: int) -> nn.Module:
    """The fusion called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in FUSIONS:
        raise ValueError(f"no fusion {name!r}; there are {', '.join(FUSIONS)}")
    return FUSIONS[name](dim, modalities)
