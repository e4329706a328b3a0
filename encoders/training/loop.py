"""Training of a version: read, fit, decide, evaluate, write. Seeded; non-finite steps are refused.

The steps are in `braid.encoders.training.fit`, the joint loss in `objective`, its gradient in
`step`.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import torch
from torch import Tensor

from ..backbones.sub_batches import one_thread
from ..config import TrainConfig, from_dict
from ..errors import TrainingError
from ..further import merged, unlike
from ..manifest import Manifest, digest, read_manifest
from ..model.checkpoint import make_net, restore_net, save, verify
from ..model.frozen_queries import HeldOut
from ..model.learnt import Learnt
from ..model.net import Net
from ..model.torch_model import TorchModel
from ..model.zero_shot import ZeroShot
from ..output_statistics import TaskTally
from ..types import Examination, Examine, Sample
from . import low_rank, parallel
from .data import Dataset, Progress, gather
from .decisions import (
    MAX_FOLDS,
    TaskLogits,
    fit_decisions,
    folds_of,
    groups_of,
    logits_of,
    together,
)
from .encoded import old_vectors, tally
from .evaluate import evaluate
from .fit import fit
from .resume import FitResult
from .start import carried, start_projectors

DECISIONS = "_decisions."  # how their parameters' names begin


def train(
    samples: Iterable[Sample],
    config: TrainConfig,
    *,
    out: Path,
    name: str,
    version: int,
    seed: int,
    parent: Path | None = None,
    heads_only: bool = False,
    window: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    device: str | None = None,
    resume: Path | None = None,
    champion: Path | None = None,
    examine: Examine | None = None,
    shared: bool = False,
    queries: int = 200,
) -> Manifest:
    """Train on `samples` and write the version folder `out`.

    Args:
        samples: in any order, of which the last of a repeated id counts; split by
            `braid.encoders.training.splits`. Kept in memory if they can be read only once.
        name, version: of the new version.
        seed: of all randomness. On a CPU the same call gives the same version, bit for bit on the
            same processor; on a GPU up to rounding, since the order of its sums varies.
        device: as torch names it; CUDA where there is some by default. Under `torchrun` "cuda" is
            each process's own GPU.
        parent: version folder to start from, with a model configuration whose weights fit
            (`braid.encoders.further.unlike`). Its zero-shot tasks that no labels train stay
            zero-shot, with the new vectors of their class names.
        heads_only: keep the parent's encoders, projectors and fusion, and so its space; only
            heads and decisions are trained. The model configuration is then the parent's.
        window: where the samples came from; kept in the manifest.
        progress: called with (stage, done, total, figures); stages are "read", "train",
            "evaluate", "refit" and "write".
        resume: a folder for the state after each epoch, from which the same call resumes after a
            crash, with the same losses; removed when the version is written.
        champion: the version whose vectors `config.compatible` refers to; None for the parent.
        examine: called with the finished version before it is published, and all samples (those of
            the judge split too). Its result goes into the manifest. See
            `braid.encoders.evaluation.examine.examiner`. Its stage is "examine".
        shared: under `torchrun`, each process is given its own samples, and reads only those.
        queries: held-out samples, with their texts and files, that are kept in the version to
            compare engines on (`braid.encoders.model.frozen_queries`); 0: none.

    Under `torchrun` the processes train one model together (`braid.encoders.training.parallel`),
    and the first one writes it.

    Raises:
        TrainingError: nothing to train on, a parent or champion that does not fit, a step or an
            output that is not finite. Nothing is written then.
        CheckpointError: a damaged parent or champion, or `out` exists.
    """
    notify: Progress = progress or (lambda stage, done, total, figures: None)
    place = parallel.own_device(device)
    with (
        torch.random.fork_rng(range(torch.cuda.device_count())),
        one_thread(place.type == "cpu" and config.one_core),
        parallel.processes(place) as (rank, size),
    ):
        torch.manual_seed(seed)
        if not isinstance(samples, Sized):  # they are read again
            samples = list(samples)
        samples = cast(Sequence[Sample], samples)
        config, net, theirs = _initial_net(config, parent, heads_only)
        before = None if parent is None else net.space()
        if net.config != config.model:
            net = carried(net, config.model)
        if not heads_only:
            low_rank.add(net, config.model)
        net = net.to(place)
        held_out = HeldOut(queries)
        data = gather(
            samples,
            net,
            config,
            all_frozen=heads_only,
            device=place,
            progress=notify,
            shared=shared and size > 1,
            held_out=held_out,
        )
        if config.compatible > 0 and not heads_only:
            data.old_NSD = old_vectors(champion or parent, net, data, place)
        zero_shot = _zero_shot(theirs, data, config)
        net.new_heads(data.tasks)
        net = net.to(place)
        held = data.rows("validation")
        run = _Run(
            net=net,
            data=data,
            config=config,
            seed=seed,
            heads_only=heads_only,
            warm=parent is not None,
            device=place,
            notify=notify,
            state=None
            if resume is None
            else resume / _run_key(config, net, data, seed, heads_only),
            rank=rank,
        )
        start = copy.deepcopy(net.state_dict()) if config.refit else {}
        fitted, logits = run.held_out(start)
        notify("evaluate", 0, 1, {})
        metrics: dict[str, Any] = {"seed": seed, **fitted.to_dict()}
        metrics["left_out"] = dict(data.left_out)
        metrics["train_samples"] = len(data.rows("train"))
        unlearnt: dict[str, TaskTally] = {}
        if len(held) > 0:
            fit_decisions(net, logits)
            metrics["validation"] = evaluate(net, data, held, place, logits)
            # Before the refit, which trains on them and raises their confidence.
            unlearnt = tally(net, data, held, place).tasks
        notify("evaluate", 1, 1, {})
        if config.refit and len(held) > 0:
            decided = {k: v for k, v in net.state_dict().items() if k.startswith(DECISIONS)}
            net.load_state_dict({**start, **decided})
            again = run.fit(
                data, replace(config, epochs=fitted.best or config.epochs, patience=0), "refit"
            )
            metrics["refit"] = again.to_dict()
        notify("write", 0, 1, {})
        low_rank.merge(net, config.model)
        if zero_shot is not None:
            zero_shot.add_to(net)
            metrics |= zero_shot.metrics()
        if rank == 0:

            def examined(draft: Path) -> Examination:
                assert examine is not None
                notify("examine", 0, 1, {})
                examination = examine(draft, samples)
                notify("examine", 1, 1, {})
                return examination

            try:
                manifest = save(
                    net,
                    out,
                    config=merged(config),
                    name=name,
                    version_number=version,
                    parent=None if theirs is None else theirs.name,
                    window=window,
                    metrics=metrics,
                    unchanged_from=parent if before is not None and net.space() == before else None,
                    examine=None if examine is None else examined,
                    reference=_reference(data, held, place, unlearnt, zero_shot),
                    queries=held_out.samples(),
                    learnt=_learnt(data, parent, champion if config.compatible > 0 else None),
                )
            except FloatingPointError as error:
                raise TrainingError(f"{error}; refused, no version is written") from error
            if run.state is not None:
                shutil.rmtree(run.state, ignore_errors=True)
        if size > 1:
            torch.distributed.barrier()
        if rank > 0:
            manifest = read_manifest(out)
        notify("write", 1, 1, {})
        return manifest


@dataclass(kw_only=True)
class _Run:
    """The trainings of one call of `train`.

    Attributes:
        warm: whether `net` is a parent's.
        state: folder of the states from which they resume.
    """

    net: Net
    data: Dataset
    config: TrainConfig
    seed: int
    heads_only: bool
    warm: bool
    device: torch.device
    notify: Progress
    state: Path | None
    rank: int

    def fit(
        self,
        data: Dataset,
        config: TrainConfig,
        stage: str,
        *,
        warm: bool | None = None,
        notify: Progress | None = None,
    ) -> FitResult:
        """Train `net` as it is; a refit on all samples, else on the train split."""
        splits = ("train", "validation") if stage == "refit" else ("train",)
        warm = self.warm if warm is None else warm
        return fit(
            self.net,
            data,
            config,
            splits=splits,
            warm=start_projectors(self.net, data, config, splits, learnt=warm),
            seed=self.seed,
            heads_only=self.heads_only,
            progress=notify or self.notify,
            stage="refit" if stage == "refit" else "train",
            resume=None if self.state is None else self.state / f"{stage}-{self.rank}",
        )

    def held_out(self, start: Mapping[str, Tensor]) -> tuple[FitResult, dict[str, TaskLogits]]:
        """Train without the validation samples; the logits of samples that were left out.

        Args:
            start: the state that a refit begins with.
        """
        held = self.data.rows("validation")
        fold_N = folds_of(self.data, self.config.folds, self.seed)
        frozen = all(column.features_nF is not None for column in self.data.columns.values())
        if frozen and self.config.refit and self.config.patience == 0 and fold_N is not None:
            return self._folds(start, fold_N)
        fitted = self.fit(self.data, self.config, "train")
        if len(held) == 0:
            return fitted, {}
        return fitted, logits_of(
            self.net,
            self.data,
            held,
            groups_of(self.data, held, MAX_FOLDS, self.seed),
            self.device,
            copies=self.config.calibration_copies,
            seed=self.seed,
        )

    def _folds(
        self, start: Mapping[str, Tensor], fold_N: Tensor
    ) -> tuple[FitResult, dict[str, TaskLogits]]:
        """One training without each fold. The last, without the validation samples, stays."""
        again = self.warm and not self.heads_only
        if again:  # the parent's projectors and fusion have learnt the samples
            encoders = {name: self.net.encoder(name) for name in self.net.modalities}
            fresh = Net(self.config.model, encoders, self.data.tasks).to(self.device)
            for name in self.config.model.bridged:  # their maps are fitted to captions
                fresh.projectors[name].load_state_dict(self.net.projectors[name].state_dict())
            start = copy.deepcopy(fresh.state_dict())
        folds = int(fold_N.max()) + 1
        parts: list[dict[str, TaskLogits]] = []
        for fold in range(folds):
            self.net.load_state_dict(start)
            left_N = fold_N == fold
            data = self.data.without(left_N)

            def told(
                stage: str, done: int, total: int, figures: Mapping[str, float], fold: int = fold
            ) -> None:
                self.notify(stage, fold * total + done, folds * total, figures)

            warm = self.warm and not again
            fitted = self.fit(data, self.config, f"fold{fold}", warm=warm, notify=told)
            rows = torch.nonzero(left_N).flatten()
            parts.append(logits_of(self.net, data, rows, fold_N[rows], self.device, seed=self.seed))
        return fitted, {name: together([part[name] for part in parts]) for name in parts[0]}


def _run_key(config: TrainConfig, net: Net, data: Dataset, seed: int, heads_only: bool) -> str:
    """The name of a run's state: a hash of configuration, seed, initial weights and data (contents,
    labels, the champion's vectors)."""
    labels = {name: crc32(target.numpy().tobytes()) for name, target in data.target.items()}
    pull = "" if data.old_NSD is None else data.old_NSD.double().sum().item()
    about = [data.ids, data.content, {n: t.to_dict() for n, t in data.tasks.items()}, labels, pull]
    return digest([config.to_dict(), seed, heads_only, net.space(), *about], 16)


def _learnt(data: Dataset, *before: Path | None) -> Learnt | None:
    """What a version has learnt from `data` and from the versions `before`; None: unknown."""
    learnt = data.learnt
    for folder in before:
        if folder is not None:
            more = Learnt.read(folder, read_manifest(folder))
            if more is None:
                return None
            learnt |= more
    return learnt


def _zero_shot(theirs: Manifest | None, data: Dataset, config: TrainConfig) -> ZeroShot | None:
    """The parent's zero-shot tasks that no labels train; None: it has none.

    Raises:
        TrainingError: their heads would not be on vectors of the shared space.
    """
    zero_shot = None if theirs is None else ZeroShot.of(theirs)
    if zero_shot is None:
        return None
    zero_shot = zero_shot.but(data.tasks)
    if zero_shot.tasks and config.model.heads_on != "unit":
        raise TrainingError(
            f'model.heads_on must be "unit", is {config.model.heads_on!r}: the zero-shot tasks '
            f"{', '.join(zero_shot.tasks)} compare vectors with those of their class names"
        )
    return zero_shot


def _reference(
    data: Dataset,
    held: Tensor,
    place: torch.device,
    tasks: dict[str, TaskTally],
    zero_shot: ZeroShot | None,
) -> Callable[[TorchModel], Mapping[str, Any]] | None:
    """A function that makes a manifest's `reference`: served vectors, `tasks`, zero-shot tasks."""
    if len(held) == 0:
        return None
    unlearnt = {} if zero_shot is None else zero_shot.tasks

    def make_reference(model: TorchModel) -> Mapping[str, Any]:
        statistics = tally(model.net, data, held, place, served=model.served, tasks=bool(unlearnt))
        statistics.tasks = {name: statistics.tasks[name] for name in unlearnt} | tasks
        return statistics.to_plain()

    return make_reference


def _initial_net(
    config: TrainConfig, parent: Path | None, heads_only: bool
) -> tuple[TrainConfig, Net, Manifest | None]:
    if parent is None:
        if heads_only:
            raise TrainingError("training only the heads needs a parent version")
        return config, make_net(config, {}), None
    manifest = verify(parent)
    theirs = from_dict(manifest.config)
    if heads_only:
        kept = replace(
            theirs.model,
            decision=config.model.decision,
            head_dropout=config.model.head_dropout,
        )
        config = replace(config, model=kept)
    elif why := unlike(theirs.model, config.model):
        raise TrainingError(f"{manifest.name} has another model configuration: {why}")
    return config, restore_net(parent, manifest), manifest
