"""The text towers of CLIP, SigLIP and CLAP.

Shapes: B texts, T tokens, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..errors import CheckpointError
from ..types import Cost
from .base import Array, Features, joined
from .hf import (
    TOKENIZER,
    make,
    new_config,
    read,
    read_config,
    read_tokenizer,
    resolve_option,
    write_config,
)
from .text import SubwordText

PADDING = "padding.json"


class TextTower(SubwordText):
    """Base class of the towers.

    Options:
        config: with random weights (`source` is None), fields of the transformers config.
        tokenizer: with random weights, where the tokeniser comes from: a hub name or a folder.

    `source` is a hub name or a local folder; it may hold the vision tower too.
    """

    model: ClassVar[str]
    """Its class in transformers; `config_class` is the class of its config."""
    config_class: ClassVar[str]

    def __init__(
        self, net: nn.Module, tokenizer: str, padding: Mapping[str, Any], max_tokens: int | None
    ) -> None:
        self.longest = int(_config(net).max_position_embeddings)
        longest = min(max_tokens or self.longest, self.longest)
        super().__init__(tokenizer, longest, int(padding["id"]))
        self.net = net
        self.left = bool(padding["left"])

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """Weights and tokeniser from `config.source`, or random weights if that is None.

        Raises:
            CheckpointError: nothing there, a weight is missing, a tokeniser without a fast form or
                of another model, or an option contradicts the checkpoint.
        """
        return cls._create(config.source, **config.options)

    @classmethod
    def _create(
        cls,
        source: str | None,
        *,
        config: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        **own: Any,
    ) -> Self:
        model = cls.architecture(**own)
        if source is not None:
            for name, value in (("config", config), ("tokenizer", tokenizer)):
                if value is not None:
                    raise CheckpointError(
                        f"options {name}: {source!r} brings its own; it is for random weights"
                    )
            text, padding = read_tokenizer(source)
            return cls(read(model, source), text, padding, **own)
        if tokenizer is None:
            raise CheckpointError(
                "a text tower needs a source, or the options config and tokenizer"
            )
        text, padding = read_tokenizer(tokenizer)
        return cls(make(model, new_config(cls.config_class, config or {})), text, padding, **own)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        own = {k: v for k, v in config.options.items() if k not in ("config", "tokenizer")}
        net = make(cls.architecture(**own), read_config(assets, cls.config_class))
        padding = json.loads((assets / PADDING).read_text(encoding="utf-8"))
        return cls(net, (assets / TOKENIZER).read_text(encoding="utf-8"), padding, **own)

    def save_assets(self, folder: Path) -> None:
        super().save_assets(folder)
        write_config(self.net, folder)
        padding = {"id": self.padding, "left": self.left}
        (folder / PADDING).write_text(json.dumps(padding), encoding="utf-8")

    @classmethod
    def architecture(cls, **own: Any) -> str:
        """The class in transformers, by the encoder's own options."""
        return cls.model


class ClipText(TextTower):
    """Radford et al. 2021, arXiv 2103.00020: the text tower, pooled at the end mark.

    Options, besides those of `TextTower`:
        max_tokens: longer texts are cut; the config's `max_position_embeddings` (77) at most.
        projected: into the space that CLIP's two towers share; False takes the pooler's output.
    """

    model, config_class = "CLIPTextModelWithProjection", "CLIPTextConfig"

    def __init__(
        self,
        net: nn.Module,
        tokenizer: str,
        padding: Mapping[str, Any],
        *,
        max_tokens: int | None = None,
        projected: bool = True,
    ) -> None:
        super().__init__(net, tokenizer, padding, max_tokens)
        self.projected = projected
        config = _config(net)
        self.width = int(config.projection_dim if projected else config.hidden_size)
        self.token_width = int(config.hidden_size)
        # transformers pools at the first token with this id, or at the first token if there is
        # none, which carries no information. (2 in an old config stands for the largest id.)
        ids_T = self.tokenize("a")
        end = config.eos_token_id if config.eos_token_id != 2 else max(ids_T)
        if ids_T[-1] != end or end in ids_T[:-1]:
            raise CheckpointError(
                f"eos_token_id: the model pools at {end}, the tokeniser marks the end "
                f"by {ids_T[-1]}"
            )

    @classmethod
    def architecture(cls, *, projected: bool = True, **own: Any) -> str:
        return cls.model if projected else "CLIPTextModel"

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list((net.text_model if self.projected else net).encoder.layers)

    def forward(self, *batch: Tensor) -> Features:
        ids_BT, mask_BT = batch
        out = self.net(input_ids=ids_BT, attention_mask=mask_BT.long())
        pooled_BF = out.text_embeds if self.projected else out.pooler_output
        return Features(
            pooled_BF=joined(pooled_BF), tokens_BTF=out.last_hidden_state, mask_BT=mask_BT
        )


class SiglipText(TextTower):
    """Zhai et al. 2023, arXiv 2303.15343: the text tower, pooled at the last position.

    It was trained on texts padded to its longest, whose padding it sees: so every text is as long,
    the padding is not masked; `mask_BT` marks the tokens of words.

    Options, besides those of `TextTower`:
        max_tokens: must be the config's `max_position_embeddings` (64), if it is given.
    """

    model, config_class = "SiglipTextModel", "SiglipTextConfig"

    def __init__(
        self,
        net: nn.Module,
        tokenizer: str,
        padding: Mapping[str, Any],
        *,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(net, tokenizer, padding, None)
        resolve_option(
            "max_tokens", max_tokens, self.longest, "the config (max_position_embeddings)"
        )
        self.width = int(_config(net).projection_size)
        self.token_width = int(_config(net).hidden_size)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        ids_T, _ = super().prepare(value, limits)
        return ids_T, Cost(tokens=self.longest)

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        return self._padded(inputs, self.longest, left=self.left)

    def size(self, value: Array) -> int:
        return self.longest

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list(net.encoder.layers)

    def forward(self, *batch: Tensor) -> Features:
        ids_BT, mask_BT = batch
        out = self.net(input_ids=ids_BT)
        return Features(
            pooled_BF=joined(out.pooler_output), tokens_BTF=out.last_hidden_state, mask_BT=mask_BT
        )


class ClapText(TextTower):
    """Wu et al. 2022, arXiv 2211.06687: the text tower of CLAP, a RoBERTa, in the space that its
    two towers share.

    Options, besides those of `TextTower`:
        max_tokens: longer texts are cut; what the positions of the network allow at most.
    """

    model, config_class = "ClapTextModelWithProjection", "ClapTextConfig"

    def __init__(
        self,
        net: nn.Module,
        tokenizer: str,
        padding: Mapping[str, Any],
        *,
        max_tokens: int | None = None,
    ) -> None:
        config = _config(net)
        places = int(config.max_position_embeddings) - int(config.pad_token_id) - 1
        super().__init__(net, tokenizer, padding, min(max_tokens or places, places))
        self.width, self.token_width = int(config.projection_dim), int(config.hidden_size)

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list(net.text_model.encoder.layer)

    def forward(self, *batch: Tensor) -> Features:
        ids_BT, mask_BT = batch
        out = self.net(input_ids=ids_BT, attention_mask=mask_BT.long())
        return Features(
            pooled_BF=joined(out.text_embeds), tokens_BTF=out.last_hidden_state, mask_BT=mask_BT
        )


def _config(net: nn.Module) -> Any:
    return net.config
