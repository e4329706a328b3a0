"""Configuration: frozen dataclasses. Nothing is read or loaded on import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import check_minima
from .limits import Limits as Limits
from .lora import Lora
from .types import MODALITIES


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """One encoder.

    Attributes:
        kind: its name in `braid.encoders.backbones.registry`.
        source: pretrained weights: a hub name, a local folder, "package:NAME", or None for random.
            Used when a model is made, never when a version is loaded.
        frozen: do not train its weights; its features are then computed once.
        train_last: train only the last n of its `trainable_blocks`; None trains all of it.
        lora: train low-rank adapters in place of its weights; needs the extra `lora`.
        options: what its constructor takes; JSON values.
        shares: the modality whose encoder's network it uses, which is in the version once; None: it
            has its own.
    """

    kind: str
    source: str | None = None
    frozen: bool = False
    train_last: int | None = None
    lora: Lora | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    shares: str | None = None

    def __post_init__(self) -> None:
        if self.frozen and self.train_last is not None:
            raise ValueError(f"train_last of a frozen encoder must be None, is {self.train_last}")
        if self.lora is not None and self.train_last is not None:
            raise ValueError(f"train_last must be None beside lora, is {self.train_last}")

    @property
    def fixed(self) -> bool:
        """Whether its output does not change in a training."""
        return self.frozen and self.lora is None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """A task whose kind cannot be inferred from its labels: class names and captions are strings.

    Attributes:
        kind: one of `braid.encoders.tasks.KINDS`.
        source: "text" makes each sample's own text the caption; None takes it from the labels
            (generation).
        length: most words of a caption (generation).
        min_count: occurrences in the training captions that a word needs to be in the vocabulary
            (generation).
    """

    kind: str
    source: str | None = None
    length: int = 16
    min_count: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The parts of the model and their sizes.

    Attributes:
        encoders: modality to its encoder; their keys are the model's modalities.
        dim: D, the width of the shared space.
        projection: "learnt", or "none": an encoder's features are its vectors, as wide as D.
        bridged: modalities whose features a linear map carries into the space of the others, where
            there is no projection; see `braid.encoders.bridging`.
        hidden: width of the projectors' hidden layer; 0 makes them linear.
        dropout: in front of the projectors.
        fusion: "mean", "early" or "intermediate"; see `braid.encoders.model.fusion`.
        decision: "weighted", "logproduct" or "vote".
        heads_on: the input of a modality's own heads: "features" or "unit" (its projected vector).
        head_dropout: in front of the heads.
        tasks: tasks that must be declared; the others are inferred from the labels.
        origin: of an imported model, what names its space beside its weights; JSON values. See
            `braid.encoders.importing`.
    """

    encoders: Mapping[str, EncoderConfig]
    dim: int = 256
    projection: str = "learnt"
    hidden: int = 0
    dropout: float = 0.0
    fusion: str = "mean"
    decision: str = "weighted"
    heads_on: str = "unit"
    head_dropout: float = 0.0
    tasks: Mapping[str, TaskConfig] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    origin: Mapping[str, Any] = field(default_factory=dict)
    bridged: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.projection not in ("learnt", "none"):
            raise ValueError(f"projection must be learnt or none, is {self.projection!r}")


_WEIGHTS = ("task", "align", "fuse", "match", "monotone", "compatible")
_MINIMA = {
    **dict.fromkeys(("epochs", "batch", "encoder_batch"), 1),
    **dict.fromkeys((*_WEIGHTS, "drop", "same_label", "chunk", "patience", "folds"), 0),
}
"""Minimum values of the fields of a `TrainConfig`."""
_REMOVED = ("balance",)
"""Fields of a `TrainConfig` in older versions' manifests; only their training depended on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training run.

    Attributes:
        epochs, batch, lr, weight_decay: AdamW under a cosine schedule with a short warm-up.
        clip: largest norm of the gradient.
        task, align, fuse: weights of the joint loss: the modalities' own heads; InfoNCE between
            modalities; the fused vector's head and `match`.
        match: weight, within fuse, of the InfoNCE between fused random subsets of a sample.
        drop: probability that a modality is left out of the input of the fused vector's head.
        same_label: share of the alignment target that is spread over samples of the same label
            (0: only the sample itself is positive).
        start: "random"; "identity": linear projectors begin as the encoders' own vectors; or "cca":
            those over frozen encoders at the canonical correlations of their features, where two or
            more are frozen and `align` is not 0, a quarter of the dimensions at the names of what
            is seen, where an encoder has `names` (`braid.encoders.training.start`).
        start_lr: learning rate of projectors that begin at the identity or by "cca".
        encoder_lr: learning rate of the encoders that are trained.
        encoder_batch: how many samples of a batch go through an encoder that is trained, drawn at
            random; for the others of the batch that modality is absent.
        pairs: weight of a pair of modalities ("text-audio") in the alignment and in the canonical
            start, where it is not 1.
        refit: after validation, train once more on train and validation together. Decisions and
            metrics are of models that had not learnt the samples that they come from.
        folds: where every encoder is frozen, `refit` is on and `patience` is 0, so many models are
            trained in place of one, each without one fold of train and validation together, and
            decisions are fitted on all samples left out; 0 or 1: one model, and the validation
            samples only, as where an encoder is trained.
        one_core: on a CPU, train on one core: small models are not faster on more. (Frozen encoders
            use all cores, each for a sub-batch.)
        calibration_copies: augmented copies of each validation sample, beside the sample itself,
            on which decisions are fitted.
        contrast: the alignment loss, "info_nce" or "siglip".
        learn_weights: learn the weights of task, align and fuse (bounded Kendall); the configured
            ones multiply their terms before.
        monotone: weight, within fuse, of the penalty on a fused head that is more confident with
            fewer modalities (`braid.encoders.training.losses.confidence_penalty`).
        ema: decay of the moving average of the weights that is evaluated and written; 0: none.
        precision: "float32" or "bf16" (automatic mixed precision, losses in float32); on a GPU the
            version then embeds in it too.
        chunk: how many samples of a batch go through a trained encoder at once; 0: all. Gradients
            stay those of the whole batch: features are cached, encoders run twice. Batch norms,
            and `mix` of the spectrogram augmentation, see each chunk separately.
        patience: stop when the validation loss has not fallen for this many epochs, and keep the
            best epoch's weights; 0: never.
        compatible: weight of the loss that keeps vectors close to the champion's of the same
            records (`braid.encoders.training.losses.compatibility_loss`), so that the space can be
            kept; 0: none. It may cost accuracy.
        judge: hold out a tenth of the samples for comparing versions. False trains on them; for
            data with a test set of its own.
        max_classes: a str label with more distinct values than this is refused.
    """

    model: ModelConfig
    epochs: int = 60
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    task: float = 0.3
    align: float = 1.0
    fuse: float = 0.1
    match: float = 0.0
    drop: float = 0.3
    same_label: float = 0.0
    start: str = "random"
    start_lr: float = 3e-4
    encoder_lr: float = 2e-3
    encoder_batch: int = 64
    pairs: Mapping[str, float] = field(default_factory=dict)
    refit: bool = True
    folds: int = 3
    one_core: bool = True
    calibration_copies: int = 0
    contrast: str = "info_nce"
    learn_weights: bool = False
    monotone: float = 0.0
    ema: float = 0.0
    precision: str = "float32"
    chunk: int = 0
    patience: int = 0
    compatible: float = 0.0
    judge: bool = True
    max_classes: int = 1000

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("contrast", self.contrast, ("info_nce", "siglip")),
            ("start", self.start, ("random", "identity", "cca")),
            ("precision", self.precision, ("float32", "bf16")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, is {value!r}")
        for pair in self.pairs:
            names = pair.split("-")
            if len(set(names)) != 2 or len(names) != 2 or not set(names) <= set(MODALITIES):
                raise ValueError(f"pairs: {pair!r} is no pair of two of {', '.join(MODALITIES)}")
            if self.pairs[pair] < 0:
                raise ValueError(f"pairs: {pair!r} must be at least 0, is {self.pairs[pair]}")
        check_minima(self, _MINIMA)
        for name in ("drop", "same_label"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be at most 1, is {getattr(self, name)}")

    def pair_weight(self, a: str, b: str) -> float:
        """The weight in `pairs` of these two modalities, named in either order."""
        return self.pairs.get(f"{a}-{b}", self.pairs.get(f"{b}-{a}", 1.0))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` reads them back."""
        raw = asdict(self)
        raw["model"]["bridged"] = list(self.model.bridged)
        return raw


def from_dict(raw: Mapping[str, Any]) -> TrainConfig:
    """The configuration in a manifest; fields that were removed since are left out.

    Raises:
        TypeError, KeyError: a field that this code does not know, or one that is missing.
    """
    model = dict(raw["model"])
    model["encoders"] = {name: _encoder(value) for name, value in model["encoders"].items()}
    model["tasks"] = {name: TaskConfig(**value) for name, value in model["tasks"].items()}
    model["limits"] = Limits(**model["limits"])
    model["bridged"] = tuple(model.get("bridged", ()))
    kept = {name: value for name, value in raw.items() if name not in _REMOVED}
    return TrainConfig(**{**kept, "model": ModelConfig(**model)})


def _encoder(raw: Mapping[str, Any]) -> EncoderConfig:
    lora = raw.get("lora")
    return EncoderConfig(**{**raw, "lora": None if lora is None else Lora(**lora)})
