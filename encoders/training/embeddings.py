"""Runs versions on the same records: vectors of every subset of modalities, and predictions.

Shapes: N records, M modalities, D the shared space, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..backbones.base import Array, Features
from ..backbones.sub_batches import encode_all, one_thread
from ..errors import BadInput
from ..model.torch_model import TorchModel
from ..tasks import Task
from ..types import Prepared, Sample
from .encoded import EncodedSamples, name_of, source_logits, subsets

CHUNK = 64  # records prepared and encoded together
ALL = "as it comes"


@dataclass(frozen=True, kw_only=True)
class TaskOutput:
    """One task's decision under one subset of the modalities.

    Attributes:
        probs_NC: the combined probabilities; for numbers the number, in standard deviations.
        decided_N: the class; for several labels bool[N, C]; for numbers float[N].
    """

    probs_NC: Tensor
    decided_N: Tensor


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """The outputs of one version for some records. Vectors are as it serves them, with its adapter.

    Attributes:
        present_NM: which modalities each record has.
        by: modality to unit vectors, float[N, D], zeros where it is absent.
        fused: subset ("text+image", and "as it comes") to unit vectors; valid only in the rows that
            have all modalities of the subset, see `has`.
        task_outputs: task to subset to its decision, likewise.
    """

    modalities: tuple[str, ...]
    tasks: Mapping[str, Task]
    present_NM: Tensor
    by: Mapping[str, Tensor]
    fused: Mapping[str, Tensor]
    task_outputs: Mapping[str, Mapping[str, TaskOutput]]

    def has(self, subset: str) -> Tensor:
        """Which records have all modalities of `subset`, bool[N]."""
        if subset == ALL:
            return torch.ones(len(self.present_NM), dtype=torch.bool)
        places = [self.modalities.index(name) for name in subset.split("+")]
        return self.present_NM[:, places].all(1)

    @property
    def finite(self) -> Tensor:
        """Which records have only finite vectors and predictions."""
        fine_N = torch.ones(len(self.present_NM), dtype=torch.bool)
        for vectors_ND in [*self.by.values(), *self.fused.values()]:
            fine_N &= vectors_ND.isfinite().all(1)
        for subset, output in ((s, i) for by in self.task_outputs.values() for s, i in by.items()):
            fine_N &= output.probs_NC.isfinite().all(1) | ~self.has(subset)
        return fine_N


def run_models(
    models: Sequence[TorchModel], samples: Sequence[Sample], *, predict: bool = True
) -> tuple[list[Sample], list[ModelOutputs]]:
    """The records that all of `models` can use, and each model's outputs.

    Encoders that two versions share (frozen ones) run once.

    Args:
        predict: False leaves the predictions out.
    """
    kept: list[Sample] = []
    parts: list[list[ModelOutputs]] = [[] for _ in models]
    with torch.no_grad():
        for chosen, views in _views(models, samples):
            kept += chosen
            for model, view, model_parts in zip(models, views, parts, strict=True):
                with one_thread(model.device.type == "cpu"):
                    model_parts.append(_model_outputs(model, view, predict))
    return kept, [
        _joined(model, model_parts) for model, model_parts in zip(models, parts, strict=True)
    ]


def _views(
    models: Sequence[TorchModel], samples: Sequence[Sample]
) -> Iterator[tuple[list[Sample], list[EncodedSamples]]]:
    shared = [model.net.encoder_hashes() for model in models]
    for start in range(0, len(samples), CHUNK):
        chosen, prepared = _prepared(models, samples[start : start + CHUNK])
        if not chosen:
            continue
        views: list[EncodedSamples] = []
        made: dict[tuple[str, str, str], Features] = {}
        for place, model in enumerate(models):
            net = model.net
            rows = [items[place] for items in prepared]
            present_NM = torch.tensor(
                [[name in row.inputs for name in net.modalities] for row in rows]
            )
            features: dict[str, Features] = {}
            for name in net.modalities:
                inputs = [cast(Array, row.inputs[name]) for row in rows if name in row.inputs]
                if not inputs:
                    continue
                key = (name, shared[place][name], f"{net.needs_tokens} {model.device}")
                if key not in made:
                    made[key] = encode_all(
                        net.encoder(name), inputs, model.device, tokens=net.needs_tokens
                    )
                features[name] = made[key]
            here_NM = present_NM.to(model.device)
            views.append(
                EncodedSamples(
                    features=features,
                    present_BM=here_NM,
                    kept_BM=here_NM,
                    group_B=torch.arange(len(rows)),
                    target={},
                )
            )
        yield chosen, views


def _prepared(
    models: Sequence[TorchModel], samples: Sequence[Sample]
) -> tuple[list[Sample], list[list[Prepared]]]:
    kept, prepared = [], []
    for sample in samples:
        by_hash: dict[str, Prepared] = {}
        try:
            for model in models:
                if model.preprocessing not in by_hash:
                    by_hash[model.preprocessing] = model.prepare(sample)
        except BadInput:
            continue
        kept.append(sample)
        prepared.append([by_hash[model.preprocessing] for model in models])
    return kept, prepared


def _model_outputs(model: TorchModel, view: EncodedSamples, predict: bool) -> ModelOutputs:
    net = model.net
    unit_NMD = net.units(view.features, view.present_BM)
    tokens = net.tokens(view.features, view.present_BM)
    chosen = {name_of(net, subset_M): subset_M for _, subset_M in subsets(net)}
    chosen[ALL] = torch.ones(len(net.modalities), dtype=torch.bool)
    fused: dict[str, Tensor] = {}
    task_outputs: dict[str, dict[str, TaskOutput]] = {}
    for subset, subset_M in chosen.items():
        seen = view.only(subset_M.to(model.device))
        fused[subset] = model.served(net.fusion(unit_NMD, seen.kept_BM, tokens)).cpu()
        for (name, task), decision in zip(net.tasks.items(), net.decisions, strict=True):
            if task.kind == "generation" or not predict:
                continue
            logits_NSC, present_NS = source_logits(net, name, seen)
            _, probs_NC, decided_N = copy.deepcopy(decision).cpu()(logits_NSC, present_NS)
            task_outputs.setdefault(name, {})[subset] = TaskOutput(
                probs_NC=probs_NC, decided_N=decided_N
            )
    served_NMD = model.served(unit_NMD).cpu()
    return ModelOutputs(
        modalities=net.modalities,
        tasks=net.tasks,
        present_NM=view.present_BM.cpu(),
        by={name: served_NMD[:, place] for place, name in enumerate(net.modalities)},
        fused=fused,
        task_outputs=task_outputs,
    )


def _joined(model: TorchModel, parts: Sequence[ModelOutputs]) -> ModelOutputs:
    names = model.net.modalities
    if not parts:
        return ModelOutputs(
            modalities=names,
            tasks=model.net.tasks,
            task_outputs={},
            fused={},
            by={},
            present_NM=torch.zeros(0, len(names), dtype=torch.bool),
        )
    return ModelOutputs(
        modalities=names,
        tasks=model.net.tasks,
        present_NM=torch.cat([part.present_NM for part in parts]),
        by={name: torch.cat([part.by[name] for part in parts]) for name in parts[0].by},
        fused={key: torch.cat([part.fused[key] for part in parts]) for key in parts[0].fused},
        task_outputs={
            task: {
                subset: TaskOutput(
                    probs_NC=torch.cat(
                        [part.task_outputs[task][subset].probs_NC for part in parts]
                    ),
                    decided_N=torch.cat(
                        [part.task_outputs[task][subset].decided_N for part in parts]
                    ),
                )
                for subset in by
            }
            for task, by in parts[0].task_outputs.items()
        },
    )


def group_of(samples: Sequence[Sample]) -> Tensor:
    """Equal for records with the same text, int[N], which are correct results for each other."""
    names = [sample.content for sample in samples]
    place = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([place[name] for name in names], dtype=torch.long)
