"""May a challenger live in the champion's space? Measured by searching across versions.

    R = min(new queries -> old vectors, new queries -> a gallery half old, half new) / (old -> old)

each the mean recall@k over all served directions: every subset of modalities asks for every single
modality outside of it, and for the fused vector of all outside of it (a query's own modality is
left out of the target). The mixed gallery is measured twice, the halves exchanged, so that which
records are old does not matter; the share of old vectors among the first k must be about a half: a
version that prefers its own kind would bury the others.

With R and the share in their limits, and no more recall lost against a space of its own than
allowed, the space stays and nothing is embedded again. Else adapters
are fitted on records that both versions may learn from, and measured in the same way: first those
that map the new model's vectors into the old space (nothing stored changes), and beside each the
one that maps stored vectors into the new space. Else the space is a new one.

Shapes: N records, n of them in a direction, D the shared space, R resamples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.adapter import FILE, Adapter
from ..model.torch_model import TorchModel
from ..training.embeddings import ALL, ModelOutputs, group_of, run_models
from ..training.metrics import ranks
from ..training.splits import split
from ..types import FUSED, Sample
from .bootstrap import Bootstrap, interval_of
from .fit_adapter import fit_adapter
from .gates import Compatibility

SAME, ADAPTER, NEW = "same space", "adapter", "new space"
QUERIES, STORED = "the new model's vectors", "stored vectors"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was decided.

    Attributes:
        report: for the manifest; plain JSON.
        space: the space to declare.
        adapter: of the choice "adapter".
    """

    report: Mapping[str, Any]
    space: str
    adapter: Adapter | None = None


def directions(modalities: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(name, query subset, target): the target is a modality, or a subset whose fused vector it is.

    One modality alone can only find itself.
    """
    for size in range(1, len(modalities)):
        for query in combinations(modalities, size):
            others = [name for name in modalities if name not in query]
            asked, rest = "+".join(query), "+".join(others)
            for other in others:
                yield f"{asked}->{other}", asked, other
            yield f"{asked}->{FUSED}", asked, f"{FUSED} {rest}"
    if len(modalities) == 1:
        yield f"{modalities[0]}->{modalities[0]}", modalities[0], modalities[0]


def target_of(outputs: ModelOutputs, target: str) -> Tensor:
    """The stored vectors of a direction, float[N, D]."""
    kind, _, rest = target.partition(" ")
    return outputs.fused[rest] if rest else outputs.by[kind]


@dataclass(kw_only=True)
class CrossVersionRecall:
    """Recall across versions, record by record.

    Attributes:
        hits: way ("old", "new", "cross", "mixed") to direction to float[N]: found among the first
            k; in "mixed" the mean of the two galleries.
        known: direction to which records have it, bool[N].
        share: of old vectors among the first k of the mixed galleries.
    """

    hits: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    known: dict[str, Tensor] = field(default_factory=dict)
    share: float = 0.5

    def recall(self, way: str) -> float:
        """The mean over the directions."""
        means = [float(hit_N[self.known[name]].mean()) for name, hit_N in self.hits[way].items()]
        return float(np.mean(means)) if means else 0.0

    @property
    def ratio(self) -> float:
        """R; 0 where the old version finds nothing."""
        old = self.recall("old")
        return min(self.recall("cross"), self.recall("mixed")) / old if old > 0 else 0.0

    def interval(self, bootstrap: Bootstrap) -> tuple[float, float]:
        """The 95 % interval of R under resampled records."""
        drawn = {
            way: torch.stack(
                [bootstrap.mean(hit_N, self.known[name]) for name, hit_N in hits.items()]
            ).nanmean(0)
            for way, hits in self.hits.items()
        }
        return interval_of(torch.minimum(drawn["cross"], drawn["mixed"]) / drawn["old"])


def cross_version_recall(
    old: ModelOutputs,
    new: ModelOutputs,
    group_N: Tensor,
    *,
    k: int,
    least: int = 2,
    stored: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> CrossVersionRecall:
    """Search across versions over the records that have each direction's modalities.

    Args:
        stored: maps the old vectors before they are searched by the new model.
        least: a direction with fewer records is left out.
    """
    result = CrossVersionRecall()
    first_N = torch.from_numpy(np.random.default_rng([seed, 50]).permutation(len(group_N)) % 2 == 0)
    shares: list[float] = []
    for name, query, target in directions(old.modalities):
        members = target.partition(" ")[2] or target
        here_N = old.has(query) & old.has(members) & new.has(query) & new.has(members)
        if int(here_N.sum()) < least:
            continue
        result.known[name] = here_N
        group_n = group_N[here_N]
        asked = {"old": old.fused[query][here_N], "new": new.fused[query][here_N]}
        shelf_nD, fresh_nD = target_of(old, target)[here_N], target_of(new, target)[here_N]
        moved_nD = shelf_nD if stored is None else stored(shelf_nD)

        def hit(query_nD: Tensor, gallery_nD: Tensor, group_n: Tensor = group_n) -> Tensor:
            return (ranks(query_nD, gallery_nD, group_n) < k).float()

        mixed_n = torch.zeros(len(group_n))
        for half_n in (first_N[here_N], ~first_N[here_N]):
            gallery_nD = torch.where(half_n[:, None], moved_nD, fresh_nD)
            mixed_n += hit(asked["new"], gallery_nD) / 2
            top_nk = (asked["new"] @ gallery_nD.T).topk(min(k, len(group_n)), dim=1).indices
            # Against how many there are: the halves of those with this direction may differ.
            shares.append(float(half_n[top_nk].float().mean() - half_n.float().mean() + 0.5))
        for way, hit_n in (
            ("old", hit(asked["old"], shelf_nD)),
            ("new", hit(asked["new"], fresh_nD)),
            ("cross", hit(asked["new"], moved_nD)),
            ("mixed", mixed_n),
        ):
            hit_N = torch.zeros(len(group_N))
            hit_N[here_N] = hit_n
            result.hits.setdefault(way, {})[name] = hit_N
    if not result.known:
        result.hits = {way: {} for way in ("old", "new", "cross", "mixed")}
    result.share = float(np.mean(shares)) if shares else 0.5
    return result


def mapped(outputs: ModelOutputs, adapter: Adapter) -> ModelOutputs:
    """The same with every vector through the adapter."""
    return replace(
        outputs,
        by={name: adapter(vectors_ND) for name, vectors_ND in outputs.by.items()},
        fused={name: adapter(vectors_ND) for name, vectors_ND in outputs.fused.items()},
    )


def same_space(champion: TorchModel, limits: Compatibility) -> Choice:
    """The choice where encoders, projections and fusion are the same: nothing needs measuring."""
    report = {
        "champion": champion.name,
        "choice": SAME,
        "space": champion.space,
        "limits": _plain(limits),
        "tried": [],
        "reason": "encoders, projections and fusion are unchanged",
    }
    return Choice(report=report, space=champion.space)


def new_space(champion: TorchModel, challenger: TorchModel, reason: str) -> Choice:
    """A new space without measuring."""
    report = {
        "champion": champion.name,
        "choice": NEW,
        "space": challenger.space,
        "tried": [],
        "reason": reason,
    }
    return Choice(report=report, space=challenger.space)


def choose_space(
    champion: TorchModel,
    challenger: TorchModel,
    judged: Sequence[Sample],
    pair: tuple[ModelOutputs, ModelOutputs],
    samples: Sequence[Sample],
    limits: Compatibility,
    *,
    least: int = 30,
    resamples: int = 2000,
    seed: int = 0,
) -> Choice:
    """Same space, adapter or new space.

    Args:
        judged, pair: the judge records, and what champion and challenger make of them.
        samples: adapters are fitted on those of the train split.
    """
    comparison = _SpaceComparison(
        old=pair[0],
        new=pair[1],
        group_N=group_of(judged),
        limits=limits,
        least=least,
        seed=seed,
        bootstrap=Bootstrap(len(judged), resamples=resamples, seed=seed),
    )
    if not comparison.base.known:
        reason = f"no direction has {least} judge records"
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
        return Choice(
            report={
                **report,
                "choice": SAME,
                "space": champion.space,
                "reason": f"R {tried[0]['ratio']:.3f}, share of old {tried[0]['share']:.3f}",
            },
            space=champion.space,
        )
    if adapted is None:
        reason = "neither as it is nor through an adapter are the limits reached"
        return Choice(
            report={**report, "choice": NEW, "space": challenger.space, "reason": reason},
            space=challenger.space,
        )
    adapter, maps = adapted
    applied = maps == QUERIES
    space = champion.space if applied else challenger.space
    here, there = challenger.space, champion.space
    story = {
        "kind": adapter.kind,
        "file": FILE,
        "maps": maps,
        "applied": applied,
        "from": here if applied else there,
        "to": there if applied else here,
    }
    reason = f"{adapter.kind} on {maps} reaches the limits"
    return Choice(
        report={**report, "choice": ADAPTER, "space": space, "reason": reason, "adapter": story},
        space=space,
        adapter=adapter,
    )


def _adapters(
    champion: TorchModel,
    challenger: TorchModel,
    samples: Sequence[Sample],
    comparison: _SpaceComparison,
    tried: list[dict[str, Any]],
) -> tuple[Adapter, str] | None:
    """The first adapter that passes, and what it maps; every one tried is told in `tried`."""
    limits = comparison.limits
    known = training_records(samples, limits.pairs) if limits.adapters else []
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


def training_records(samples: Sequence[Sample], most: int) -> list[Sample]:
    """The train split, of a repeated id the last; at most `most`, chosen by hash."""
    latest = {sample.id: sample for sample in samples if split(sample.id) == "train"}
    ids = sorted(latest, key=lambda id_: sha256(id_.encode()).hexdigest())[:most]
    return [latest[id_] for id_ in sorted(ids)]


def pairs(old: ModelOutputs, new: ModelOutputs) -> tuple[Tensor, Tensor]:
    """The same records' vectors of both versions, float[n, D] each: each modality's, and the fused
    one of all that a record has."""
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
    """What every choice is measured on."""

    old: ModelOutputs
    new: ModelOutputs
    group_N: Tensor
    limits: Compatibility
    least: int
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
            least=self.least,
            stored=stored,
            seed=self.seed,
        )

    def entry(self, choice: str, measured: CrossVersionRecall, **more: Any) -> dict[str, Any]:
        """One choice with its numbers. `recall` is that of new queries in the mixed gallery, `cost`
        what is missing to the better of the new model in a space of its own and as it is."""
        limits = self.limits
        cost = self.best - measured.recall("mixed")
        checks = {
            "ratio": measured.ratio >= limits.ratio,
            "share": abs(measured.share - 0.5) <= limits.even,
            "cost": cost <= limits.cost,
        }
        return {
            "choice": choice,
            **more,
            "ratio": _round(measured.ratio),
            "interval": [_round(value) for value in measured.interval(self.bootstrap)],
            "new_to_old": _round(measured.recall("cross")),
            "recall": _round(measured.recall("mixed")),
            "share": _round(measured.share),
            "cost": _round(cost),
            "passed": all(checks.values()),
            "failed": [name for name, fine in checks.items() if not fine],
            "re_embedded": "none",
        }

    def numbers(self, name: str) -> dict[str, float]:
        """A direction's recalls as the versions are."""
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
