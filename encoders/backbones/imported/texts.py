"""The text towers of the joint models of `transformers`.

Shapes: B texts, T tokens, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...config import EncoderConfig, Limits
from ...errors import CheckpointError
from ...types import Cost
from ..base import Array, Features, joined
from ..hf import TOKENIZER, folder_of, read_tokenizer
from ..text import SubwordText
from .networks import TOWERS, Blueprint, blocks_of, keep_parts, measured, pretrained

SETTINGS, TOKENIZER_CONFIG = "text.json", "tokenizer_config.json"
ROBERTAS = ("altclip", "camembert", "roberta", "xlm-roberta")
"""Types whose first positions are for padding."""
LONGEST = 1_000_000  # tokens; a tokeniser without a limit says 1e30


class JointText(SubwordText):
    """The text tower of a joint model, in the space that its towers share.

    `source` is a hub name or a local folder with a tokeniser.
    """

    part: ClassVar[str | None] = None
    """Where a larger model has this one."""
    parts: ClassVar[Sequence[str]] = tuple(TOWERS["text"])
    """Of the joint model: the parts that are kept."""
    whole = False
    """Every text is padded to the longest, and the padding is not masked."""

    def __init__(
        self, net: nn.Module, blueprint: Blueprint, tokenizer: str, settings: Mapping[str, Any]
    ) -> None:
        super().__init__(tokenizer, int(settings["max_tokens"]), int(settings["id"]))
        self.net, self.blueprint, self._settings = net, blueprint, dict(settings)
        self.width, self.token_width = blueprint.width, blueprint.token_width

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """The network and the tokeniser at `config.source`.

        Raises:
            CheckpointError: nothing there, a weight is missing, or a tokeniser without a fast form.
        """
        if config.source is None or config.options:
            raise CheckpointError(f"a {config.kind} needs a source, and takes no options")
        folder = folder_of(config.source)
        tokenizer, padding = read_tokenizer(str(folder))
        net, blueprint = pretrained(folder, cls.part)
        keep_parts(net, cls.parts)
        settings = {**padding, "max_tokens": _longest(folder, blueprint.config, padding["id"])}
        encoder = cls(net, blueprint, tokenizer, settings)
        with torch.no_grad():
            features = encoder(*encoder.collate([encoder.prepare("a", Limits())[0]]))
        width, token_width = measured(features)
        blueprint = replace(blueprint, width=width, token_width=token_width)
        return cls(net, blueprint, tokenizer, settings)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        blueprint = Blueprint.at(assets)
        tokenizer = (assets / TOKENIZER).read_text(encoding="utf-8")
        settings = json.loads((assets / SETTINGS).read_text(encoding="utf-8"))
        return cls(keep_parts(blueprint.make(), cls.parts), blueprint, tokenizer, settings)

    def save_assets(self, folder: Path) -> None:
        super().save_assets(folder)
        self.blueprint.write(folder)
        (folder / SETTINGS).write_text(json.dumps(self._settings), encoding="utf-8")

    def trainable_blocks(self) -> list[nn.Module]:
        return blocks_of(self)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        ids_T, cost = super().prepare(value, limits)
        return ids_T, Cost(tokens=self.max_tokens) if self.whole else cost

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        longest = self.max_tokens if self.whole else max(len(ids_T) for ids_T in inputs)
        return self._padded(inputs, longest, left=bool(self._settings["left"]))

    def size(self, value: Array) -> int:
        return self.max_tokens if self.whole else super().size(value)

    def forward(self, *batch: Tensor) -> Features:
        ids_BT, mask_BT = batch
        net: Any = self.net
        more = {} if self.whole else {"attention_mask": self.masked(mask_BT)}
        out = net.get_text_features(input_ids=ids_BT, **more)
        return Features(
            pooled_BF=joined(out.pooler_output), tokens_BTF=out.last_hidden_state, mask_BT=mask_BT
        )

    def masked(self, mask_BT: Tensor) -> Tensor:
        """The attention mask, by which of the places are tokens."""
        return mask_BT.long()


class CausalText(JointText):
    """The text tower of AIMv2 (Fini et al. 2024, arXiv 2411.14402), in which a token sees those
    before it. transformers has that mask for batches with padding only: a text alone sees itself
    whole there, which it was not trained on. Here every text gets the mask."""

    def masked(self, mask_BT: Tensor) -> Tensor:
        longest = mask_BT.shape[1]
        seen_TT = mask_BT.new_ones(longest, longest).tril()
        return seen_TT.expand(len(mask_BT), 1, longest, longest)


class WholeText(JointText):
    """A text tower that was trained on texts padded to its longest, whose padding it reads."""

    whole = True

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        return value


def _longest(folder: Path, config: Mapping[str, Any], padding: int) -> int:
    """The tokens that the tokeniser and the positions of the network admit."""
    path = folder / TOKENIZER_CONFIG
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = config["text_config"]
    places = int(text.get("max_position_embeddings") or LONGEST)
    if config["model_type"] in ROBERTAS or text.get("model_type") in ROBERTAS:
        places -= padding + 1
    return int(min(known.get("model_max_length") or LONGEST, places))
