"""The demo's measurements: accuracy, recall, throughput and example queries.

Pure functions of the messages read, testable without a broker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from braid.modalities import MODALITIES

Hits = Sequence[Mapping[str, Any]]
Search = Callable[[Sequence[Mapping[str, Any]]], Sequence[Hits]]  # arguments of queries -> hits

TASK = "category"
DEPTHS = (1, 5, 10)


def accuracy(
    predictions: Iterable[Mapping[str, Any]], truth: Mapping[str, str]
) -> dict[str, float | None]:
    """Share of right labels among the records of `truth` (id -> category).

    `fused` is the label that applications read, the decision over all modalities; `fused_vector`
    is the prediction of the fused vector's head alone; each modality counts over the records that
    have it, None without any.
    """
    right = dict.fromkeys(("fused", *MODALITIES, "fused_vector"), 0)
    seen = dict(right)
    for prediction in predictions:
        expected = truth.get(prediction["id"])
        task = prediction["tasks"].get(TASK)
        if expected is None or task is None:
            continue
        labels = {name: decision["label"] for name, decision in (task.get("by") or {}).items()}
        labels["fused_vector"] = labels.pop("fused", None)
        for name, label in (labels | {"fused": task["label"]}).items():
            if name in seen:
                seen[name] += 1
                right[name] += label == expected
    return {name: round(right[name] / count, 4) if count else None for name, count in seen.items()}


def recall(
    search: Search, queries: Sequence[tuple[str, Mapping[str, Any]]]
) -> dict[str, float | None]:
    """Recall@1, 5 and 10: the share of queries whose own record is among the first hits.

    Args:
        search: runs the queries.
        queries: the id of the one right record, and the query's keyword arguments.
    """
    ranks: list[int | None] = []
    answers = search([{"k": max(DEPTHS), **query} for _, query in queries])
    for (expected, _), hits in zip(queries, answers, strict=True):
        ids = [hit["id"] for hit in hits]
        ranks.append(ids.index(expected) if expected in ids else None)
    return {
        str(depth): round(sum(rank is not None and rank < depth for rank in ranks) / len(ranks), 4)
        if ranks
        else None
        for depth in DEPTHS
    }


def throughput(times_ms: Sequence[int], *, begun: int) -> float:
    """Records a second.

    Args:
        times_ms: when each prediction was published.
        begun: when the worker got its partitions, with all records in the topic.
    """
    busy_ms = max(times_ms) - min(begun, *times_ms)
    return round(len(times_ms) * 1000 / max(busy_ms, 1), 1)


def mismatches(figures: Mapping[str, Any], *, ids: int) -> list[str]:
    """Messages for counts that disagree: lost, repeated or dead-lettered records."""
    expected = {
        "vectors_indexed": ids,
        "predictions_out": figures["records_in"],
        "dead_letters": 0,
    }
    return [
        f"{name} is {figures[name]}, expected {count}"
        for name, count in expected.items()
        if figures[name] != count
    ]


def example_lines(search: Search, queries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Each query (its title, its arguments) with its three best hits, as lines to print."""
    lines = []
    answers = search([{"k": 3, **query} for _, query in queries])
    for (name, _), hits in zip(queries, answers, strict=True):
        lines.append(f"  {name}")
        for hit in hits:
            lines.append(f"    {hit['score']:.3f}  {hit['id']}: {hit.get('text') or '(no text)'}")
    return lines


def report_lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""

    def percent(value: float | None) -> str:
        return "  -  " if value is None else f"{value:5.1%}"

    lines = [
        f"  records in       {figures['records_in']}",
        f"  vectors indexed  {figures['vectors_indexed']}",
        f"  predictions out  {figures['predictions_out']}",
        f"  dead letters     {figures['dead_letters']}",
        f"  records a second {figures['records_per_s']}",
        "  held-out category accuracy: "
        + ", ".join(
            f"{name} {percent(value)}"
            for name, value in figures["accuracy"].items()
            if value is not None  # no record has this modality
        ),
    ]
    for way, depths in figures["recall"].items():
        shown = ", ".join(f"@{depth} {percent(value)}" for depth, value in depths.items())
        lines.append(f"  held-out recall {way}: {shown}")
    return lines
