"""Networks of `transformers` by their own config, whole or one tower of them.

A version keeps what `Blueprint` holds; the weights are in `model.safetensors` like all others.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from ...errors import CheckpointError
from ..base import Features
from ..hf import CONFIG, errors_only, make, read
from .libraries import library

FILE = "blueprint.json"
TOWERS: Mapping[str, Collection[str]] = {
    "text": ("text_model", "text_projection"),
    "image": ("vision_model", "visual_projection"),
}
"""The parts of a joint model that embed a modality: they have these names in all of them."""
POOLER = "add_pooling_layer"
WITH_TIMM = ("pe_audio_video", "pe_video")
"""Types whose picture tower is timm's, as which transformers makes it."""
PREPROCESSORS: Mapping[str, str] = {
    "image processor": "AutoImageProcessor",
    "video processor": "AutoVideoProcessor",
    "feature extractor": "AutoFeatureExtractor",
}


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What a network is made of again, without its weights.

    Attributes:
        model: its class in transformers.
        config: the fields of its config.
        more: further arguments of the class.
        width: of its vectors; `token_width`: of its tokens, 0 where it gives none.
    """

    model: str
    config: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)
    width: int = 0
    token_width: int = 0

    def make(self) -> nn.Module:
        """The network with random weights.

        Raises:
            CheckpointError: its library is not installed.
        """
        from transformers import AutoConfig

        _check_library(self.config)
        fields = {k: v for k, v in self.config.items() if k != "transformers_version"}
        with errors_only():
            return make(self.model, AutoConfig.for_model(**fields), **self.more).eval()

    def write(self, folder: Path) -> None:
        """Write it for `at`."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def at(cls, folder: Path) -> Self:
        """That which `write` wrote."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))


def pretrained(folder: Path, part: str | None = None) -> tuple[nn.Module, Blueprint]:
    """The network of a folder of transformers, whatever its class, without the head of a task.

    A checkpoint that lacks the weights of the network's pooler, such as one of a classifier, is
    read without the pooler.

    Args:
        part: the attribute of the network that is taken, where it has such a one.

    Raises:
        CheckpointError: no such network, a weight is missing, or its library is not installed.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    source = str(folder)
    with errors_only():
        try:
            _check_library(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
            config = AutoConfig.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no config at {source!r}: {error}") from error
    kind: Any = MODEL_MAPPING[type(config)]
    more: dict[str, Any] = {}
    try:
        net = read(kind.__name__, source)
    except CheckpointError as error:
        if POOLER not in inspect.signature(kind.__init__).parameters or "pooler" not in str(error):
            raise
        more = {POOLER: False}
        net = read(kind.__name__, source, **more)
    if part is not None:
        net = getattr(net, part, net)
    own: Any = net.config
    fields = json.loads(own.to_json_string(use_diff=False))
    return net.eval(), Blueprint(model=type(net).__name__, config=fields, more=more)


def _check_library(config: Mapping[str, Any]) -> None:
    if config.get("model_type") in WITH_TIMM:
        library("timm")


def preprocessor(kind: str, folder: Path) -> Any:
    """The checkpoint's own preprocessing in `folder`, of a kind in `PREPROCESSORS`.

    Raises:
        CheckpointError: there is none.
    """
    import transformers

    with errors_only():
        try:
            auto = getattr(transformers, PREPROCESSORS[kind])
            return auto.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(f"no {kind} in {folder}: {error}") from error


def described(processor: Any) -> dict[str, Any]:
    """The settings of an image or a video processor as JSON values."""
    raw: dict[str, Any] = json.loads(processor.to_json_string())
    return {key: value for key, value in raw.items() if key != "transformers_version"}


def keep_parts(net: nn.Module, parts: Collection[str]) -> nn.Module:
    """`net` without any other child or parameter of its own than `parts`; without parts, whole."""
    own = [*dict(net.named_children()), *dict(net.named_parameters(recurse=False))]
    for name in own:
        if parts and name not in parts:
            delattr(net, name)
    return net


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The blocks in `net`, from input to output; empty without any.

    They are the list of modules, in no other one, that has the most weights, with other lists of
    the same kind, such as the stages of a ResNet. DistilHuBERT has 7 convolutions in front of 2
    transformer blocks: it is not the longest.
    """
    lists: list[list[nn.Module]] = []
    inside: set[nn.Module] = set()
    for one in net.modules():
        if isinstance(one, (nn.ModuleList, nn.Sequential)) and one not in inside:
            lists.append(list(one))
            inside.update(one.modules())
    kinds = {type(block) for block in max(lists, key=_weights, default=[])}
    return [block for one in lists if kinds & {type(block) for block in one} for block in one]


def _weights(blocks: list[nn.Module]) -> int:
    return sum(weight.numel() for block in blocks for weight in block.parameters())


def tokens_of(out: Any) -> Tensor | None:
    """The last states float[B, T, F] in an output of transformers; None where they are maps."""
    states: Tensor | None = getattr(out, "last_hidden_state", None)
    return states if states is not None and states.ndim == 3 else None


def measured(features: Features) -> tuple[int, int]:
    """The widths of the vectors and of the tokens of an encoder's first output.

    Raises:
        CheckpointError: they are no vectors.
    """
    pooled_BF, tokens_BTF = features.pooled_BF, features.tokens_BTF
    if pooled_BF.ndim != 2:
        raise CheckpointError(f"this model gives {tuple(pooled_BF.shape[1:])}, not a vector")
    return pooled_BF.shape[1], 0 if tokens_BTF is None else tokens_BTF.shape[2]
