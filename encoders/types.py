"""Shared data types: samples, embeddings, predictions, the `Model` protocol. Imports numpy only.

Shape suffixes, here and in the whole package: B samples, D width of the shared space, F width of
an encoder's features, C classes, M modalities, T tokens, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from braid.modalities import MEDIA as MEDIA
from braid.modalities import MODALITIES as MODALITIES

if TYPE_CHECKING:
    from .manifest import Manifest

FUSED = "fused"
TEXT = "text"

Vector = NDArray[np.float32]
Label = str | float | Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One record as the model sees it.

    Attributes:
        id: the record's id; the splits are drawn from it.
        text: plain text.
        image: the bytes of a picture *file* (png, jpeg, ...).
        audio: the bytes of a sound *file* (wav, ogg, flac, ...).
        video: the bytes of a video *file* (mp4, webm, mov, avi, ...); its sound is not heard.
        labels: task name to a class name (or caption), a number, or several class names.
        query: whether it is a search query, which some models encode differently from a record.
        group: records of one group are in one split; None: its own.
    """

    id: str
    text: str | None = None
    image: bytes | None = None
    audio: bytes | None = None
    video: bytes | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    query: bool = False
    group: str | None = None

    @property
    def present(self) -> tuple[str, ...]:
        """The modalities that this sample has, in the order of `MODALITIES`."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)

    @property
    def content(self) -> str:
        """Equal for samples with the same text, which are no negatives of each other."""
        return f"id {self.id}" if self.text is None else f"text {self.text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of encoding. A micro-batch is limited by a budget of costs."""

    tokens: int = 0
    pixels: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            tokens=self.tokens + other.tokens,
            pixels=self.pixels + other.pixels,
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The output of `Model.prepare` and input of `Model.encode`; `inputs` is opaque to others.

    Attributes:
        preprocessing: the hash of the settings that made it; a model with another hash refuses it.
        nbytes: its approximate size in memory.
        digests: a hash of each input, for a model with a cache of features.
    """

    id: str
    cost: Cost
    inputs: Mapping[str, object]
    preprocessing: str
    nbytes: int = 0
    digests: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPrediction:
    """The decision's prediction for one task of one record.

    Attributes:
        kind: see `braid.encoders.tasks`; it determines which of the following are set.
        rule: the decision rule; "consensus" for captions.
        label: the class decided on, and `prob` its probability (classification).
        labels: the classes decided on (multilabel).
        probs: every class with its combined probability; they sum to 1, but for multilabel.
        value: the number decided on (regression).
        text: the caption, and `prob` the geometric mean of its words' probabilities (generation).
        by: the predictions of each present modality and of the fused vector alone:
            `{"text": {"label": ..., "prob": ...}, ..., "fused": {...}}`.
    """

    kind: str
    rule: str
    label: str | None = None
    labels: Sequence[str] | None = None
    prob: float | None = None
    probs: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    text: str | None = None
    by: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def to_map(self) -> dict[str, Any]:
        """Its fields by name, for a message; not copied, as `dataclasses.asdict` would."""
        return {
            "kind": self.kind,
            "rule": self.rule,
            "label": self.label,
            "labels": self.labels,
            "prob": self.prob,
            "probs": self.probs,
            "value": self.value,
            "text": self.text,
            "by": self.by,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedding:
    """One record in the shared space: `fused` and each of `by` are unit vectors, float32[D].

    Attributes:
        cached: whether no encoder ran for it: all its features came from a cache.
        engine: modality to the engine and precision of its encoder, as "openvino bf16"; only where
            that is not torch in float32.
    """

    id: str
    fused: Vector
    by: Mapping[str, Vector]
    tasks: Mapping[str, TaskPrediction]
    cached: bool = False
    engine: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Model(Protocol):
    """A loaded model version, as `braid.encoders.load` returns it. Implemented by `TorchModel`
    and `NullModel`.

    Attributes:
        name: the field `model` of every vector and prediction, such as "braid-0001".
        space: the name of its vector space. It is a hash of the weights of encoders, projections
            and fusion and of the preprocessing, so that retraining only the heads keeps it; or it
            is the parent's, where cross-version recall allows that
            (`braid.encoders.evaluation.compatibility`).
        dim: D.
        preprocessing: a hash. A model may encode what another with the same hash has prepared.
        lanes: how many calls of `encode` fill the device, each on a thread of its own.
    """

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def preprocessing(self) -> str: ...
    @property
    def lanes(self) -> int: ...

    def prepare(self, sample: Sample) -> Prepared:
        """Decode, resize, resample and tokenise on the CPU. Thread-safe.

        Modalities that the model does not know are left out.

        Raises:
            BadInput: this sample cannot be used; a retry does not help.
        """
        ...

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        """Embed, fuse and decide, in the order given. Called on device threads only, at most
        `lanes` calls at a time."""
        ...

    def encode_queries(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        """As `encode`; predictions may be left out."""
        ...

    def check(self) -> None:
        """Encode the manifest's golden batch and compare.

        Raises:
            CheckpointError: an output is further from the recorded one than the tolerance.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Examination:
    """The results of an examination, written into a version's manifest before it is published.

    Attributes:
        verdict: see `braid.encoders.evaluation.judge.judge`; `passed` is whether it may
            serve.
        compatibility: see `braid.encoders.evaluation.compatibility`.
        space: the space to declare; None keeps the version's own.
        files: name to bytes of files to write beside the weights, such as the adapter.
    """

    verdict: Mapping[str, Any] = field(default_factory=dict)
    compatibility: Mapping[str, Any] = field(default_factory=dict)
    space: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


Examine = Callable[[Path, Sequence[Sample]], Examination]
"""Called with a finished version folder that is not published yet, and the samples."""
