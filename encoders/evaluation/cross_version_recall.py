"""Recall across two versions: queries of one against stored vectors of the other, or of both.

recall@k is the mean over all served directions: each subset of modalities queries each single
modality outside the subset, and the fused vector of all modalities outside it. (A query's own
modality is left out of the target.)

The mixed gallery holds the old vectors of one half of the records and the new vectors of the other.
It is measured twice, with the halves exchanged, so that the result does not depend on which records
are old. The share of old vectors among the first k hits should be about a half: a version that
prefers its own vectors would hide the others.

Shapes: N records, n of them in a direction, D the shared space, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ..training.embeddings import ModelOutputs
from ..training.metrics import ranks
from ..types import FUSED
from .bootstrap import Bootstrap, interval_of


def directions(modalities: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(name, query subset, target): the target is a modality, or a subset whose fused vector it is.

    A single modality is its own target.
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
        hits: way ("old", "new", "cross", "mixed") to direction to float[N]: 1 for a hit among the
            first k; for "mixed" the mean over the two galleries.
        known: direction to the records that have its modalities, bool[N].
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
        """R; 0 if the old version's recall is 0."""
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
    min_records: int = 2,
    stored: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> CrossVersionRecall:
    """Search across versions over the records that have each direction's modalities.

    Args:
        stored: maps the old vectors before they are searched by the new model.
        min_records: a direction with fewer records is left out.
    """
    result = CrossVersionRecall()
    first_N = torch.from_numpy(np.random.default_rng([seed, 50]).permutation(len(group_N)) % 2 == 0)
    shares: list[float] = []
    for name, query, target in directions(old.modalities):
        members = target.partition(" ")[2] or target
        here_N = old.has(query) & old.has(members) & new.has(query) & new.has(members)
        if int(here_N.sum()) < min_records:
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
            # Relative to the share in the gallery, which may differ from a half.
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
