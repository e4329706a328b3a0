"""Exports a trunk as ONNX, once, into a folder beside the version.

versions/braid-0001/                        the version, which is never written again
versions/braid-0001.engines/image.onnx      the trunk of its picture encoder
versions/braid-0001.engines/image.json      what it was made from, and its sha256
"""

from __future__ import annotations

import io
import json
import logging
import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones.base import Encoder
from ..manifest import engines_folder

log = logging.getLogger(__name__)

OPSET = 17


def onnx_of(encoder: Encoder, batch: Sequence[Tensor], version: Path, made_from: str) -> bytes:
    """The trunk as an ONNX model: as exported before, if that is whole, or exported now.

    Args:
        batch: collated, of two inputs or more; the number of inputs stays free.
        made_from: the sha256 of the weights.
    """
    file = engines_folder(version) / f"{encoder.modality}.onnx"
    facts = {"weights": made_from, "torch": torch.__version__, "opset": OPSET}
    if (content := _kept(file, facts)) is not None:
        return content
    content = _exported(encoder, batch)
    try:
        file.parent.mkdir(exist_ok=True)
        _write(file, content)
        _write(_note(file), json.dumps({**facts, "sha256": sha256(content).hexdigest()}).encode())
    except OSError as error:  # a version on a disk that is only read
        log.warning("%s cannot be kept, each start exports it: %s", file, error)
    return content


def _kept(file: Path, facts: Mapping[str, Any]) -> bytes | None:
    try:
        content, noted = file.read_bytes(), json.loads(_note(file).read_text())
    except (OSError, ValueError):
        return None
    if noted == {**facts, "sha256": sha256(content).hexdigest()}:
        return content
    log.warning("%s is damaged or of another torch: it is exported anew", file)
    return None


def _exported(encoder: Encoder, batch: Sequence[Tensor]) -> bytes:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, *batch: Tensor) -> tuple[Tensor, ...]:
            return self.encoder.trunk(*batch)

    trunk, file = Trunk().eval(), io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # shapes other than the number of inputs become constants
        count = len(trunk(*batch))
        names = [*(f"in{n}" for n in range(len(batch))), *(f"out{n}" for n in range(count))]
        torch.onnx.export(
            trunk,
            tuple(batch),
            cast(Any, file),  # declared as a path
            input_names=names[: len(batch)],
            output_names=names[len(batch) :],
            dynamic_axes={name: {0: "B"} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )
    return file.getvalue()


def _note(file: Path) -> Path:
    return file.with_suffix(".json")


def _write(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    draft.write_bytes(content)
    os.replace(draft, file)
