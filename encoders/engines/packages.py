"""The packages that engines need. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from ..errors import EngineError

PACKAGES: Mapping[str, Sequence[str]] = {
    "onnx": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
}
"""By engine; the extra of the same name installs them."""


def missing(engine: str) -> str | None:
    """The package that an engine lacks here."""
    return next((name for name in PACKAGES.get(engine, ()) if find_spec(name) is None), None)


def require(engine: str) -> None:
    """Raises EngineError: a package of the engine is not installed; names the extra."""
    if (package := missing(engine)) is not None:
        raise EngineError(
            f"engine {engine} needs the package {package}: pip install 'braid-stream[{engine}]'"
        )
