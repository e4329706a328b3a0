"""The engines: what each can run, and how it takes an encoder's trunk."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.base import Encoder
from ..backbones.sub_batches import cores
from .export import onnx_of
from .int8 import has_linear, with_int8
from .packages import PACKAGES

Trunk = Callable[..., tuple[Tensor, ...]]

PRECISIONS = ("float32", "bf16", "int8")
"""From the most exact to the least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What an engine is made from.

    Attributes:
        batch: a collated batch of some inputs.
        version: the folder of the version, and `weights` the sha256 of its weights.
    """

    encoder: Encoder
    batch: Sequence[Tensor]
    version: Path
    weights: str


def supported(engine: str, encoder: Encoder) -> list[str]:
    """The precisions in which an engine runs an encoder's trunk on this CPU."""
    if not encoder.trunk_parts:
        return ["float32"] if engine == "torch" else []
    bf16 = ["bf16"] if _has_bf16() else []
    if engine == "torch":
        parts = (getattr(encoder, name) for name in encoder.trunk_parts)
        return ["float32", *bf16, *["int8"] * any(has_linear(part) for part in parts)]
    if encoder.modality != "image":  # torch computes texts without their padding
        return []
    return ["float32"] if engine == "onnx" else ["float32", *bf16]


def made(engine: str, precision: str, source: Source) -> Encoder:
    """A copy of the encoder whose trunk runs on an engine; it shares what it does not replace.

    Raises whatever the engine raises.
    """
    encoder = copy.copy(source.encoder)
    encoder._modules = dict(encoder._modules)
    if precision == "int8":
        for name in encoder.trunk_parts:
            setattr(encoder, name, with_int8(getattr(encoder, name)))
        return encoder
    if engine in PACKAGES:
        content = onnx_of(source.encoder, source.batch, source.version, source.weights)
        for name in encoder.trunk_parts:  # its weights are in the engine
            del encoder._modules[name]
        run = _onnx(content) if engine == "onnx" else _openvino(content, precision, source.batch)
    else:
        run = _in_bf16(source.encoder.trunk)
    encoder.trunk = run  # type: ignore[method-assign]
    return encoder


def _in_bf16(trunk: Trunk) -> Trunk:
    def run(*batch: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = trunk(*batch)
        return tuple(output.float() for output in outputs)

    return run


def _onnx(content: bytes) -> Trunk:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # sub-batches run in parallel
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(*batch: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, _named(batch))
        return tuple(torch.from_numpy(output) for output in outputs)

    return run


def _openvino(content: bytes, precision: str, batch: Sequence[Tensor]) -> Trunk:
    """The model on OpenVINO.

    Its binding to Python makes static variables in its first inference and releases the GIL there:
    two threads whose first inferences come at once wait for each other for ever, seen with 2026.4.
    So the first, of one input of `batch`, has ended before any thread gets the model.
    """
    import openvino

    core = openvino.Core()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bf16": "bf16"}[precision],
        "NUM_STREAMS": cores(),  # one thread for each sub-batch
        "INFERENCE_NUM_THREADS": cores(),
        "ENABLE_CPU_PINNING": False,
    }
    model = core.compile_model(core.read_model(content), "CPU", settings)
    requests = threading.local()  # a request runs once at a time

    def run(*batch: Tensor) -> tuple[Tensor, ...]:
        if not hasattr(requests, "own"):
            requests.own = model.create_infer_request()
        outputs = requests.own.infer(_named(batch), share_inputs=True)
        return tuple(torch.from_numpy(output) for output in outputs.to_tuple())

    with _first_inference:
        run(*(tensor[:1] for tensor in batch))
    return run


_first_inference = threading.Lock()


def _named(batch: Sequence[Tensor]) -> dict[str, Any]:
    return {f"in{place}": tensor.numpy() for place, tensor in enumerate(batch)}


def _has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
