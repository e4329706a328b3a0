"""Initial weights: those of a version, and of projectors by the identity or canonical correlation.

Over frozen encoders, with a few hundred pairs, gradient descent on InfoNCE from random weights
overfits; the regularised closed-form solution does not, and is a good initialisation.

Where the features of a picture end with the expected name of what is on it, a vector of the model's
own text encoder (`names_source` of `EfficientNetLite0`), names and captions are in one space before
any training. A part of the dimensions begins as their principal components, and has words that no
training caption has.

Shapes: n samples, F features, R directions of them, D the shared space, N a vector of the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from typing import cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig, TrainConfig
from ..errors import TrainingError
from ..further import projected
from ..model.net import Net
from ..model.projection import Projector
from ..types import TEXT
from .data import Dataset

MAX_SAMPLES = 2048
"""Samples that are used, evenly spaced: the time grows with the cube of their number."""
RIDGE = 1.0
"""Added to each variance, in mean variances; large, for fewer samples than features."""
UNUSED_SCALE = 0.02
"""Factor of the random weights of the dimensions beyond the canonical directions."""
NAMES_SHARE = 4
"""One in so many dimensions is for the names."""
NAMES_WEIGHT = 0.35
"""Of a similarity of the names beside one of the canonical directions: on stamps, cross-validated
recall in closed form is flat from 0.25 to 0.5."""


def start_projectors(
    net: Net, data: Dataset, config: TrainConfig, splits: Sequence[str], *, learnt: bool
) -> list[str]:
    """Initialise projectors by `start`; returns the modalities whose projectors start by it.

    None for `start` "random", or "cca" where fewer than two modalities are frozen or occur
    together.

    Args:
        learnt: they are those of a version, and are left as they are.

    Raises:
        TrainingError: a projector with a hidden layer.
    """
    if config.start == "identity":
        simple = [name for name in net.modalities if _linear(net.projectors[name]) is not None]
        for name in simple if not learnt else ():
            if name not in net.config.bridged:
                _set(net.projectors[name], torch.eye(net.encoder(name).width))
        return simple
    if learnt:
        return []
    frozen = [name for name in net.modalities if data.columns[name].features_nF is not None]
    if config.start != "cca" or config.align == 0 or len(frozen) < 2:
        return []
    rows = data.rows(*splits)
    places = [data.columns[name].row_N[rows] for name in frozen]
    together = torch.nonzero(torch.stack(places).ge(0).all(0)).flatten()
    if len(together) < 2:
        return []
    if len(together) > MAX_SAMPLES:
        together = together[torch.linspace(0, len(together) - 1, MAX_SAMPLES).round().long()]
    views = {
        name: cast(Tensor, data.columns[name].features_nF)[row_n[together]]
        for name, row_n in zip(frozen, places, strict=True)
    }
    named = naming(net.config, views)
    room = net.config.dim // NAMES_SHARE if named else 0
    first = net.config.dim - room
    blocks = [
        (0, canonical(views, first, weigh=config.pair_weight)),
        (first, principal(named, room, NAMES_WEIGHT**0.5)),
    ]
    for name in frozen:
        linear = _linear(net.projectors[name])
        if linear is None or linear.bias is None:
            raise TrainingError("start: cca needs projectors of its own (projection: learnt)")
        with torch.no_grad():
            linear.weight.mul_(UNUSED_SCALE)
            linear.bias.zero_()
            for begin, maps in blocks:
                if name in maps:
                    map_FD, bias_D = maps[name]
                    filled = slice(begin, begin + len(bias_D))
                    linear.weight[filled] = 0.0
                    linear.weight[filled, -len(map_FD) :] = map_FD.T.to(linear.weight)
                    linear.bias[filled] = bias_D.to(linear.bias)
    return frozen


def carried(net: Net, config: ModelConfig) -> Net:
    """The weights of `net`, without heads, in a net of `config`, which they fit (see
    `braid.encoders.further.unlike`).

    Where it has projections that `net` has not, its vectors are those of `net`: as they are, with
    zeros behind them if it is wider, or only their first values if it is narrower.
    """
    new = Net(config, {name: net.encoder(name) for name in net.modalities}, {})
    if net.config.fusion == config.fusion:
        new.fusion.load_state_dict(net.fusion.state_dict())
    for name in net.modalities:
        old, projector = net.projectors[name], new.projectors[name]
        if not projected(net.config, config):
            projector.load_state_dict(old.state_dict())
            continue
        linear = _linear(old)
        _set(projector, torch.eye(net.config.dim) if linear is None else linear.weight)
    return new


def naming(config: ModelConfig, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Captions and expected names as vectors of the text encoder, float[n, N], by modality: the
    last columns of `views`; empty where no encoder has names, or their source is another one.
    """
    if TEXT not in views:
        return {}
    text = config.encoders[TEXT]
    widths = {
        name: int(one.options.get("names", 0))
        for name, one in config.encoders.items()
        if name in views and one.options.get("names_source", "") == text.source
    }
    width = max(widths.values(), default=0)
    if width == 0 or list(text.options.get("layers", [-1]))[-1] != -1:
        return {}
    return {name: views[name][:, -width:] for name in (TEXT, *widths)}


def principal(
    views: Mapping[str, Tensor], dim: int, length: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """One linear map of views that are in one space, to the principal components of all their rows
    together, and its bias in each view, which centres it.

    Args:
        views: by name, float[n, N].
        dim: most components.

    Returns:
        By name float64[N, D'] and float64[D'], D' at most `dim`; mapped rows have mean length
        `length`.
    """
    if not views:
        return {}
    means = {name: view_nN.double().mean(0) for name, view_nN in views.items()}
    rows = torch.cat([view_nN.double() - means[name] for name, view_nN in views.items()])
    map_ND = torch.linalg.svd(rows, full_matrices=False)[2][:dim].T
    maps = {}
    for name, view_nN in views.items():
        mapped_nD = (view_nN.double() - means[name]) @ map_ND
        scaled_ND = map_ND * (length / mapped_nD.norm(dim=1).mean().clamp(min=1e-12))
        maps[name] = (scaled_ND, -means[name] @ scaled_ND)
    return maps


def _set(projector: nn.Module, map_DF: Tensor) -> None:
    """Set a linear projector to `map_DF`, with as many of its rows as there is room for."""
    linear = _linear(projector)
    assert linear is not None
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[: len(map_DF)] = map_DF[: len(linear.weight)]
        if linear.bias is not None:
            linear.bias.zero_()


def _linear(projector: nn.Module) -> nn.Linear | None:
    """The one map of a projector; None: it has none.

    Raises:
        TrainingError: it has a hidden layer.
    """
    layers = [one for one in cast(Projector, projector).layers if isinstance(one, nn.Linear)]
    if len(layers) > 1:
        raise TrainingError("start: linear projectors are needed (hidden: 0)")
    return layers[0] if layers else None


def canonical(
    views: Mapping[str, Tensor],
    dim: int,
    ridge: float = RIDGE,
    weigh: Callable[[str, str], float] = lambda a, b: 1.0,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Linear maps of each view to the directions that correlate most, and their biases.

    Each view is centred and whitened, w = V (S^2 + ridge mean(S^2))^-1/2 of its singular values S;
    the directions are the leading eigenvectors of what remains of the whitened views' covariance
    without each view's own block, weighted by their eigenvalues (for two views: regularised
    canonical correlation, Vinod 1976; for more: maximal sums of correlations, Kettenring 1971).

    Args:
        views: by name, float[n, F], rows of one sample at the same place.
        dim: most directions.
        weigh: the weight of each pair of views in the covariance.

    Returns:
        By name float64[F, D'] and float64[D'], D' at most `dim`; mapped rows have mean length 1.
    """
    white: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for name, view_nF in views.items():
        mean_F = view_nF.double().mean(0)
        _, values_R, directions_RF = torch.linalg.svd(
            view_nF.double() - mean_F, full_matrices=False
        )
        power_R = values_R.square()
        scale_R = (power_R + ridge * power_R.mean()).clamp(min=1e-12).rsqrt()
        map_FR = directions_RF.T * scale_R
        white[name] = (map_FR, mean_F, (view_nF.double() - mean_F) @ map_FR)
    names = list(white)
    ends = [0]
    for name in names:
        ends.append(ends[-1] + white[name][0].shape[1])
    all_nR = torch.cat([white[name][2] for name in names], dim=1)
    covariance_RR = all_nR.T @ all_nR
    blocks = [slice(begin, end) for begin, end in pairwise(ends)]
    for (a, rows), (b, columns) in product(zip(names, blocks, strict=True), repeat=2):
        covariance_RR[rows, columns] *= 0.0 if a == b else weigh(a, b)
    values_R, vectors_RR = torch.linalg.eigh(covariance_RR)  # ascending
    kept = [i for i in reversed(range(len(values_R))) if values_R[i] > 1e-9][:dim]
    weighted_RD = vectors_RR[:, kept] * values_R[kept]
    maps = {}
    for name, (begin, end) in zip(names, pairwise(ends), strict=True):
        map_FR, mean_F, white_nR = white[name]
        map_RD = weighted_RD[begin:end]
        map_RD = map_RD / (white_nR @ map_RD).norm(dim=1).mean().clamp(min=1e-12)
        map_FD = map_FR @ map_RD
        maps[name] = (map_FD, -mean_F @ map_FD)
    return maps
