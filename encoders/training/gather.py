"""Rows of a dataset while it is read, and their exchange between processes.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ..backbones.base import Array
from ..types import Label
from . import parallel


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
