"""Configuration of low-rank adapters (LoRA) of an encoder."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import check_minima


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Low-rank matrices that are trained in place of an encoder's weights, and added to them when
    the version is written: W + alpha / rank · B A (Hu et al. 2021, arXiv 2106.09685).

    Attributes:
        rank: rows of A and columns of B.
        alpha: scale of the product; None: `rank`, so that the factor is 1.
        targets: the last parts of the names of the linear maps in the encoder's
            `trainable_blocks` that get one, such as "q_proj"; empty: all of them.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_minima(self, {"rank": 1} | ({} if self.alpha is None else {"alpha": 0}), "lora.")
