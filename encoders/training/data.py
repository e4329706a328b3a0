"""Reads samples into a `Dataset`: features of frozen encoders, prepared inputs of the others.

Rows are exchanged between processes while they are read.

Shapes: N samples in all, n samples that have a modality, T tokens, F features.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import cast
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ..backbones.base import Array, Features
from ..backbones.sub_batches import encode_all
from ..config import TrainConfig
from ..errors import BadInput, TrainingError
from ..manifest import digest
from ..model.frozen_queries import HeldOut
from ..model.learnt import Learnt
from ..model.net import Net, prepare
from ..tasks import Task
from ..types import Label, Sample
from . import parallel
from .splits import Splits, marks_of
from .targets import targets

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with the stage, the number done, the total (0: unknown), and figures to show."""

WINDOW = 64  # samples prepared and encoded together while reading


@dataclass(kw_only=True)
class Row:
    """One prepared sample; for frozen encoders, features instead of inputs.

    Attributes:
        content: a checksum of the prepared inputs.
        features, tokens: by modality, float[F] and float16[T, F].
    """

    sample_id: str
    split: str
    group: str
    text: str | None
    labels: Mapping[str, Label]
    inputs: dict[str, Array]
    content: int = 0
    features: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class Column:
    """One modality of the data.

    Attributes:
        features_nF: features of a frozen encoder, one row for each sample that has the modality.
        tokens: its tokens, float[T, F] each, where the fusion needs them; else empty.
        inputs: prepared inputs of a trained encoder, whose `features_nF` is None.
        row_N: each sample's row in either of them, -1 where it lacks the modality.
    """

    features_nF: Tensor | None
    inputs: list[Array]
    row_N: Tensor
    tokens: list[Tensor] = field(default_factory=list)

    def take(self, places_n: Tensor, device: torch.device) -> Features:
        """The stored features at `places_n`; tokens padded to the longest of them."""
        assert self.features_nF is not None
        pooled_BF = self.features_nF[places_n].to(device)
        if not self.tokens:
            return Features(pooled_BF=pooled_BF)
        rows = [self.tokens[int(place)] for place in places_n]
        tokens_BTF = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        lengths_B1 = torch.tensor([len(row) for row in rows], device=device)[:, None]
        mask_BT = torch.arange(tokens_BTF.shape[1], device=device) < lengths_B1
        return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF.float(), mask_BT=mask_BT)


@dataclass(kw_only=True)
class Dataset:
    """The training and validation samples of a run.

    Attributes:
        split_N: "train" or "validation"; "judge" is never kept.
        group_N: equal for samples with the same text, which are no negatives of each other.
        target: task to its targets, see `braid.encoders.training.targets`.
        tasks: by name.
        content: a hash of all prepared inputs.
        left_out: how many samples or labels were not used, by reason.
        old_NSD: the champion's vectors of each modality and the fused one, zeros where it has none;
            None where the configuration does not need them.
        learnt: the hashes of all samples.
    """

    ids: list[str]
    split_N: np.ndarray
    columns: Mapping[str, Column]
    present_NM: Tensor
    group_N: Tensor
    target: Mapping[str, Tensor]
    tasks: Mapping[str, Task]
    content: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    old_NSD: Tensor | None = None
    learnt: Learnt = field(default_factory=Learnt)

    def rows(self, *splits: str) -> Tensor:
        """Positions of the samples in one of `splits`, int[n]."""
        return torch.from_numpy(np.flatnonzero(np.isin(self.split_N, splits)))

    def without(self, left_N: Tensor) -> Dataset:
        """The same samples, of which all but those in `left_N`, bool[N], train.

        A class that only these have is unknown to a training without them.
        """
        target = {}
        for name, values in self.target.items():
            target[name] = values
            if self.tasks[name].kind == "classification":
                unlearnt_N = ~torch.isin(values, values[~left_N])
                target[name] = values.masked_fill(unlearnt_N, -1)
        split_N = np.where(left_N.numpy(), "left out", "train")
        return replace(self, split_N=split_N, target=target)


def gather(
    samples: Sequence[Sample],
    net: Net,
    config: TrainConfig,
    *,
    all_frozen: bool,
    device: torch.device,
    progress: Progress,
    shared: bool = False,
    held_out: HeldOut | None = None,
) -> Dataset:
    """Read the samples; frozen encoders run while reading, so that only features are kept.

    They are read twice, first for their splits (`braid.encoders.training.splits`).

    A repeated id keeps its last sample. Bad samples and labels are left out and counted.

    Args:
        shared: each process reads its own samples; rows are then exchanged, so that every process
            has all of them.
        held_out: gets the samples of the judge split, or of validation if there is no judge.

    Raises:
        TrainingError: no sample is left in the train split.
    """
    frozen = (
        dict.fromkeys(net.modalities, True)
        if all_frozen
        else frozen_encoders(config, net.modalities)
    )
    left_out: Counter[str] = Counter()
    kept: dict[str, Row] = {}
    total = len(samples)
    done = 0
    splits = _splits(samples, config.judge, device if shared else None)
    net.eval()
    for window in _prepared(samples, net, left_out, splits, config.judge, held_out):
        for name in net.modalities:
            if frozen[name]:
                having = [row for row in window if name in row.inputs]
                if having:
                    inputs = [row.inputs.pop(name) for row in having]
                    features = encode_all(
                        net.encoder(name), inputs, device, tokens=net.needs_tokens
                    )
                    _store_features(features, having, name)
        for row in window:
            if kept.pop(row.sample_id, None) is not None:
                left_out["older version of an id"] += 1
            kept[row.sample_id] = row
        done += len(window)
        progress("read", done, total, {})
    if shared:
        kept, left_out = exchanged(kept, left_out, device)
    rows = [
        kept[key] for key in sorted(kept)
    ]  # independent of the order of arrival: the result must be reproducible
    if not any(row.split == "train" for row in rows):
        raise TrainingError("there is no usable sample in the train split")
    data = _assemble(rows, net, frozen, config, left_out)
    data.learnt = Learnt.of(key for id_ in data.ids for key in splits.keys[id_])
    return data


def _splits(samples: Iterable[Sample], judge: bool, device: torch.device | None) -> Splits:
    """The splits among the samples of all processes; `device`: None if this one has them all."""
    marks = marks_of(samples)
    if device is not None:
        packed = json.dumps(marks).encode()
        for other in parallel.all_gather_bytes(packed, device):
            marks |= {id_: (group, tuple(some)) for id_, (group, some) in json.loads(other).items()}
    return Splits.among(marks, judge)


def _store_features(features: Features, rows: Sequence[Row], name: str) -> None:
    """Store each row's features; tokens in half precision, to save memory."""
    # A clone is an ordinary tensor, not an inference tensor.
    pooled_BF = features.pooled_BF.clone().cpu()
    for position, row in enumerate(rows):
        row.features[name] = pooled_BF[position].clone()
        if features.tokens_BTF is not None and features.mask_BT is not None:
            real_TF = features.tokens_BTF[position][features.mask_BT[position]]
            row.tokens[name] = real_TF.half().clone().cpu()


def frozen_encoders(config: TrainConfig, modalities: Sequence[str]) -> dict[str, bool]:
    """Whether the weights that embed each modality stay as they are; they may be another's."""
    encoders = config.model.encoders
    return {name: encoders[encoders[name].shares or name].fixed for name in modalities}


def _prepared(
    samples: Iterable[Sample],
    net: Net,
    left_out: Counter[str],
    splits: Splits,
    judge: bool,
    held_out: HeldOut | None,
) -> Iterator[list[Row]]:
    """Windows of prepared rows; the next window is prepared while the caller encodes this one."""

    def pending() -> Iterator[Future[Row | None]]:
        waiting: deque[Future[Row | None]] = deque()
        for sample in samples:
            place = splits.of[sample.id]
            if held_out is not None and place == ("judge" if judge else "validation"):
                held_out.add(sample)
            if place == "judge":
                left_out["judge split"] += 1
                continue
            waiting.append(pool.submit(_prepare, net, sample, place))
            if len(waiting) > 2 * WINDOW:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    with ThreadPoolExecutor(4, "prepare") as pool:
        window: list[Row] = []
        for future in pending():
            if (row := future.result()) is None:
                left_out["bad input"] += 1
                continue
            window.append(row)
            if len(window) == WINDOW:
                yield window
                window = []
        if window:
            yield window


def _prepare(net: Net, sample: Sample, place: str) -> Row | None:
    try:
        inputs = cast(dict[str, Array], prepare(net, sample, net.config.limits, "").inputs)
    except BadInput:
        return None
    content = 0
    for name, array in inputs.items():
        content = crc32(array.tobytes(), crc32(name.encode(), content))
    return Row(
        sample_id=sample.id,
        split=place,
        group=sample.content,
        text=sample.text,
        labels=sample.labels,
        inputs=inputs,
        content=content,
    )


def _assemble(
    rows: list[Row],
    net: Net,
    frozen: Mapping[str, bool],
    config: TrainConfig,
    left_out: Counter[str],
) -> Dataset:
    columns: dict[str, Column] = {}
    for name in net.modalities:
        having = [i for i, row in enumerate(rows) if name in row.inputs or name in row.features]
        row_N = torch.full((len(rows),), -1, dtype=torch.long)
        row_N[torch.tensor(having, dtype=torch.long)] = torch.arange(len(having))
        columns[name] = Column(
            features_nF=(
                torch.stack([rows[i].features[name] for i in having])
                if frozen[name] and having
                else None
            ),
            inputs=[] if frozen[name] else [rows[i].inputs[name] for i in having],
            row_N=row_N,
            tokens=[rows[i].tokens[name] for i in having if name in rows[i].tokens],
        )
    groups = {group: i for i, group in enumerate(sorted({row.group for row in rows}))}
    tasks, target = targets(
        [row.labels for row in rows],
        [row.text for row in rows],
        [row.split == "train" for row in rows],
        config,
        left_out,
    )
    return Dataset(
        ids=[row.sample_id for row in rows],
        split_N=np.array([row.split for row in rows]),
        columns=columns,
        present_NM=torch.stack([columns[name].row_N >= 0 for name in net.modalities], dim=1),
        group_N=torch.tensor([groups[row.group] for row in rows]),
        target=target,
        tasks=tasks,
        content=digest([row.content for row in rows], 16),
        left_out=left_out,
    )


def exchanged(
    rows: Mapping[str, Row], left_out: Counter[str], device: torch.device
) -> tuple[dict[str, Row], Counter[str]]:
    """The rows of all processes by id, and the counts of left out samples, in every process.

    For an id that several processes have read, the row of the last process counts.
    """
    all_rows: dict[str, Row] = {}
    all_left_out: Counter[str] = Counter()
    for packed in parallel.all_gather_bytes(_packed(rows, left_out), device):
        theirs, missing = _unpacked(packed)
        all_rows |= theirs
        all_left_out.update(missing)
    return all_rows, all_left_out


def _packed(rows: Mapping[str, Row], left_out: Counter[str]) -> bytes:
    """A JSON header and a safetensors file: bytes of other processes are never unpickled."""
    tensors: dict[str, Tensor] = {}
    facts = []
    for number, row in enumerate(rows.values()):
        for name, array in row.inputs.items():
            tensors[f"{number}.inputs.{name}"] = torch.from_numpy(np.ascontiguousarray(array))
        for kind, tensors_of in (("features", row.features), ("tokens", row.tokens)):
            tensors |= {f"{number}.{kind}.{name}": t.contiguous() for name, t in tensors_of.items()}
        facts.append([row.sample_id, row.split, row.group, row.text, dict(row.labels), row.content])
    head = json.dumps([facts, left_out]).encode()
    return len(head).to_bytes(8, "little") + head + save(tensors)


def _unpacked(packed: bytes) -> tuple[dict[str, Row], Counter[str]]:
    start = 8 + int.from_bytes(packed[:8], "little")
    facts, left_out = json.loads(packed[8:start])
    rows = [
        Row(
            sample_id=id_,
            split=split,
            group=group,
            text=text,
            labels=labels,
            inputs={},
            content=content,
        )
        for id_, split, group, text, labels, content in facts
    ]
    for key, tensor in load(packed[start:]).items():
        number, kind, name = key.split(".", 2)
        row = rows[int(number)]
        if kind == "inputs":
            row.inputs[name] = tensor.numpy()
        else:
            getattr(row, kind)[name] = tensor
    return {row.sample_id: row for row in rows}, Counter(left_out)
