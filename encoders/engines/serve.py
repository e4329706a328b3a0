"""Chooses an engine for each encoder of a loaded version.

An engine is taken if it passes the gate (`gate.py`) and, with `auto`, if it was the fastest; else
the encoder stays with torch in float32, and a line of the log says why.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import cast

import torch

from ..backbones.base import Array, Encoder
from ..backbones.sub_batches import one_thread
from ..errors import EngineError
from ..manifest import WEIGHTS
from ..model.golden import golden_sample
from ..model.torch_model import TorchModel
from .gate import TOLERANCES, Gate
from .packages import missing, require
from .runtimes import PRECISIONS, Source, made, supported

log = logging.getLogger(__name__)

PLAIN = ("torch", "float32")
ENGINES = ("torch", "onnx", "openvino")
MEASURE_S = 1.0
"""Of one engine and torch together, in `auto`."""
MOST_INPUTS = 256  # of the batch that is measured
GAIN = 1.1
"""An engine that is not faster than torch by this is not worth its memory."""


def serve_on(model: TorchModel, folder: Path, *, engine: str, precision: str) -> None:
    """Let the encoders of a model that has just been loaded run on engines.

    Args:
        folder: of the version.
        engine: torch, onnx, openvino, or auto, which takes the fastest. An encoder that it does
            not run stays with torch.
        precision: the least exact one that is allowed; an engine that does not have it uses a more
            exact one.

    Raises:
        EngineError: a package is missing, or the model is not on a CPU.
        CheckpointError: torch does not pass the golden batch.
    """
    require(engine)
    if model.device.type != "cpu":
        if engine in ("auto", "torch"):
            return  # there the precision is the version's
        raise EngineError(f"engine {engine} runs on a CPU, the model is on {model.device}")
    model.check()
    gate = Gate(model, folder)
    # Each is judged with torch beside it, and takes its place when all are.
    chosen = {
        name: _best(model, name, folder, gate, _options(engine, precision, model.net.encoder(name)))
        for name in model.modalities
    }
    for name, (encoder, option) in chosen.items():
        log.info("%s: %s runs on %s", model.name, name, " in ".join(option))
        if option != PLAIN:
            model.run_on(name, encoder, " ".join(option), TOLERANCES[option[1]])


def _options(engine: str, precision: str, encoder: Encoder) -> list[tuple[str, str]]:
    """Pairs of engine and precision to try; one of them, unless the engine is auto."""
    allowed = PRECISIONS[: PRECISIONS.index(precision) + 1]

    def pairs(name: str) -> list[tuple[str, str]]:
        return [(name, one) for one in supported(name, encoder) if one in allowed]

    if engine != "auto":
        return (pairs(engine) or pairs("torch"))[-1:]
    return [pair for name in ENGINES if missing(name) is None for pair in pairs(name)]


def _best(
    model: TorchModel, name: str, folder: Path, gate: Gate, options: list[tuple[str, str]]
) -> tuple[Encoder, tuple[str, str]]:
    """A modality's encoder on the best of the options that pass the gate, or on torch."""
    plain = model.net.encoder(name)
    best, fastest = (plain, PLAIN), GAIN if len(options) > 1 else 0.0
    for option in options:
        if option == PLAIN:
            continue
        on = " in ".join(option)
        try:
            source = source_of(model, name, folder)
            encoder = made(*option, source)
            _admit(model, name, encoder, gate, option[1])
            gain = 1.0
            if len(options) > 1:
                gain = _gain(plain, encoder, source)
                log.info("%s: %s is %.2f times as fast on %s", model.name, name, gain, on)
        except Exception as error:  # noqa: BLE001 (torch is there)
            why = str(error) or repr(error)
            log.warning("%s: %s does not run on %s: %s", model.name, name, on, why)
            continue
        if gain > fastest:
            best, fastest = (encoder, option), gain
    return best


def _admit(model: TorchModel, name: str, encoder: Encoder, gate: Gate, precision: str) -> None:
    """Raises EngineError: the model with this encoder does not pass the gate."""
    plain = model.net.encoder(name)
    model.net.encoders[name] = encoder
    try:
        gate.check(model, name, precision)
    finally:
        model.net.encoders[name] = plain


def source_of(model: TorchModel, name: str, folder: Path) -> Source:
    """What engines for a modality's encoder are made from. Raises EngineError: no golden input."""
    for raw in model.manifest.golden["inputs"]:
        prepared = model.prepare(golden_sample(raw))
        if name in prepared.inputs:
            encoder = model.net.encoder(name)
            value = cast(Array, prepared.inputs[name])
            count = max(2, min(MOST_INPUTS, encoder.budget // max(1, encoder.size(value))))
            return Source(
                encoder=encoder,
                batch=encoder.collate([value] * count),
                version=folder,
                weights=model.manifest.files[WEIGHTS],
            )
    raise EngineError(f"no golden input has {name}")


def _gain(plain: Encoder, encoder: Encoder, source: Source) -> float:
    """How many times as fast as torch an engine encodes, in turns for MEASURE_S."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    end = time.monotonic() + MEASURE_S
    with torch.inference_mode(), one_thread():
        while time.monotonic() < end or len(seconds[True]) < 2:
            for taken, one in ((False, plain), (True, encoder)):
                began = time.perf_counter()
                one(*source.batch)
                seconds[taken].append(time.perf_counter() - began)
    return min(seconds[False]) / min(seconds[True])
