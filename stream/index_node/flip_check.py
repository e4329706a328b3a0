"""Whether a generation that is built is ready to serve: lag, missing records, recall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from braid.index.store import FUSED, Row, VectorStore, rows_of

from ..registry.generations import GenerationRecord
from ..settings import Settings

FROZEN = 200  # records whose recall is compared
AT = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """Whether a generation may take over.

    Attributes:
        behind: offsets of `records` that its index does not reflect, of all partitions.
        missing: records that the serving generation holds and the new one does not, though it has
            read beyond them.
        recall: recall@10 of the same queries, by generation, or nothing to compare.
        waits_for: what is still to come, or None.
        stops: what will not come by itself, or None.
    """

    behind: int
    missing: int = 0
    recall: Mapping[str, float] = field(default_factory=dict)
    waits_for: str | None = None
    stops: str | None = None


def readiness(
    settings: Settings,
    entry: GenerationRecord,
    stores: Mapping[str, VectorStore],
    *,
    serving: str,
    ends: Mapping[int, tuple[int, int]],
) -> Readiness:
    """The readiness of a built generation, compared with the serving one on frozen queries.

    Args:
        stores: by generation: the serving and the built one.
        ends: partition of `records` -> its first offset and its end.
    """
    old, new = stores[serving], stores[entry.generation]
    progress = new.progress
    behind = sum(
        max(0, end - max(first, progress.get(number, 0))) for number, (first, end) in ends.items()
    )
    if behind > settings.refresh.flip_lag:
        return Readiness(
            behind=behind,
            waits_for=f"{behind} offsets of records are not embedded, "
            f"{settings.refresh.flip_lag} may be",
        )
    missing, unsure = absent(old, new)
    if missing and not entry.drop_missing:
        return Readiness(
            behind=behind,
            missing=missing,
            stops=f"{missing} records of {serving} cannot be embedded again: they are no longer in "
            "records; promote with --drop-missing to go on without them",
        )
    if unsure and not entry.drop_missing:
        return Readiness(
            behind=behind,
            missing=missing,
            waits_for=f"{unsure} records are missing, or deleted as {serving} has not read yet",
        )
    both = recall(old, new)
    recalls = {} if both is None else dict(zip((serving, entry.generation), both, strict=True))
    stops = None
    if recalls and recalls[entry.generation] < recalls[serving] - settings.refresh.flip_recall_drop:
        stops = (
            f"recall@{AT} of {entry.generation} is {recalls[entry.generation]:.3f}, of {serving} "
            f"{recalls[serving]:.3f}: it may be {settings.refresh.flip_recall_drop:g} lower"
        )
    return Readiness(behind=behind, missing=missing, recall=recalls, stops=stops)


def absent(old: VectorStore, new: VectorStore) -> tuple[int, int]:
    """Count the records of `old` that are not in `new` although `new` has read beyond them.

    Returns:
        (missing, unsure): the unsure ones may be deletions that `old` has not read yet.
    """
    before, there, after = new.progress, new.ids(), new.progress
    known = old.progress
    missing = unsure = 0
    for row in rows_of(old, old.ids() - there).values():
        if row.version >= before.get(row.partition, 0):
            continue  # `new` has not read it yet
        if known.get(row.partition, 0) >= after.get(row.partition, 0):
            missing += 1
        else:
            unsure += 1
    return missing, unsure


def recall(old: VectorStore, new: VectorStore) -> tuple[float, float] | None:
    """Cross-modal recall@10 in both stores, by the same queries.

    The queries are vectors of a fixed sample of the records in both stores. None if no record has
    two modalities.
    """
    rows = [row for row in old.sample(FROZEN) if len(row.vectors) > 2]
    pairs = [(row, rebuilt) for row in rows if (rebuilt := new.get(row.id)) is not None]
    if not pairs:
        return None
    return (
        _recall(old, [row for row, _ in pairs]),
        _recall(new, [row for _, row in pairs]),
    )


def _recall(store: VectorStore, rows: list[Row]) -> float:
    asked = hit_count = 0
    by_pair: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        names = sorted(set(row.vectors) - {FUSED})
        for query in names:
            for target in names:
                if query != target:
                    by_pair.setdefault((query, target), []).append(row)
    for (query, target), sources in by_pair.items():
        queries_BD = np.stack([row.vectors[query] for row in sources])
        for row, hits in zip(sources, store.search(queries_BD, k=AT, vector=target), strict=True):
            asked += 1
            hit_count += row.id in {hit.id for hit in hits}
    return hit_count / asked
