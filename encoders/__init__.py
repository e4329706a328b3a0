"""encoders: records of text, pictures and sound become vectors in one space, and predictions.

    from braid import Embedder, Sample
    with Embedder.load("models/braid-0001") as embedder:
        embedding = embedder.embed([Sample(id="1", text="a red bird")])[0]

Importing this package is cheap: torch is imported when a name that needs it is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Limits as Limits
    from .config import TrainConfig as TrainConfig
    from .config import preset as preset
    from .embedder import DeviceThread as DeviceThread
    from .embedder import Embedder as Embedder
    from .embedder import load as load
    from .errors import BadInput as BadInput
    from .errors import CheckpointError as CheckpointError
    from .errors import EncodersError as EncodersError
    from .errors import TrainingError as TrainingError
    from .manifest import Manifest as Manifest
    from .manifest import read_manifest as read_manifest
    from .manifest import verify as verify
    from .training.loop import train as train
    from .training.splits import split as split
    from .types import MODALITIES as MODALITIES
    from .types import Cost as Cost
    from .types import Embedding as Embedding
    from .types import Model as Model
    from .types import Prepared as Prepared
    from .types import Sample as Sample
    from .types import TaskPrediction as TaskPrediction

_HOME = {
    "Limits": "braid.encoders.config",
    "TrainConfig": "braid.encoders.config",
    "preset": "braid.encoders.config",
    "DeviceThread": "braid.encoders.embedder",
    "Embedder": "braid.encoders.embedder",
    "load": "braid.encoders.embedder",
    "BadInput": "braid.encoders.errors",
    "CheckpointError": "braid.encoders.errors",
    "EncodersError": "braid.encoders.errors",
    "TrainingError": "braid.encoders.errors",
    "Manifest": "braid.encoders.manifest",
    "read_manifest": "braid.encoders.manifest",
    "verify": "braid.encoders.manifest",
    "split": "braid.encoders.training.splits",
    "train": "braid.encoders.training.loop",
    "MODALITIES": "braid.encoders.types",
    "Cost": "braid.encoders.types",
    "Embedding": "braid.encoders.types",
    "Model": "braid.encoders.types",
    "Prepared": "braid.encoders.types",
    "Sample": "braid.encoders.types",
    "TaskPrediction": "braid.encoders.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
