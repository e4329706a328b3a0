"""BERT that computes no padding on a CPU: the tokens of all texts of a batch in one matrix.

Weights, names and results are those of `BertModel` of `transformers` (Devlin et al. 2019,
arXiv:1810.04805), which takes seconds to import. On another device texts stay padded: packing would
make the host wait for it.

Shapes: B texts, T tokens of the longest, N tokens of all texts or B x T, F width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

MODEL_TYPE = "bert"


def fits(settings: Mapping[str, Any]) -> bool:
    """Whether `Bert` computes what `transformers` does with this config."""
    return (
        settings.get("model_type") == MODEL_TYPE
        and settings.get("hidden_act", "gelu") == "gelu"
        and settings.get("position_embedding_type") in (None, "absolute")
        and not settings.get("is_decoder")
    )


class Bert(nn.Module):
    """The encoder of a BERT, with random weights.

    Args:
        config: the fields of a `BertConfig` of `transformers`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layer": layers})
        # Not used; part of a version's weights, and so of the name of its space.
        dense = nn.Linear(config["hidden_size"], config["hidden_size"])
        self.pooler = nn.ModuleDict({"dense": dense})

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The states after these layers, 0 the embeddings: float[B, T, F] each.

        Padding has zeros on a CPU, elsewhere any numbers.

        Args:
            ids_BT: token ids.
            mask_BT: True where a token is real: the first of each text, at least one.
        """
        if ids_BT.device.type != "cpu":
            states = self._states(ids_BT, _Padded(mask_BT))
            return [states[layer] for layer in layers]
        lengths_B = mask_BT.sum(1)
        order_B = lengths_B.argsort(stable=True)  # texts of one length side by side
        sorted_BT = mask_BT[order_B]
        states = self._states(ids_BT[order_B][sorted_BT], _Packed(lengths_B[order_B].tolist()))
        rows_N, columns_N = sorted_BT.nonzero(as_tuple=True)
        places = order_B[rows_N], columns_N
        shape = *mask_BT.shape, states[0].shape[1]
        return [states[layer].new_zeros(shape).index_put(places, states[layer]) for layer in layers]

    def _states(self, ids: Tensor, texts: _Packed | _Padded) -> list[Tensor]:
        states = [self.embeddings(ids, texts.positions)]
        for layer in cast(nn.ModuleList, self.encoder["layer"]):
            states.append(layer(states[-1], texts))
        return states


class _Packed:
    """The tokens of one text after the other, by length: float[N, F].

    Args:
        lengths: of the texts, ascending; their sum is N.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.positions = torch.cat([torch.arange(length) for length in lengths])
        self._runs = [(length, len(list(same))) for length, same in groupby(lengths)]

    def attend(self, q_NF: Tensor, k_NF: Tensor, v_NF: Tensor, heads: int, drop: float) -> Tensor:
        """Attention within each text; texts of one length in one call, without a mask."""
        parts, start = [], 0
        for length, count in self._runs:
            end = start + count * length
            q, k, v = (part[start:end].view(count, length, -1) for part in (q_NF, k_NF, v_NF))
            parts.append(_attention(q, k, v, heads, drop).reshape(count * length, -1))
            start = end
        return torch.cat(parts)


class _Padded:
    """The texts of a batch, each as long as the longest: float[B, T, F]."""

    def __init__(self, mask_BT: Tensor) -> None:
        self.positions = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        self._mask_B11T = mask_BT[:, None, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, drop: float) -> Tensor:
        return _attention(q, k, v, heads, drop, self._mask_B11T)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, drop: float, mask: Tensor | None = None
) -> Tensor:
    """float[B, T, F]"""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    attended_BHTd = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
    return attended_BHTd.transpose(1, 2).flatten(2)


class _Embeddings(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], width, config["pad_token_id"])
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        embedded = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        embedded = embedded + self.position_embeddings(positions)
        normed: Tensor = self.dropout(self.LayerNorm(embedded))
        return normed


class _Output(nn.Module):
    """A projection that is added to what went in."""

    def __init__(self, config: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config["hidden_size"])
        self.LayerNorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])

    def forward(self, inner: Tensor, before: Tensor) -> Tensor:
        added: Tensor = self.LayerNorm(self.dropout(self.dense(inner)) + before)
        return added


class _Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.attention = nn.ModuleDict(
            {"self": _Attention(config), "output": _Output(config, width)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _Output(config, inner)

    def forward(self, states: Tensor, texts: _Packed | _Padded) -> Tensor:
        states = self.attention["output"](self.attention["self"](states, texts), states)
        inner = F.gelu(self.intermediate["dense"](states))
        output: Tensor = self.output(inner, states)
        return output


class _Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.heads = config["num_attention_heads"]
        self.drop = config["attention_probs_dropout_prob"]

    def forward(self, states: Tensor, texts: _Packed | _Padded) -> Tensor:
        q, k, v = (linear(states) for linear in (self.query, self.key, self.value))
        return texts.attend(q, k, v, self.heads, self.drop if self.training else 0.0)
