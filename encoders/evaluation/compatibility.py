"""Decides whether a challenger stays in the champion's space, by recall across versions.

    R = min(new queries -> old vectors, new queries -> a gallery half old, half new) / (old -> old)

is measured on the judge records (`braid.encoders.evaluation.cross_version_recall`). The space stays
and nothing is embedded again if three values are within their limits: R (by the lower end of its
interval), the share of old vectors among the first k hits of the mixed gallery, and the recall lost
against a space of the challenger's own.

Else adapters are fitted on the training records and measured in the same way. Of each kind one maps
the new model's vectors into the old space (stored vectors do not change), and one maps stored
vectors into the new space. If none passes, the challenger gets a new space.

Shapes: N records, n of them in a direction, D the shared space.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.adapter import FILE, Adapter
from ..model.torch_model import TorchModel
from ..training.embeddings import ALL, ModelOutputs, group_of, run_models
from ..training.splits import records_of
from ..types import Sample
from .bootstrap import Bootstrap
from .cross_version_recall import CrossVersionRecall, cross_version_recall
from .fit_adapter import fit_adapter
from .gates import Compatibility

SAME, ADAPTER, NEW = "same space", "adapter", "new space"
QUERIES, STORED = "the new model's vectors", "stored vectors"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen space.

    Attributes:
        report: for the manifest; plain JSON.
        space: the space to declare.
        adapter: of the choice "adapter".
    """

    report: Mapping[str, Any]
    space: str
    adapter: Adapter | None = None


def mapped(outputs: ModelOutputs, adapter: Adapter) -> ModelOutputs:
    """The outputs with every vector mapped by the adapter."""
    return replace(
        outputs,
        by={name: adapter(vectors_ND) for name, vectors_ND in outputs.by.items()},
        fused={name: adapter(vectors_ND) for name, vectors_ND in outputs.fused.items()},
    )


def same_space(champion: TorchModel, limits: Compatibility) -> Choice:
    """The choice if encoders, projections and fusion are unchanged; nothing is measured."""
    report = {"champion": champion.name, "limits": _plain(limits), "tried": []}
    return _choice(report, SAME, champion.space, "encoders, projections and fusion are unchanged")


def new_space(champion: TorchModel, challenger: TorchModel, reason: str) -> Choice:
    """The choice of a new space without measurement."""
    return _choice({"champion": champion.name, "tried": []}, NEW, challenger.space, reason)


def _choice(report: Mapping[str, Any], choice: str, space: str, reason: str) -> Choice:
    return Choice(
        report={**report, "choice": choice, "space": space, "reason": reason}, space=space
    )


def choose_space(
    champion: TorchModel,
    challenger: TorchModel,
    judged: Sequence[Sample],
    pair: tuple[ModelOutputs, ModelOutputs],
    samples: Sequence[Sample],
    limits: Compatibility,
    *,
    min_records: int = 30,
    resamples: int = 2000,
    seed: int = 0,
) -> Choice:
    """Same space, adapter or new space.

    Args:
        judged, pair: the judge records, and the outputs of champion and challenger for them.
        samples: adapters are fitted on those of the train split.
    """
    comparison = _SpaceComparison(
        old=pair[0],
        new=pair[1],
        group_N=group_of(judged),
        limits=limits,
        min_records=min_records,
        seed=seed,
        bootstrap=Bootstrap(len(judged), resamples=resamples, seed=seed),
    )
    if not comparison.base.known:
        reason = f"no direction has {min_records} judge records"
        return new_space(champion, challenger, f"not enough evidence: {reason}")
    report: dict[str, Any] = {
        "champion": champion.name,
        "records": len(judged),
        "limits": _plain(limits),
        "old_to_old": _round(comparison.base.recall("old")),
        "new_to_new": _round(comparison.base.recall("new")),
        "directions": {name: comparison.numbers(name) for name in comparison.base.known},
    }
    tried = [comparison.entry(SAME, comparison.base)]
    adapted: tuple[Adapter, str] | None = None
    if not tried[0]["passed"]:
        adapted = _adapters(champion, challenger, samples, comparison, tried)
    tried.append(
        {
            "choice": NEW,
            "recall": report["new_to_new"],
            "cost": _round(comparison.best - comparison.base.recall("new")),
            "passed": True,
            "re_embedded": "every record",
        }
    )
    report["tried"] = tried
    if tried[0]["passed"]:
        reason = f"R {tried[0]['ratio']:.3f}, at least {tried[0]['interval'][0]:.3f}"
        reason += f", share of old {tried[0]['share']:.3f}"
        return _choice(report, SAME, champion.space, reason)
    if adapted is None:
        reason = "neither as it is nor through an adapter are the limits reached"
        return _choice(report, NEW, challenger.space, reason)
    adapter, maps = adapted
    applied = maps == QUERIES
    spaces = (challenger.space, champion.space)
    here, there = spaces if applied else spaces[::-1]
    report["adapter"] = {
        "kind": adapter.kind,
        "file": FILE,
        "maps": maps,
        "applied": applied,
        "from": here,
        "to": there,
    }
    reason = f"{adapter.kind} on {maps} reaches the limits"
    return replace(_choice(report, ADAPTER, there, reason), adapter=adapter)


def _adapters(
    champion: TorchModel,
    challenger: TorchModel,
    samples: Sequence[Sample],
    comparison: _SpaceComparison,
    tried: list[dict[str, Any]],
) -> tuple[Adapter, str] | None:
    """The first adapter that passes, and what it maps. Each result is appended to `tried`."""
    limits = comparison.limits
    known = records_of(samples, "train", limits.pairs) if limits.adapters else []
    _, (old, new) = run_models((champion, challenger), known, predict=False)
    old_nD, new_nD = pairs(old, new)
    if len(old_nD) == 0:
        return None
    spare: tuple[Adapter, str] | None = None
    for kind in limits.adapters:
        begun = time.perf_counter()
        forth = fit_adapter(kind, new_nD, old_nD, limits, comparison.seed)
        back = fit_adapter(kind, old_nD, new_nD, limits, comparison.seed)
        seconds = round(time.perf_counter() - begun, 3)
        there = comparison.cross(mapped(comparison.new, forth))
        here = comparison.cross(comparison.new, back)
        for measured, maps in ((there, QUERIES), (here, STORED)):
            entry = comparison.entry(ADAPTER, measured, kind=kind, maps=maps)
            tried.append({**entry, "pairs": len(old_nD), "seconds": seconds})
        if tried[-2]["passed"]:
            return forth, QUERIES
        if limits.stored and tried[-1]["passed"] and spare is None:
            spare = back, STORED
    return spare


def pairs(old: ModelOutputs, new: ModelOutputs) -> tuple[Tensor, Tensor]:
    """The same records' vectors of both versions, float[n, D] each: of each modality, and the fused
    one of all modalities of a record."""
    left, right = [], []
    for name in (*old.modalities, ALL) if old.by else ():
        here_N = old.has(name) & new.has(name)
        left.append((old.fused[ALL] if name == ALL else old.by[name])[here_N])
        right.append((new.fused[ALL] if name == ALL else new.by[name])[here_N])
    if not left:
        return torch.zeros(0, 0), torch.zeros(0, 0)
    return torch.cat(left), torch.cat(right)


@dataclass(kw_only=True)
class _SpaceComparison:
    """Measures each choice on the judge records."""

    old: ModelOutputs
    new: ModelOutputs
    group_N: Tensor
    limits: Compatibility
    min_records: int
    seed: int
    bootstrap: Bootstrap

    def __post_init__(self) -> None:
        self.base = self.cross(self.new)
        self.best = max(self.base.recall("new"), self.base.recall("mixed"))

    def cross(
        self, new: ModelOutputs, stored: Callable[[Tensor], Tensor] | None = None
    ) -> CrossVersionRecall:
        """See `cross_version_recall`."""
        return cross_version_recall(
            self.old,
            new,
            self.group_N,
            k=self.limits.k,
            min_records=self.min_records,
            stored=stored,
            seed=self.seed,
        )

    def entry(self, choice: str, measured: CrossVersionRecall, **more: Any) -> dict[str, Any]:
        """One choice with its figures. `recall` is that of new queries in the mixed gallery; `cost`
        is the recall lost against the new model in its own space, or as it is if that is better."""
        limits = self.limits
        cost = self.best - measured.recall("mixed")
        interval = measured.interval(self.bootstrap)
        checks = {
            "ratio": interval[0] >= limits.ratio,
            "share": abs(measured.share - 0.5) <= limits.even,
            "cost": cost <= limits.cost,
        }
        return {
            "choice": choice,
            **more,
            "ratio": _round(measured.ratio),
            "interval": [_round(value) for value in interval],
            "new_to_old": _round(measured.recall("cross")),
            "recall": _round(measured.recall("mixed")),
            "share": _round(measured.share),
            "cost": _round(cost),
            "passed": all(checks.values()),
            "failed": [name for name, fine in checks.items() if not fine],
            "re_embedded": "none",
        }

    def numbers(self, name: str) -> dict[str, float]:
        """A direction's recalls without an adapter."""
        here_N = self.base.known[name]
        recalls = {way: float(hits[name][here_N].mean()) for way, hits in self.base.hits.items()}
        return {
            **{way: _round(value) for way, value in recalls.items()},
            "records": int(here_N.sum()),
        }


def _round(value: float) -> float:
    return round(value, 6) if np.isfinite(value) else 0.0


def _plain(limits: Compatibility) -> dict[str, Any]:
    return {**asdict(limits), "adapters": list(limits.adapters)}
