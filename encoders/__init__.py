"""encoders: records of text, pictures and sound become vectors in one space, and predictions.

    from encoders import Embedder, Sample
    with Embedder.load("models/braid-0001") as embedder:
        embedding = embedder.embed([Sample(id="1", text="a red bird")])[0]

Importing this package is cheap: torch is imported when a name that needs it is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoders.config import Limits as Limits
    from encoders.config import TrainConfig as TrainConfig
    from encoders.config import preset as preset
    from encoders.embedder import DeviceThread as DeviceThread
    from encoders.embedder import Embedder as Embedder
    from encoders.embedder import load as load
    from encoders.errors import BadInput as BadInput
    from encoders.errors import CheckpointError as CheckpointError
    from encoders.errors import EncodersError as EncodersError
    from encoders.errors import TrainingError as TrainingError
    from encoders.manifest import Manifest as Manifest
    from encoders.manifest import read_manifest as read_manifest
    from encoders.manifest import verify as verify
    from encoders.training.loop import train as train
    from encoders.training.splits import split as split
    from encoders.types import MODALITIES as MODALITIES
    from encoders.types import Cost as Cost
    from encoders.types import Embedding as Embedding
    from encoders.types import Model as Model
    from encoders.types import Prepared as Prepared
    from encoders.types import Sample as Sample
    from encoders.types import TaskPrediction as TaskPrediction

_HOME = {
    "Limits": "encoders.config",
    "TrainConfig": "encoders.config",
    "preset": "encoders.config",
    "DeviceThread": "encoders.embedder",
    "Embedder": "encoders.embedder",
    "load": "encoders.embedder",
    "BadInput": "encoders.errors",
    "CheckpointError": "encoders.errors",
    "EncodersError": "encoders.errors",
    "TrainingError": "encoders.errors",
    "Manifest": "encoders.manifest",
    "read_manifest": "encoders.manifest",
    "verify": "encoders.manifest",
    "split": "encoders.training.splits",
    "train": "encoders.training.loop",
    "MODALITIES": "encoders.types",
    "Cost": "encoders.types",
    "Embedding": "encoders.types",
    "Model": "encoders.types",
    "Prepared": "encoders.types",
    "Sample": "encoders.types",
    "TaskPrediction": "encoders.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
