"""Loads a version to serve. Importing this module does not import torch."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from .feature_cache import FeatureCache
from .model.null import PREFIX, NullModel
from .types import Model


def load(
    path: str | Path,
    *,
    device: str | None = None,
    engine: str = "torch",
    precision: str = "float32",
    cache: FeatureCache | None = None,
) -> Model:
    """The model at `path`: a version folder, or "null:16" for the null model.

    Every file is compared with its checksum; `Model.check` is left to the caller, but for engines.

    Args:
        device: a torch device; the GPU where there is one, else the CPU, if None.
        engine: what the encoders run on: torch, onnx, openvino, or auto, the fastest. Torch
            replaces one that does not pass the version's golden batch and frozen queries; the log
            says why.
        precision: the least exact one that is allowed: float32, bf16 or int8.
        cache: of features, which models may share; the null model uses none.

    Raises:
        CheckpointError: there is no such version, or it is damaged.
        EngineError: a package of the engine is not installed.
    """
    if isinstance(path, str) and path.startswith(PREFIX):
        return NullModel.parse(path)
    from .model.checkpoint import load_folder  # torch is imported here and not before

    model = load_folder(Path(path), device=device)
    if cache is not None:
        model.use(cache)
    if (engine, precision) != ("torch", "float32"):
        from .engines.serve import serve_on

        serve_on(model, Path(path), engine=engine, precision=precision)
    return model


def import_ahead(path: str | Path | None) -> None:
    """Begin to import what `load` needs, on a thread of its own; `load` waits for it.

    Args:
        path: as for `load`, if it is known; None: it will be a version folder.
    """

    def run() -> None:
        with suppress(ImportError):  # `load` raises it
            from .model import checkpoint  # noqa: F401

    if not str(path).startswith(PREFIX):
        # Not a daemon: an exit in the middle of an import would crash.
        threading.Thread(target=run, name="import").start()
