"""The judge: compares champion and challenger metric by metric, with gates.

The records are those of the judge split (`braid.encoders.training.splits`) that neither version
nor an ancestor has learnt (`braid.encoders.model.learnt`). Differences are paired, record by
record. What decides (`braid.encoders.evaluation.verdict`): accuracy of each task (F1 of several
labels, error of a number) with all modalities of a record, and recall@10 of each direction.

Shapes: N records, n of them with what a metric needs, D the shared space, C classes, R resamples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..manifest import Manifest
from ..model.learnt import Learnt
from ..model.torch_model import TorchModel
from ..tasks import FITS, Task, is_number
from ..training.embeddings import ALL, ModelOutputs, TaskOutput, group_of, run_models
from ..training.metrics import RECALL_AT, bins_of, effective_rank, ranks
from ..training.splits import by_hash, unlearnt_records
from ..types import Label, Sample
from .bootstrap import Bootstrap, interval_of
from .gates import Gates
from .paired import Sums
from .verdict import (
    FAILED,
    LIMIT,
    TOO_LITTLE,
    decide,
    gate_result,
    paired_result,
    verdict,
)

Clock = Callable[[], float]

DECIDING_K = 10
"""recall@k of a direction that decides; the k of `Compatibility`."""


class IncompatibleChallenger(CheckpointError):
    """A challenger that cannot replace the champion, whatever its metrics."""


def check_can_replace(champion: Manifest, challenger: Manifest) -> None:
    """Check that the challenger can replace the champion.

    Raises:
        IncompatibleChallenger: a modality or a task that the champion serves is missing, or is of
            another kind.
    """
    name = challenger.name
    missing = [m for m in champion.modalities if m not in challenger.modalities]
    if missing:
        raise IncompatibleChallenger(
            f"{name} knows no {', '.join(missing)}, which {champion.name} serves"
        )
    for task, raw in champion.tasks.items():
        if task not in challenger.tasks:
            has = ", ".join(sorted(challenger.tasks)) or "none"
            raise IncompatibleChallenger(
                f"{name} lacks the task {task!r} that {champion.name} serves; it has: {has}"
            )
        kinds = Task.from_dict(raw).kind, Task.from_dict(challenger.tasks[task]).kind
        if kinds[0] != kinds[1]:
            raise IncompatibleChallenger(
                f"{name} makes of the task {task!r} a {kinds[1]}, {champion.name} a {kinds[0]}"
            )


def judge(
    champion: TorchModel,
    challenger: TorchModel,
    samples: Sequence[Sample],
    gates: Gates,
    *,
    learnt: Sequence[Learnt] = (),
    level: float | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> tuple[dict[str, Any], list[Sample], tuple[ModelOutputs, ModelOutputs] | None]:
    """Compare the challenger with the champion and decide whether it may replace it.

    Args:
        samples: any; only their judge split is used, without what is learnt.
        learnt: by the champion, the challenger and their ancestors.
        level: the error that this judgement may make; None for that of the gates.

    Returns:
        The verdict: `passed`, `decision` ("passed", "failed", "not enough evidence"), `reason`,
            `records`, `learnt` (records of the split that were left out), `level`, `power`,
            `limits`, and `gates`, see `gate_result`. Metrics with fewer than `gates.min_records`
            records are not judged; `unjudged` has their counts.
        The judged records, and the outputs of both; None if nothing was judged.

    Raises:
        IncompatibleChallenger: see `check_can_replace`.
        CheckpointError: the champion's outputs are not finite.
    """
    check_can_replace(champion.manifest, challenger.manifest)
    records, left_out = unlearnt_records(samples, learnt)
    kept, (old, new) = run_models((champion, challenger), by_hash(records, gates.most))
    count, name = len(kept), champion.name
    level = gates.level if level is None else level

    def say(decision: str, reason: str, **more: Any) -> dict[str, Any]:
        return verdict(
            decision,
            reason,
            gates,
            champion=name,
            records=count,
            learnt=left_out,
            level=level,
            **more,
        )

    if count < gates.min_records:
        reason = f"{TOO_LITTLE}: {count} judge records, the gates want {gates.min_records}"
        if left_out:
            reason += f"; {left_out} more were learnt by one of the versions or an ancestor"
        return say(TOO_LITTLE, reason), kept, None
    if not bool(old.finite.all()):
        raise CheckpointError(f"{name}, the champion, gives values that are not finite")
    wrong = int((~new.finite).sum())
    finite = gate_result("values that are not finite", 0, wrong, 0, wrong == 0, count, role=LIMIT)
    if wrong:
        reason = f"{wrong} of {count} judge records give a value that is not finite (NaN or inf)"
        return say(FAILED, reason, gate_results=[finite]), kept, None
    bootstrap = Bootstrap(count, resamples=gates.resamples, seed=seed)
    comparison = MetricComparison(old, new, kept, gates, bootstrap, level)
    comparison.scores()
    comparison.recalls()
    comparison.ranks()
    latency = latency_of(champion, challenger, kept, gates, clock)
    results = [finite, *comparison.results, latency]
    decision, reason = decide(results, comparison.short, gates, level)
    shown = say(decision, reason, gate_results=results, unjudged=comparison.unjudged)
    return shown, kept, (old, new)


@dataclass(kw_only=False)
class MetricComparison:
    """Compares the outputs of two models metric by metric and collects the gates' results.

    Attributes:
        level: the error that the judgement may make.
        unjudged: the records of metrics that have too few; `short`: those of primary metrics, if
            there are some.
    """

    old: ModelOutputs
    new: ModelOutputs
    samples: Sequence[Sample]
    gates: Gates
    bootstrap: Bootstrap
    level: float
    results: list[dict[str, Any]] = field(default_factory=list)
    unjudged: dict[str, int] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)

    def better(
        self,
        metric: str,
        old_N: Tensor,
        new_N: Tensor,
        known_N: Tensor,
        margin: float,
        *,
        primary: bool,
        falls: bool = False,
    ) -> None:
        """A gate on a mean over records; `falls`: lower is better."""
        if self._enough(metric, known_N) is None:
            if primary and (count := int(known_N.sum())):
                self.short[metric] = count
            return
        old_n, new_n = old_N[known_N], new_N[known_N]
        gain = Sums.of(old_n - new_n if falls else new_n - old_n)
        level = self.level if primary else None
        before, after = float(old_n.mean()), float(new_n.mean())
        self.results.append(
            paired_result(metric, before, after, gain, margin, falls=falls, level=level)
        )

    def scores(self) -> None:
        """Gates on every task under every subset, and on the decision's calibration."""
        for name, task in self.old.tasks.items():
            if name not in self.old.task_outputs:  # captions
                continue
            kind, metric = _METRICS[task.kind]
            margin = self.gates.error if kind is _error else self.gates.accuracy
            truth = [sample.labels.get(name) for sample in self.samples]
            known_N = torch.tensor([FITS[task.kind](label) for label in truth])
            for subset in self.old.task_outputs[name]:
                both_N = known_N & self.old.has(subset) & self.new.has(subset)
                old_N, new_N = (
                    kind(
                        outputs.tasks[name], outputs.task_outputs[name][subset], truth, task.spread
                    )
                    for outputs in (self.old, self.new)
                )
                self.better(
                    f"{metric} {name}: {subset}",
                    old_N,
                    new_N,
                    both_N,
                    margin,
                    primary=subset == ALL,
                    falls=kind is _error,
                )
            if task.kind == "classification":
                self.calibration(name, truth, known_N)

    def calibration(self, name: str, truth: Sequence[Label | None], known_N: Tensor) -> None:
        """The gate on the calibration error of the decision, with all modalities of each record."""
        metric = f"calibration error {name}"
        if (records := self._enough(metric, known_N)) is None:
            return
        errors, drawn = [], []
        for outputs in (self.old, self.new):
            right_N = _right(outputs.tasks[name], outputs.task_outputs[name][ALL], truth, 1.0)
            confidence_N = outputs.task_outputs[name][ALL].probs_NC.max(1).values
            gap_N, bin_N = right_N - confidence_N, bins_of(confidence_N)
            drawn.append(self.bootstrap.calibration_error(gap_N, bin_N, known_N))
            sums_K = torch.zeros(int(bin_N.max()) + 1).index_add(
                0, bin_N[known_N], gap_N[known_N].float()
            )
            errors.append(float(sums_K.abs().sum()) / records)
        low, high = interval_of(drawn[1] - drawn[0])
        limit = self.gates.calibration
        self.results.append(
            gate_result(metric, errors[0], errors[1], limit, low <= limit, records, (low, high))
        )

    def recalls(self) -> None:
        """recall@k of every directed pair of modalities."""
        group_N = group_of(self.samples)
        for left, right in permutations(self.old.modalities, 2):
            both_N = self.old.has(f"{left}+{right}") & self.new.has(f"{left}+{right}")
            rank = []
            for outputs in (self.old, self.new):
                rank_N = torch.full((len(both_N),), 1 << 30)
                rank_N[both_N] = ranks(
                    outputs.by[left][both_N], outputs.by[right][both_N], group_N[both_N]
                )
                rank.append(rank_N)
            for k in RECALL_AT:
                old_N, new_N = ((rank_N < k).float() for rank_N in rank)
                metric, primary = f"recall@{k} {left}->{right}", k == DECIDING_K
                self.better(metric, old_N, new_N, both_N, self.gates.recall, primary=primary)

    def ranks(self) -> None:
        """The effective rank of the fused vectors and of each modality's."""
        for name in (ALL, *self.old.modalities):
            here_N = self.old.has(name)
            metric = f"effective rank {'fused' if name == ALL else name}"
            if (records := self._enough(metric, here_N)) is None:
                continue
            before, after = (
                effective_rank((outputs.fused[ALL] if name == ALL else outputs.by[name])[here_N])
                for outputs in (self.old, self.new)
            )
            least = self.gates.rank * before
            self.results.append(gate_result(metric, before, after, least, after >= least, records))

    def _enough(self, metric: str, known_N: Tensor) -> int | None:
        """The number of records that a metric has; None, and noted as unjudged: too few."""
        records = int(known_N.sum())
        if records >= self.gates.min_records:
            return records
        self.unjudged[metric] = records
        return None


def latency_of(
    champion: TorchModel,
    challenger: TorchModel,
    samples: Sequence[Sample],
    gates: Gates,
    clock: Clock,
) -> dict[str, Any]:
    """Milliseconds to embed a record, including `prepare`, in alternating rounds.

    Other load on the machine may slow either of the two. So the gate compares the ratio within each
    round, and fails only if the whole 95 % interval of its median (bootstrap over the rounds) is
    beyond the limit. A first round warms up.
    """
    batch = samples[: gates.batch]
    spent: tuple[list[float], list[float]] = ([], [])
    for round_ in range(gates.rounds + 1):
        turns = list(zip((champion, challenger), spent, strict=True))
        for model, times_ms in turns if round_ % 2 else turns[::-1]:
            begun = clock()
            model.encode([model.prepare(sample) for sample in batch])
            seconds = clock() - begun
            if round_:
                times_ms.append(1000.0 * seconds / len(batch))
    before, after = (float(np.median(times_ms)) for times_ms in spent)
    ratio_K = np.array(spent[1]) / np.array(spent[0])
    chosen_RK = np.random.default_rng(0).integers(len(ratio_K), size=(1000, len(ratio_K)))
    low, high = np.quantile(np.median(ratio_K[chosen_RK], axis=1), (0.025, 0.975)).tolist()
    return gate_result(
        "embed ms a record",
        before,
        after,
        gates.latency * before,
        low <= gates.latency,
        len(batch),
        ((low - 1) * before, (high - 1) * before),
        role=LIMIT,
    )


def _right(task: Task, output: TaskOutput, truth: Sequence[Label | None], spread: float) -> Tensor:
    """1 where the predicted class is the label, else 0; also 0 for labels that the version does not
    know."""
    return torch.tensor(
        [
            float(task.classes[int(d)] == label)
            for d, label in zip(output.decided_N, truth, strict=True)
        ]
    )


def _labels(task: Task, output: TaskOutput, truth: Sequence[Label | None], spread: float) -> Tensor:
    """F1 of each record's labels; 1 if there are none and none is predicted."""
    f1_scores = []
    for decided_C, label in zip(output.decided_N, truth, strict=True):
        chosen = {one for one, here in zip(task.classes, decided_C.tolist(), strict=True) if here}
        true_labels = set(label) if isinstance(label, (list, tuple)) else set()
        total = len(chosen) + len(true_labels)
        f1_scores.append(2.0 * len(chosen & true_labels) / total if total else 1.0)
    return torch.tensor(f1_scores)


def _error(task: Task, output: TaskOutput, truth: Sequence[Label | None], spread: float) -> Tensor:
    """Absolute error, in standard deviations of the champion's task."""
    value_N = task.mean + task.spread * output.decided_N
    true_N = torch.tensor([float(v) if is_number(v) else 0.0 for v in truth])
    return (value_N - true_N).abs() / spread


_METRICS: dict[
    str, tuple[Callable[[Task, TaskOutput, Sequence[Label | None], float], Tensor], str]
] = {
    "classification": (_right, "accuracy"),
    "multilabel": (_labels, "F1"),
    "regression": (_error, "error"),
}
