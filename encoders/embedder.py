"""Loading a model version."""

from __future__ import annotations

from pathlib import Path

from encoders.null import PREFIX, NullModel
from encoders.types import Model


def load(path: str | Path, *, device: str | None = None) -> Model:
    """The model at `path`: a version folder, or "null:16" for the null model.

    Args:
        device: a torch device; the GPU where there is one, else the CPU, if None.

    Raises:
        CheckpointError: there is no such version, or it is damaged.
    """
    if isinstance(path, str) and path.startswith(PREFIX):
        return NullModel.parse(path)
    from encoders.checkpoint import load_folder  # torch is imported here and not before

    return load_folder(Path(path), device=device)
