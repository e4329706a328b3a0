"""The network of a version: encoders, projectors, fusion, heads and decisions.

Shapes: B samples, M modalities, S sources (M + 1, the last is "fused"), D the shared space,
F features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones.base import Encoder, Features, spread
from ..config import Limits, ModelConfig
from ..errors import BadInput
from ..manifest import canonical, digest
from ..tasks import Task
from ..types import FUSED, MODALITIES, Cost, Prepared, Sample
from .decision import Decision
from .fusion import Tokens, make_fusion
from .heads import Heads, sources_of
from .projection import Projector


class Net(nn.Module):
    """All weights of one version.

    Args:
        encoders: modality to encoder.
        tasks: what is predicted, by name.
    """

    def __init__(
        self,
        config: ModelConfig,
        encoders: Mapping[str, Encoder],
        tasks: Mapping[str, Task],
    ) -> None:
        super().__init__()
        self.config = config
        # In the order of MODALITIES: the decision's weights are by position.
        self.modalities = tuple(name for name in MODALITIES if name in encoders)
        self.sources = sources_of(self.modalities)
        self.encoders = nn.ModuleDict({name: encoders[name] for name in self.modalities})
        self.projectors = nn.ModuleDict(
            {name: Projector(self.encoder(name).width, config, name) for name in self.modalities}
        )
        self.fusion = make_fusion(
            config.fusion, config.dim, [self.encoder(name).token_width for name in self.modalities]
        )
        self.new_heads(tasks)

    def new_heads(self, tasks: Mapping[str, Task]) -> None:
        """Fresh heads and decisions for `tasks`; everything else stays."""
        if self.config.heads_on not in ("features", "unit"):
            raise ValueError(f"heads_on must be features or unit, is {self.config.heads_on!r}")
        on_features = self.config.heads_on == "features"
        widths = {
            name: self.encoder(name).width if on_features else self.config.dim
            for name in self.modalities
        }
        self.heads = Heads(
            tasks, {**widths, FUSED: self.config.dim}, self.config.dim, self.config.head_dropout
        )
        self._decisions = nn.ModuleList(
            Decision(self.config.decision, len(self.sources), task.kind) for task in tasks.values()
        )

    def add_heads(self, tasks: Mapping[str, Task]) -> None:
        """Fresh heads and decisions for further `tasks`; those of the others stay."""
        parts = zip(self.heads.by_task, self._decisions, strict=True)
        before = dict(zip(self.tasks, parts, strict=True))
        # In the order in which a manifest is read: heads are by position.
        self.new_heads(dict(sorted({**self.tasks, **tasks}.items())))
        for place, name in enumerate(self.tasks):
            if name in before:
                self.heads.by_task[place], self._decisions[place] = before[name]

    @property
    def decisions(self) -> list[Decision]:
        """The decision of each task, in the order of `tasks`."""
        return [cast(Decision, decision) for decision in self._decisions]

    def encoder(self, modality: str) -> Encoder:
        """The encoder of `modality`."""
        return cast(Encoder, self.encoders[modality])

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks by name."""
        return self.heads.tasks

    @property
    def needs_tokens(self) -> bool:
        """Whether features must come with their tokens."""
        return self.fusion.needs_tokens

    def units(self, features: Mapping[str, Features], present_BM: Tensor) -> Tensor:
        """Unit vectors of each modality, float[B, M, D]; zeros where it is absent.

        Args:
            features: modality to its features, one row for each sample that has it, in order.
            present_BM: which those are; each row has at least one.
        """
        columns: list[Tensor] = []
        for position, name in enumerate(self.modalities):
            if name in features:
                projected = self.projectors[name](features[name].pooled_BF)
                columns.append(spread(projected.float(), present_BM[:, position]))
            else:
                shape = len(present_BM), self.config.dim
                columns.append(torch.zeros(shape, device=present_BM.device))
        return torch.stack(columns, dim=1)

    def tokens(self, features: Mapping[str, Features], present_BM: Tensor) -> Tokens:
        """The fusion's tokens, one row for each sample; see `Tokens`."""
        tokens_by_position: dict[int, tuple[Tensor, Tensor]] = {}
        for position, name in enumerate(self.modalities if self.needs_tokens else ()):
            encoded = features.get(name)
            if encoded is None or encoded.tokens_BTF is None:
                continue
            here_B = present_BM[:, position]
            tokens_BTF = spread(encoded.tokens_BTF, here_B)
            mask_BT = here_B[:, None].expand(tokens_BTF.shape[:2])
            if encoded.mask_BT is not None:
                mask_BT = spread(encoded.mask_BT, here_B)
            tokens_by_position[position] = (tokens_BTF, mask_BT)
        return tokens_by_position

    def align(self, features: Mapping[str, Features], present_BM: Tensor) -> tuple[Tensor, Tensor]:
        """`units`, float[B, M, D], and the fused vectors, float[B, D]."""
        unit_BMD = self.units(features, present_BM)
        fused_BD = self.fusion(unit_BMD, present_BM, self.tokens(features, present_BM))
        return unit_BMD, cast(Tensor, fused_BD)

    def logits(
        self,
        task: str,
        features: Mapping[str, Features],
        unit_BMD: Tensor,
        fused_BD: Tensor,
        present_BM: Tensor,
        kept_BM: Tensor,
    ) -> Tensor:
        """The outputs of each source for `task`, float[B, S, C]; zeros where it is absent. Not for
        captions, see `caption_input`.

        Args:
            kept_BM: the modalities that are fused; a subset of those present.
        """
        rows: list[Tensor] = []
        on_features = self.config.heads_on == "features"
        columns = zip(self.modalities, unit_BMD.unbind(1), present_BM.unbind(1), strict=True)
        for name, unit_BD, here_B in columns:
            if name not in features:
                outputs = self.tasks[task].outputs
                rows.append(torch.zeros(len(here_B), outputs, device=fused_BD.device))
                continue
            seen = features[name].pooled_BF
            if not on_features:
                seen = unit_BD if len(seen) == len(here_B) else unit_BD[here_B]
            rows.append(spread(self.heads(task, name, seen).float(), here_B))
        own_BMC = torch.stack(rows, dim=1)
        fused_BC = self.fused_logits(task, own_BMC, fused_BD, kept_BM)
        return torch.cat([own_BMC, fused_BC[:, None]], dim=1)

    def fused_logits(self, task: str, own_BMC: Tensor, fused_BD: Tensor, kept_BM: Tensor) -> Tensor:
        """The outputs of the fused source for `task`, float[B, C]: of the fused vector's head, or,
        where one modality alone is fused, of that modality's own head.

        Args:
            own_BMC: the outputs of the modalities' own heads.
            kept_BM: the modalities that are fused.
        """
        alone_B1 = kept_BM.sum(1, keepdim=True) == 1
        only_BC = (own_BMC * kept_BM[:, :, None]).sum(1)
        return torch.where(alone_B1, only_BC, self.heads(task, FUSED, fused_BD).float())

    def caption_input(
        self,
        task: str,
        features: Mapping[str, Features],
        unit_BMD: Tensor,
        kept_BM: Tensor,
        present_BM: Tensor,
    ) -> Tensor:
        """The fused vectors that captions are made from, float[B, D].

        The modality that a caption repeats is left out, unless it is the only one.

        Args:
            kept_BM: the modalities to fuse.
            present_BM: those that have features; `kept_BM` is a subset of it.
        """
        source = self.tasks[task].source
        if source in self.modalities:
            place = self.modalities.index(source)
            without_BM, others_BM = kept_BM.clone(), present_BM.clone()
            without_BM[:, place] = others_BM[:, place] = False
            without_BM = torch.where(without_BM.any(1, keepdim=True), without_BM, others_BM)
            kept_BM = torch.where(without_BM.any(1, keepdim=True), without_BM, kept_BM)
        return cast(Tensor, self.fusion(unit_BMD, kept_BM, self.tokens(features, present_BM)))

    def preprocessing(self) -> str:
        """A hash of all settings that `prepare` depends on."""
        settings = {name: dict(self.encoder(name).settings) for name in self.modalities}
        return digest([settings, self.config.limits.hashed(self.modalities)], 16)

    def encoder_hashes(self) -> dict[str, str]:
        """Modality to a hash of its encoder: equal ones give equal features of equal inputs."""
        hashes = {}
        for name in self.modalities:
            config, encoder = self.config.encoders[name], self.encoder(name)
            known = [config.kind, dict(config.options), dict(encoder.settings)]
            hasher = sha256(canonical(known).encode())
            for content in weight_bytes(encoder.owner):
                hasher.update(content)
            hashes[name] = hasher.hexdigest()
        return hashes

    def space(self) -> str:
        """The name of the space: a hash of encoders, projectors, fusion and preprocessing, and of
        an imported model's origin.

        Heads and decisions are left out, so that retraining them keeps the space.
        """
        named: list[Any] = [self.preprocessing(), self.config.fusion]
        if self.config.origin:
            named.append(self.config.origin)
        hasher = sha256(canonical(named).encode())
        for part in (self.encoders, self.projectors, self.fusion):
            for content in weight_bytes(part):
                hasher.update(content)
        return "s-" + hasher.hexdigest()[:12]


def weight_bytes(part: nn.Module) -> Iterator[bytes]:
    """The names, shapes and values of a part's weights, for a hash."""
    for name, tensor in sorted(part.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        yield f"{name} {values.dtype} {tuple(values.shape)}\n".encode()
        yield values.numpy().tobytes()


def prepare(net: Net, sample: Sample, limits: Limits, preprocessing: str) -> Prepared:
    """One sample, ready to encode.

    Raises:
        BadInput: a modality cannot be used, or there is none of the model's modalities. Any other
            exception of an encoder, except MemoryError, is converted to BadInput, so that a
            library's failure on one sample does not stop the rest.
    """
    cost = Cost()
    inputs: dict[str, object] = {}
    nbytes = 0
    for name in net.modalities:
        value = getattr(sample, name)
        if value is None:
            continue
        try:
            encoder = net.encoder(name)
            prepare_value = encoder.prepare_query if sample.query else encoder.prepare
            array, value_cost = prepare_value(value, limits)
        except (BadInput, MemoryError):
            raise
        except Exception as error:
            raise BadInput(name, f"{type(error).__name__}: {error}") from error
        inputs[name] = array
        cost += value_cost
        nbytes += array.nbytes
    if not inputs:
        has = ", ".join(sample.present) or "none"
        raise BadInput("sample", f"needs one of {', '.join(net.modalities)}, has {has}")
    return Prepared(
        id=sample.id, cost=cost, inputs=inputs, preprocessing=preprocessing, nbytes=nbytes
    )
