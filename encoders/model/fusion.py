"""Fusion: one unit vector from any non-empty subset of modalities.

    mean          the mean direction of the modalities' unit vectors
    early         their concatenation through an MLP, with a learnt vector for what is absent
    intermediate  cross-attention among their tokens: words, patches, frames

All share one interface, `forward(unit_BMD, present_BM, tokens)`; only `intermediate` uses the
tokens. `early` and `intermediate` add a term to the mean that is 0 at the start, so that
fuse({text}) retrieves fuse({image}) as soon as the units are aligned. They add nothing to a single
modality: it keeps its own vector, which is the one that was aligned with the other modalities; a
term trained on the task would move it.

Shapes: B samples, M modalities, D the shared space, T tokens of one modality, F their width,
S places in the sequence (the fused one, then all tokens), H attention heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Tokens = Mapping[int, tuple[Tensor, Tensor]]
"""Position of a modality -> tokens float[B, T, F] and mask bool[B, T], True where one is real."""

HEADS = 4


class Fusion(nn.Module, ABC):
    """The interface of a fusion.

    Attributes:
        needs_tokens: whether `forward` uses `tokens`; if not, they need not be computed.
    """

    needs_tokens = False

    @abstractmethod
    def forward(self, unit_BMD: Tensor, present_BM: Tensor, tokens: Tokens | None = None) -> Tensor:
        """Unit vectors, float[B, D].

        Args:
            unit_BMD: unit vectors; ignored where `present_BM` is False.
            present_BM: bool; every row has at least one True.
            tokens: of each modality that has them; those of absent modalities are ignored.
        """


class MeanFusion(Fusion):
    """fused = normalise(sum over m of present_m * unit_m), the mean direction of what is present
    (Mardia and Jupp 2000, "Directional Statistics", chapter 9).

    If the vectors cancel each other, the first present one is taken, so that the result is always
    a unit vector.
    """

    def __init__(self, dim: int, token_widths: Sequence[int]) -> None:
        super().__init__()

    def forward(self, unit_BMD: Tensor, present_BM: Tensor, tokens: Tokens | None = None) -> Tensor:
        """See `Fusion.forward`."""
        kept_BMD = torch.where(present_BM[:, :, None], unit_BMD, torch.zeros_like(unit_BMD))
        sum_BD = kept_BMD.sum(1)
        first_B = present_BM.float().argmax(1)
        first_BD = kept_BMD[torch.arange(len(first_B), device=first_B.device), first_B]
        cancelled_B1 = sum_BD.norm(dim=1, keepdim=True) < 1e-4
        return F.normalize(torch.where(cancelled_B1, first_BD, sum_BD), dim=1)


class EarlyFusion(Fusion):
    """fused = normalise(mean + MLP(concat over m of z_m)), z_m = unit_m, or a learnt absent vector.

    Early fusion by concatenation (Baltrusaitis et al. 2019, "Multimodal Machine Learning", arXiv
    1705.09406, section 6.1). The input of the MLP is all modalities, so the result can hold what no
    single one does (an XOR); the mean direction keeps it in the shared space. The last layer starts
    at 0.
    """

    def __init__(self, dim: int, token_widths: Sequence[int]) -> None:
        super().__init__()
        modalities = len(token_widths)
        self.mean = MeanFusion(dim, token_widths)
        self.absent_MD = nn.Parameter(F.normalize(torch.randn(modalities, dim), dim=1))
        self.layers = nn.Sequential(
            nn.Linear(modalities * dim, 2 * dim), nn.GELU(), last := nn.Linear(2 * dim, dim)
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, unit_BMD: Tensor, present_BM: Tensor, tokens: Tokens | None = None) -> Tensor:
        """See `Fusion.forward`."""
        filled_BMD = torch.where(present_BM[:, :, None], unit_BMD, self.absent_MD)
        together_BD = self.layers(filled_BMD.flatten(1)) * _several(present_BM)
        return F.normalize(self.mean(unit_BMD, present_BM) + together_BD, dim=1)


class CrossAttention(nn.Module):
    """One pre-norm block: attention under a mask (arXiv 1706.03762), then an MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_in, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(
        self, x_BSD: Tensor, may_BSS: Tensor, *, shown: bool = False, first: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The new x, float[B, S, D], and, if `shown`, the attention weights.

        Otherwise the weights are not materialised: with a picture's patches and a sound's frames S
        exceeds a thousand, and B · S² weights per head and layer exceed a GPU's memory.

        Args:
            may_BSS: bool, whether place i may attend to place j; each row has at least one True.
            first: compute the first place alone, float[B, 1, D]: it is all that is read of the last
                block.

        Returns:
            x, and float[B, S, S], rows sum to 1, the mean over the heads; None unless `shown`.
        """
        inner_BSD = self.norm_in(x_BSD)
        if first:
            x_BSD, may_BSS = x_BSD[:, :1], may_BSS[:, :1]
        dim, places = x_BSD.shape[2], x_BSD.shape[1]
        q_BHSK, k_BHSK, v_BHSK = (
            F.linear(of_BSD, weight, bias).unflatten(2, (HEADS, dim // HEADS)).transpose(1, 2)
            for of_BSD, weight, bias in zip(
                (inner_BSD[:, :places], inner_BSD, inner_BSD),
                self.qkv.weight.split(dim),
                self.qkv.bias.split(dim),
                strict=True,
            )
        )
        weight_BSS = None
        if shown:
            scores_BHSS = q_BHSK @ k_BHSK.transpose(2, 3) / (dim // HEADS) ** 0.5
            weight_BHSS = scores_BHSS.masked_fill(~may_BSS[:, None], float("-inf")).softmax(3)
            seen_BHSK = weight_BHSS @ v_BHSK
            weight_BSS = weight_BHSS.mean(1)
        else:
            seen_BHSK = F.scaled_dot_product_attention(
                q_BHSK, k_BHSK, v_BHSK, attn_mask=may_BSS[:, None]
            )
        x_BSD = x_BSD + self.out(seen_BHSK.transpose(1, 2).flatten(2))
        return x_BSD + self.mlp(self.norm_mlp(x_BSD)), weight_BSS


class IntermediateFusion(Fusion):
    """fused = normalise(mean + W x_0), x_0 the first place of a sequence under cross-attention.

    The sequence is one learnt place and the tokens of all modalities, each mapped to D. A token
    attends to itself and to the tokens of *other* modalities, as in ViLBERT's co-attention (arXiv
    1908.02265) and MulT (arXiv 1906.00295); the first place attends to all. W starts at 0.

    A modality whose encoder has no tokens has its unit vector as its one token.
    """

    needs_tokens = True

    def __init__(self, dim: int, token_widths: Sequence[int], layers: int = 2) -> None:
        super().__init__()
        if dim % HEADS:
            raise ValueError(f"dim must be a multiple of {HEADS}, is {dim}")
        self.mean = MeanFusion(dim, token_widths)
        self.token_widths = tuple(token_widths)
        self.inputs = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
            for width in (width or dim for width in token_widths)
        )
        self.kind_MD = nn.Parameter(0.02 * torch.randn(len(token_widths), dim))
        self.first_D = nn.Parameter(0.02 * torch.randn(dim))
        self.blocks = nn.ModuleList(CrossAttention(dim) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, unit_BMD: Tensor, present_BM: Tensor, tokens: Tokens | None = None) -> Tensor:
        """See `Fusion.forward`."""
        x_BSD, _, _ = self._attend(unit_BMD, present_BM, tokens or {}, shown=False)
        looked_BD = self.out(self.norm(x_BSD[:, 0])) * _several(present_BM)
        return F.normalize(self.mean(unit_BMD, present_BM) + looked_BD, dim=1)

    def attention(self, unit_BMD: Tensor, present_BM: Tensor, tokens: Tokens) -> list[list[Tensor]]:
        """Attention weights of the last block, averaged over the heads.

        Returns:
            `[m][n]`, float[B, T of m, T of n]: the weights of each token of modality m on those of
            modality n. Padding and absent modalities get 0.
        """
        _, weight_BSS, bounds = self._attend(unit_BMD, present_BM, tokens, shown=True)
        assert weight_BSS is not None
        return [[weight_BSS[:, a0:a1, b0:b1] for b0, b1 in bounds] for a0, a1 in bounds]

    def _attend(
        self, unit_BMD: Tensor, present_BM: Tensor, tokens: Tokens, *, shown: bool
    ) -> tuple[Tensor, Tensor | None, list[tuple[int, int]]]:
        """The last block's x, float[B, S, D], its weights, and each modality's places; unless
        `shown`, x of the first place alone and no weights."""
        batch = len(unit_BMD)
        device = unit_BMD.device
        parts = [self.first_D.expand(batch, 1, -1)]
        reals = [torch.ones(batch, 1, dtype=torch.bool, device=device)]
        kinds = [torch.full((1,), -1, device=device)]
        bounds: list[tuple[int, int]] = []
        start = 1
        for m, layer in enumerate(self.inputs):
            here_B1 = present_BM[:, m, None]
            if m in tokens:
                tokens_BTF, mask_BT = tokens[m]
            elif self.token_widths[m] == 0:
                tokens_BTF, mask_BT = unit_BMD[:, m, None], here_B1
            else:  # absent in the whole batch
                tokens_BTF = unit_BMD.new_zeros(batch, 1, self.token_widths[m])
                mask_BT = here_B1 & False
            real_BT = mask_BT & here_B1
            kept_BTF = torch.where(real_BT[:, :, None], tokens_BTF, torch.zeros_like(tokens_BTF))
            parts.append(layer(kept_BTF) + self.kind_MD[m])
            reals.append(real_BT)
            kinds.append(torch.full((real_BT.shape[1],), m, device=device))
            bounds.append((start, start + real_BT.shape[1]))
            start = bounds[-1][1]
        real_BS, kind_S = torch.cat(reals, dim=1), torch.cat(kinds)
        other_SS = (kind_S[:, None] != kind_S[None]) & (kind_S >= 0)[None]
        itself_SS = torch.eye(len(kind_S), dtype=torch.bool, device=device)
        may_BSS = (other_SS & real_BS[:, None]) | itself_SS
        x_BSD, weight_BSS = torch.cat(parts, dim=1), None
        for number, block in enumerate(self.blocks, start=1):
            last = number == len(self.blocks)
            x_BSD, weight_BSS = block(
                x_BSD, may_BSS, shown=shown and last, first=last and not shown
            )
        if weight_BSS is not None:
            weight_BSS = weight_BSS * real_BS[:, :, None]
        return x_BSD, weight_BSS, bounds


def _several(present_BM: Tensor) -> Tensor:
    """Whether there is more than one modality, bool[B, 1]."""
    return present_BM.sum(1, keepdim=True) > 1


FUSIONS: dict[str, Callable[[int, Sequence[int]], Fusion]] = {
    "mean": MeanFusion,
    "early": EarlyFusion,
    "intermediate": IntermediateFusion,
}


def make_fusion(name: str, dim: int, token_widths: Sequence[int]) -> Fusion:
    """The fusion called `name`.

    Args:
        dim: D.
        token_widths: F of each modality's tokens, 0 where its encoder has none.

    Raises:
        ValueError: there is none of that name, or `dim` does not suit it.
    """
    if name not in FUSIONS:
        raise ValueError(f"no fusion {name!r}; there are {', '.join(FUSIONS)}")
    return FUSIONS[name](dim, token_widths)
