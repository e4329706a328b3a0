"""Compares two versions on records of one's own, before any is embedded anew.

Neither has to serve, and they may come from different sources: what both have is compared, tasks
and directions of retrieval, on the records that neither nor an ancestor of it has learnt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import BadInput
from ..model.learnt import Learnt
from ..model.torch_model import TorchModel
from ..training.embeddings import ALL, ModelOutputs, run_models
from ..training.splits import by_hash, unlearnt_records
from ..types import Sample
from .bootstrap import Bootstrap
from .gates import Gates
from .judge import Clock, MetricComparison, latency_of
from .paired import REFUSAL
from .verdict import PRIMARY

LOWER_IS_BETTER = ("error ", "calibration error ")
"""How the names of such metrics begin."""


def compare(
    first: TorchModel,
    second: TorchModel,
    samples: Sequence[Sample],
    *,
    learnt: Sequence[Learnt] = (),
    gates: Gates | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Measure both versions on the same records.

    Args:
        samples: any; what is `learnt` is left out.
        learnt: by the versions and their ancestors.
        gates: `min_records` that a metric needs, `most` that are used, `rounds` of the time.
        seed: of the bootstrap.

    Returns:
        Plain JSON: `records`, `learnt` (records left out), `unlike` (modalities and tasks that are
            not compared, since not both have them), `metrics`, `unmeasured` (metric to records,
            where they are too few) and `ms` (of each version, to embed a record on this machine).
            A metric has `first`, `second`, `difference` (second - first), its 95 % `interval`,
            `better` ("first", "second", or None where the interval holds 0) and `deciding`.

    Raises:
        BadInput: no record is left, or the versions have no modality in common.
    """
    gates = gates or Gates()
    unlearnt, left_out = unlearnt_records(samples, learnt, name=None)
    kept, outputs = run_models((first, second), by_hash(unlearnt, gates.most))
    if not kept:
        raise BadInput("records", f"none is left of {len(samples)}, {left_out} were learnt")
    old, new = outputs
    modalities = tuple(name for name in old.modalities if name in new.modalities)
    if not modalities:
        raise BadInput("modalities", f"{first.name} and {second.name} have none in common")
    tasks = [
        name
        for name, task in old.tasks.items()
        if name in new.tasks and new.tasks[name].kind == task.kind
    ]
    bootstrap = Bootstrap(len(kept), resamples=gates.resamples, seed=seed)
    shared = [_shared(each, modalities, tasks) for each in (old, new)]
    comparison = MetricComparison(shared[0], shared[1], kept, gates, bootstrap, REFUSAL)
    comparison.scores()
    comparison.recalls()
    speed = latency_of(first, second, kept, gates, clock)
    return {
        "first": first.name,
        "second": second.name,
        "records": len(kept),
        "learnt": left_out,
        "unlike": sorted(
            {*old.modalities, *new.modalities, *old.tasks, *new.tasks} - {*modalities, *tasks}
        ),
        "metrics": [_metric(gate) for gate in comparison.results],
        "unmeasured": comparison.unjudged,
        "ms": {"first": speed["champion"], "second": speed["challenger"]},
    }


def _shared(
    outputs: ModelOutputs, modalities: tuple[str, ...], tasks: Sequence[str]
) -> ModelOutputs:
    """The outputs without the modalities and tasks that only one version has."""
    return replace(
        outputs,
        modalities=modalities,
        tasks={name: outputs.tasks[name] for name in tasks},
        present_NM=outputs.present_NM[:, [outputs.modalities.index(name) for name in modalities]],
        task_outputs={
            name: {
                subset: output
                for subset, output in by_subset.items()
                if subset == ALL or {*subset.split("+")} <= {*modalities}
            }
            for name, by_subset in outputs.task_outputs.items()
            if name in tasks
        },
    )


def _metric(gate: Mapping[str, Any]) -> dict[str, Any]:
    low, high = gate["interval"]
    if gate["metric"].startswith(LOWER_IS_BETTER):
        low, high = -high, -low
    return {
        "metric": gate["metric"],
        "first": gate["champion"],
        "second": gate["challenger"],
        "difference": gate["difference"],
        "interval": gate["interval"],
        "records": gate["records"],
        "better": "second" if low > 0 else "first" if high < 0 else None,
        "deciding": gate["role"] == PRIMARY,
    }
