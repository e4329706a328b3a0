"""Imbalanced modalities: what joint training leaves unlearnt, and what other ways make of it.

    python -m benchmarks.imbalance --json               # five trainings of each row
    python -m benchmarks.imbalance --resume FILE --json # keeps finished trainings
    python -m benchmarks.imbalance --part joint --seeds 1

Digits as in `benchmarks.av_digits`, known speakers, made imbalanced as CREMA-D is: one modality
(here whole pictures) is learnt at once and makes the loss small, before the encoder of the other
(sound under white noise at -6 dB) has learnt what it could. Every other recording, small encoders,
concatenation and an MLP.

Rows, the same data, seeds, encoders and steps in each:

    alone      each modality by itself: what its encoder can learn
    joint      one loss, of the fused vector's head, on both modalities
    OGM-GE     joint, the updates of the surer modality scaled (`modulated`), after Peng et al. 2022
               (arXiv 2203.15332, equation 10): updates, where they scale gradients, which is the
               same under their SGD; Adam divides a constant scale of gradients out
    own heads  joint, and a loss of each modality's own head (`task`), as braid has it
    MLA        one modality of each record at a time (`drop` 1, mean fusion) through a shared head,
               the fused vector's (`shared_head`), after Zhang et al. 2024 (arXiv 2311.10707):
               alternating records, where they alternate batches, and without their projection of
               the shared head's gradients
    G2D        own heads, which teach the fused vector's head (`Taught`), and updates scaled as in
               OGM-GE, after Rakib and Bagavathi 2025 (arXiv 2506.21514): teachers learn with the
               student, where theirs are trained before, and updates are scaled, where theirs are
               stopped

`fused` is the accuracy of the fused vector's head, `sound` and `picture` of each modality's own; in
joint and OGM-GE the own heads learn with a weight of 0.01, which Adam gives them in full and which
leaves the encoders alone. `sound - joint` is paired by recording, see `benchmarks.common`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks import data_digits
from benchmarks.av_digits import KNOWN, NAMES, config
from benchmarks.common import arguments, by_item, finish, paired
from benchmarks.data_digits import TASK, Digits, default_folder, held_out_pictures, known_split
from benchmarks.trainings import Finished, key_of, trained
from braid.encoders import Sample, TrainConfig
from braid.encoders.model.net import Net
from braid.encoders.training.batches import Batch
from braid.encoders.training.objective import Objective, Terms
from braid.encoders.types import FUSED

SNR_DB = -6.0
EPOCHS = 12
ALONE = "alone"
ALPHA = 0.5  # of 0.1 to 1 in the paper


def ways(epochs: int) -> dict[str, TrainConfig]:
    """The configuration of each row."""
    base = config({**KNOWN, "channels": 12, "noise_share": 0.0}, epochs=epochs)
    model = replace(base.model, fusion="early", dropout=0.0)
    joint = replace(
        base,
        model=model,
        task=0.01,
        align=0.0,
        drop=0.0,
        monotone=0.0,
        calibration_copies=0,
        same_label=0.0,
    )
    own = replace(joint, task=1.0)
    return {
        ALONE: own,
        "joint": joint,
        "OGM-GE": joint,
        "own heads": own,
        "MLA": replace(joint, drop=1.0, model=replace(model, fusion="mean")),
        "G2D": own,
    }


@contextmanager
def changed(way: str) -> Iterator[None]:
    """What is trained and asked inside is so in the way of that row."""
    with ExitStack() as stack:
        if way in ("OGM-GE", "G2D"):
            stack.enter_context(modulated())
        if way == "G2D":
            stack.enter_context(patch("braid.encoders.training.fit.Objective", Taught))
        if way == "MLA":
            stack.enter_context(patch.object(Net, "fused_logits", shared_head))
        yield


def shared_head(net: Net, task: str, own_BMC: Tensor, fused_BD: Tensor, kept_BM: Tensor) -> Tensor:
    """In place of `Net.fused_logits`: the fused vector's head, for a modality alone, too."""
    logits_BC: Tensor = net.heads(task, FUSED, fused_BD).float()
    return logits_BC


class Taught(Objective):
    """The loss, and the divergence of the fused vector's head from each modality's own (Hinton et
    al. 2015, arXiv 1503.02531, at temperature 1), through which no own head learns."""

    def forward(self, net: Net, batch: Batch, rng: np.random.Generator) -> Terms:
        """See `Objective.forward`."""
        terms = super().forward(net, batch, rng)
        here_BM = batch.present_BM
        unit_BMD, fused_BD = net.align(batch.features, here_BM)
        logits_BSC = net.logits(TASK, batch.features, unit_BMD, fused_BD, here_BM, here_BM)
        *own, fused_BC = logits_BSC.log_softmax(2).unbind(1)
        apart = [
            F.kl_div(fused_BC, own_BC.detach(), log_target=True, reduction="batchmean")
            for own_BC in own
        ]
        return replace(terms, loss=terms.loss + torch.stack(apart).sum())


@contextmanager
def modulated(alpha: float = ALPHA) -> Iterator[None]:
    """What is trained inside is trained by OGM-GE, without the noise ("GE") of the paper: after
    each step, the updates of each modality's encoder and projector are scaled by `scales`."""
    damped: list[tuple[nn.Parameter, Tensor, float]] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], _: object) -> None:
        if not isinstance(module, Objective):
            return
        net, batch, _rng = inputs
        damped[:] = [
            (parameter, parameter.detach().clone(), scale)
            for name, scale in zip(net.modalities, scales(net, batch, alpha), strict=True)
            for part in (net.encoder(name), net.projectors[name])
            for parameter in part.parameters()
            if scale < 1
        ]

    @torch.no_grad()
    def shrink(*_: object) -> None:
        for parameter, before, scale in damped:
            parameter.lerp_(before, 1 - scale)

    hooks = register_module_forward_hook(look), register_optimizer_step_post_hook(shrink)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def scales(net: Net, batch: Batch, alpha: float) -> list[float]:
    """Of each modality 1 - tanh(alpha rho) if rho is above 1, else 1. rho is the mean probability
    that its own head gives the true class, divided by the other modality's."""
    unit_BMD = net.units(batch.features, batch.present_BM)
    here_BM = batch.present_BM
    logits_BSC = net.logits(TASK, batch.features, unit_BMD, unit_BMD[:, 0], here_BM, here_BM)
    label_B = batch.target[TASK]
    true_BS = logits_BSC.softmax(2)[torch.arange(len(label_B)), :, label_B]
    sure_M = true_BS[:, :-1].mean(0)
    rho_M = sure_M / sure_M.flip(0)
    scale_M: list[float] = torch.where(rho_M > 1, 1 - torch.tanh(alpha * rho_M), 1.0).tolist()
    return scale_M


def data(digits: Digits, seed: int) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on, of every other recording, and those to test on."""
    (train_R, test_R), held = known_split(digits), held_out_pictures(digits)
    known, test = (
        data_digits.paired(digits, digits.images_NHW, rows, pictures, seed=of, snr_db=SNR_DB)
        for rows, pictures, of in ((train_R[::2], ~held, seed), (test_R, held, 1_000_000 + seed))
    )
    return known, test


def right(
    known: Sequence[Sample], test: Sequence[Sample], config: TrainConfig, seed: int
) -> dict[str, list[float]]:
    """Whether the decision and each source are right, sample by sample, after one training."""
    found: dict[str, list[float]] = {}
    with trained(known, config, seed) as (embedder, _):
        for sample, embedding in zip(test, embedder.embed(list(test)), strict=True):
            prediction, truth = embedding.tasks[TASK], sample.labels[TASK]
            found.setdefault("decision", []).append(float(prediction.label == truth))
            for source, output in prediction.by.items():
                name = "fused" if source == "fused" else NAMES[source]
                found.setdefault(name, []).append(float(output["label"] == truth))
    return found


def alone(
    known: Sequence[Sample], test: Sequence[Sample], config: TrainConfig, seed: int
) -> dict[str, list[float]]:
    """As `right`, each modality trained by itself."""
    found = {}
    for source, other in (("audio", "image"), ("image", "audio")):
        encoders = {source: config.model.encoders[source]}
        single = replace(config, model=replace(config.model, encoders=encoders))
        gone: dict[str, Any] = {other: None}
        sides = [[replace(sample, **gone) for sample in side] for side in (known, test)]
        found[NAMES[source]] = right(sides[0], sides[1], single, seed)[NAMES[source]]
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    names = tuple(ways(1))
    parser = arguments(__doc__, parts=names, resume=True)
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(argv)
    digits, finished = data_digits.load(options.data), Finished(options.resume)
    runs: dict[str, list[dict[str, list[float]]]] = {}
    for seed in range(options.seeds):
        known, test = data(digits, seed)
        for name, settings in ways(options.epochs).items():
            if options.part in (None, name):
                job = alone if name == ALONE else right
                with changed(name):
                    run = partial(job, known, test, settings, seed)
                    items = finished.result(key_of(name, settings, seed), run)
                runs.setdefault(name, []).append(items)
    rows: dict[str, Mapping[str, Any]] = {}
    for name, of in runs.items():
        figures: dict[str, Any] = dict(by_item(of))
        for source in (
            ("fused", "sound") if "joint" in runs and name not in (ALONE, "joint") else ()
        ):
            both = [
                {source: one[source], "joint": joint[source]}
                for one, joint in zip(of, runs["joint"], strict=True)
            ]
            figures[f"{source} - joint"] = paired(both, source, "joint")
        rows[name] = figures
    report = {"benchmark": "imbalance", "seeds": options.seeds, "epochs": options.epochs}
    return finish({**report, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
