"""The optional libraries of imported models. Each is imported when a model needs it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ...errors import CheckpointError

EXTRAS = {"timm": ("timm", "timm"), "open_clip": ("open_clip_torch", "open-clip")}
"""A module, to its package and the extra of braid that brings it."""


def library(module: str) -> ModuleType:
    """The module of `EXTRAS`, imported.

    Raises:
        CheckpointError: it is not installed; the message names the extra.
    """
    package, extra = EXTRAS[module]
    try:
        return import_module(module)
    except ImportError as error:
        raise CheckpointError(
            f"this model needs {package}: pip install 'braid-stream[{extra}]' ({error})"
        ) from error
