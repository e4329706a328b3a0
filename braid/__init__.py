"""braid: streams of text, pictures and sound become one searchable space, and predictions.

    from braid import Client, Embedder, Producer

Importing this package is cheap: what a name needs is imported when it is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoders.config import preset as preset
    from .encoders.embedder import Embedder as Embedder
    from .encoders.training.loop import train as train
    from .encoders.types import Sample as Sample
    from .index.client import AsyncClient as AsyncClient
    from .index.client import Client as Client
    from .stream.kafka.producer import Producer as Producer

_HOME = {
    "preset": ".encoders.config",
    "Embedder": ".encoders.embedder",
    "train": ".encoders.training.loop",
    "Sample": ".encoders.types",
    "AsyncClient": ".index.client",
    "Client": ".index.client",
    "Producer": ".stream.kafka.producer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
