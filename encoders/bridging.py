"""Joins two imported models that both embed texts into one space: a bridge.

CLIP has texts and pictures, CLAP texts and sounds. A linear map from the texts of the one to those
of the other, fitted on captions alone, carries the sounds along (after Connecting Multi-modal
Contrastive Representations, arXiv 2305.14381, which fits small networks).

Shapes: n captions, E the width of the second model's vectors, D that of the first model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .config import TrainConfig, from_dict
from .errors import BadInput, CheckpointError, TrainingError
from .evaluation.fit_adapter import procrustes
from .manifest import Manifest
from .model.checkpoint import load_folder, save
from .model.net import Net
from .model.torch_model import TorchModel
from .model.zero_shot import ZeroShot
from .types import FUSED, TEXT, Sample

LEAST_CAPTIONS = 100
JUDGED = 1000  # captions by which a map is judged, at most: recall depends on how many there are
CARRIES = 0.5
"""The share of captions that must find themselves, first of those that judge."""
RIDGES = (1e-3, 1e-2, 1e-1)  # times the mean variance of a direction
BATCH = 64


class Parts(NamedTuple):
    """Captions that fit the maps, that choose one, and that judge it."""

    fit: list[str]
    choose: list[str]
    judge: list[str]


def bridge(
    first: Path,
    second: Path,
    captions: Sequence[str],
    out: Path,
    *,
    name: str,
    version: int,
    force: bool = False,
    device: str | None = None,
) -> Manifest:
    """Write the version folder `out`: all of `first`, and what `second` has beside it.

    The space is that of `first`, whose vectors stay as they are. Its tasks go on, with the weights
    of the fused vector for what is new. What was measured is the manifest's `metrics["bridge"]`.

    Args:
        first, second: version folders of imported models.
        captions: texts as the records will have them.
        force: write it even if it does not carry.

    Raises:
        CheckpointError: a version was not imported, or has no texts, or `second` has nothing new.
        BadInput: a caption that a model refuses.
        TrainingError: fewer than 100 captions, or the map does not carry: less than half of the
            captions that fitted nothing find themselves among all of those.
    """
    models = [load_folder(folder, device=device) for folder in (first, second)]
    configs = [_config(model) for model in models]
    model, other = models
    config, other_config = configs
    added = tuple(one for one in other.modalities if one not in model.modalities)
    if not added:
        raise CheckpointError(f"{other.name} has no modality that {model.name} has not")
    if other_config.model.bridged:
        raise CheckpointError(f"{other.name} is a bridge itself: put it first")
    map_ED, quality = fit(other, model, captions)
    if quality["recall@1"] < CARRIES and not force:
        raise TrainingError(
            f"{other.name} to {model.name} does not carry: of {quality['captions']} captions that "
            f"fitted nothing {quality['recall@1']:.3f} find themselves, at least {CARRIES} must"
        )
    origin = {
        "type": "bridge",
        "of": [one.model.origin for one in configs],
        "map": quality["map"],
    }
    bridged = replace(
        config.model,
        encoders={
            **config.model.encoders,
            **{one: other_config.model.encoders[one] for one in added},
        },
        bridged=(*config.model.bridged, *added),
        origin=origin,
    )
    net = _joined(model.net, other.net, TrainConfig(model=bridged), map_ED, added)
    return save(
        net,
        out,
        config=TrainConfig(model=bridged),
        name=name,
        version_number=version,
        metrics={"bridge": {**quality, "of": [model.name, other.name]}, **_zero_shot(model, added)},
    )


def fit(
    source: TorchModel, target: TorchModel, captions: Sequence[str]
) -> tuple[Tensor, dict[str, Any]]:
    """The map float[E, D] from the vectors of `source` to those of `target`, and its quality.

    Of a rotation and ridge regressions, the one by which most captions of a tenth find themselves;
    `recall@1` and `cosine` are of another tenth.

    Raises:
        BadInput: a caption that a model refuses.
        TrainingError: fewer than 100 different captions.
    """
    parts = parts_of(captions)
    pairs = [(texts_of(source, part), texts_of(target, part)) for part in parts]
    (fit_nE, fit_nD), choosing, judging = pairs
    maps = {name: make(fit_nE, fit_nD) for name, make in _MAPS.items()}
    chosen = max(maps, key=lambda name: quality_of(maps[name], *choosing))
    recall, cosine = quality_of(maps[chosen], *judging)
    return maps[chosen], {
        "map": chosen,
        "captions": len(parts.judge),
        "recall@1": round(recall, 4),
        "cosine": round(cosine, 4),
    }


def parts_of(captions: Sequence[str]) -> Parts:
    """Eight, one and one tenths of the different captions, by the sha256 of each.

    Raises:
        TrainingError: fewer than 100.
    """
    known = sorted({text.strip() for text in captions} - {""}, key=_hash)
    if len(known) < LEAST_CAPTIONS:
        raise TrainingError(
            f"captions: at least {LEAST_CAPTIONS} different ones are needed, there are {len(known)}"
        )
    tenth = min(JUDGED, len(known) // 10)
    return Parts(known[2 * tenth :], known[tenth : 2 * tenth], known[:tenth])


def _hash(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def texts_of(model: TorchModel, texts: Sequence[str]) -> Tensor:
    """The model's vectors of texts, as of records, float64[n, D]. Raises BadInput."""
    rows: list[Tensor] = []
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        try:
            prepared = [model.prepare(Sample(id=str(n), text=text)) for n, text in enumerate(some)]
        except BadInput as error:
            raise BadInput("captions", f"{model.name} refuses one: {error}") from None
        rows += [torch.from_numpy(one.by[TEXT]) for one in model.encode_queries(prepared)]
    return torch.stack(rows).double()


def quality_of(map_ED: Tensor, source_nE: Tensor, target_nD: Tensor) -> tuple[float, float]:
    """The share of rows whose mapped vector is nearest to its own row of the target (recall@1; a
    tie is wrong), and the mean cosine to it."""
    scores_nn = F.normalize(source_nE @ map_ED, dim=1) @ target_nD.T
    own_n = scores_nn.diagonal()
    ahead_n = (scores_nn >= own_n[:, None]).sum(1)  # itself is one
    return (ahead_n == 1).double().mean().item(), own_n.mean().item()


def _ridge(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    def fitted(source_nE: Tensor, target_nD: Tensor) -> Tensor:
        gram_EE = source_nE.T @ source_nE
        ridge = share * gram_EE.diagonal().mean()
        weights_ED: Tensor = torch.linalg.solve(
            gram_EE + ridge * torch.eye(len(gram_EE), dtype=gram_EE.dtype), source_nE.T @ target_nD
        )
        return weights_ED

    return fitted


_MAPS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rotation": procrustes,  # the first of equals
    **{f"ridge {share:g}": _ridge(share) for share in RIDGES},
}


def _config(model: TorchModel) -> TrainConfig:
    config = from_dict(model.manifest.config)
    if not config.model.origin or config.model.projection != "none":
        raise CheckpointError(f"{model.name} was trained; a bridge joins imported versions")
    if TEXT not in model.modalities:
        raise CheckpointError(f"{model.name} has no texts, it has {', '.join(model.modalities)}")
    return config


def _zero_shot(model: TorchModel, added: Sequence[str]) -> dict[str, Any]:
    """The metrics of zero-shot tasks: the scale of what is `added` is that of the fused vector."""
    zero_shot = ZeroShot.of(model.manifest)
    if zero_shot is None:
        return {}
    scale = {**dict.fromkeys(added, zero_shot.scale[FUSED]), **zero_shot.scale}
    return replace(zero_shot, scale=scale).metrics()


def _joined(net: Net, other: Net, config: TrainConfig, map_ED: Tensor, added: Sequence[str]) -> Net:
    encoders = {one: net.encoder(one) for one in net.modalities}
    joined = Net(
        config.model, {**encoders, **{one: other.encoder(one) for one in added}}, net.tasks
    )
    with torch.no_grad():
        for one in net.modalities:
            joined.projectors[one] = net.projectors[one]
        for one in added:
            joined.projectors[one].get_parameter("layers.0.weight").copy_(map_ED.T)
        for task in net.tasks:
            for source in joined.sources:
                mine = source if source in net.sources else FUSED
                head = joined.heads.head(task, source)
                head.load_state_dict(net.heads.head(task, mine).state_dict())
    return joined.eval()
