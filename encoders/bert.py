"""BERT's encoder in plain torch, for weights in the layout of `transformers`.

`transformers` takes eight seconds of CPU to import, which every worker would pay at every start;
this takes none. A test holds it to `transformers`' own numbers. Devlin et al. 2018 (arXiv
1810.04805).

Shapes: B texts, T tokens, F width, H heads, E width of a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def supported(settings: Mapping[str, Any]) -> bool:
    """Whether `Bert` is the model that a `config.json` of `transformers` describes."""
    return (
        settings.get("model_type") == "bert"
        and settings.get("hidden_act", "gelu") == "gelu"
        and settings.get("position_embedding_type", "absolute") == "absolute"
        and not settings.get("is_decoder")
        and not settings.get("add_cross_attention")
    )


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and normalised."""

    def __init__(self, width: int, heads: int, inner: int, epsilon: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_attention = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_output = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTF: Tensor, mask_B11T: Tensor) -> Tensor:
        query, key, value = (
            part(x_BTF).unflatten(2, (self.heads, -1)).transpose(1, 2)  # B, H, T, E
            for part in (self.query, self.key, self.value)
        )
        seen_BHTE = F.scaled_dot_product_attention(
            query, key, value, mask_B11T, dropout_p=self.dropout.p if self.training else 0.0
        )
        seen_BTF = self.out(seen_BHTE.transpose(1, 2).flatten(2))
        x_BTF = self.norm_attention(x_BTF + self.dropout(seen_BTF))
        inner_BTF = self.down(F.gelu(self.up(x_BTF)))
        out_BTF: Tensor = self.norm_output(x_BTF + self.dropout(inner_BTF))
        return out_BTF


class Bert(nn.Module):
    """Embeddings and layers; no pooler.

    Args:
        settings: a `config.json` that is `supported`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        width, epsilon = int(settings["hidden_size"]), float(settings.get("layer_norm_eps", 1e-12))
        dropout = float(settings.get("hidden_dropout_prob", 0.1))
        self.words = nn.Embedding(int(settings["vocab_size"]), width)
        self.positions = nn.Embedding(int(settings["max_position_embeddings"]), width)
        self.kinds = nn.Embedding(int(settings.get("type_vocab_size", 2)), width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(dropout)
        heads, inner = int(settings["num_attention_heads"]), int(settings["intermediate_size"])
        self.layers = nn.ModuleList(
            Layer(width, heads, inner, epsilon, dropout)
            for _ in range(int(settings["num_hidden_layers"]))
        )

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> list[Tensor]:
        """The embeddings and each layer's output, float[B, T, F] each. `mask_BT` is bool."""
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTF = self.words(ids_BT) + self.positions(places_T) + self.kinds.weight[0]
        states = [self.dropout(self.norm(x_BTF))]
        for layer in self.layers:
            states.append(layer(states[-1], mask_BT[:, None, None, :]))
        return states


_PARTS = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "out", "attention.output.LayerNorm": "norm_attention",
    "intermediate.dense": "up", "output.dense": "down", "output.LayerNorm": "norm_output",
}  # fmt: skip
_EMBEDDINGS = {
    "word_embeddings": "words", "position_embeddings": "positions",
    "token_type_embeddings": "kinds", "LayerNorm": "norm",
}  # fmt: skip


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`transformers`' parameter names as this module's; the pooler and other heads are left out."""
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        short = name.removeprefix("bert.")
        # The oldest checkpoints call a norm's weight gamma and its bias beta.
        short = short.replace(".gamma", ".weight").replace(".beta", ".bias")
        if inner := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", short):
            result[f"layers.{inner[1]}.{_PARTS[inner[2]]}.{inner[3]}"] = value
        elif outer := re.fullmatch(r"embeddings\.(\w+)\.(weight|bias)", short):
            result[f"{_EMBEDDINGS[outer[1]]}.{outer[2]}"] = value
    return result
