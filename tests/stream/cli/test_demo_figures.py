"""The demo's figures, checked by hand on small cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from braid.stream.cli.demo_figures import (
    accuracy,
    example_lines,
    mismatches,
    recall,
    report_lines,
    throughput,
)


def prediction(id_: str, decision: str, **by: str) -> dict[str, Any]:
    by_modality = {name: {"label": label, "prob": 0.5} for name, label in by.items()}
    return {"id": id_, "tasks": {"category": {"label": decision, "by": by_modality}}}


def test_accuracy_counts_each_modality_where_it_is() -> None:
    predictions = [
        prediction("a", "cat", fused="cat", text="dog", image="cat"),
        prediction("b", "dog", fused="dog", text="dog", image="cat", audio="cat"),
        prediction("c", "cat", fused="dog", text="cat"),
        prediction("trained on", "cat", fused="cat", text="cat"),
        {"id": "no such task", "tasks": {}},
    ]
    truth = {"a": "cat", "b": "dog", "c": "dog", "no such task": "cat"}
    assert accuracy(predictions, truth) == {
        "fused": pytest.approx(2 / 3, abs=1e-4),
        "fused_vector": 1.0,
        "text": pytest.approx(1 / 3, abs=1e-4),
        "image": 0.5,
        "audio": 0.0,
        "video": None,
    }
    assert set(accuracy([], truth).values()) == {None}


def test_recall_counts_the_own_record_only() -> None:
    ranked = [f"r{number}" for number in range(10)]
    asked: list[Mapping[str, Any]] = []

    def search(queries: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        asked.extend(queries)
        return [[{"id": id_} for id_ in ranked] for _ in queries]

    wanted = ["r0", "r4", "r5", "r9", "elsewhere"]
    recalls = recall(search, [(id_, {"text": id_}) for id_ in wanted])
    assert recalls == {"1": 0.2, "5": 0.4, "10": 0.8}
    assert asked[0] == {"k": 10, "text": "r0"}
    assert recall(search, []) == {"1": None, "5": None, "10": None}


def test_throughput_begins_with_the_assignment_or_the_first_record() -> None:
    assert throughput([1500, 2000, 3000], begun=1000) == pytest.approx(3 / 2)
    assert throughput([2000], begun=1000) == 1.0
    # the worker published before it was seen to be ready
    assert throughput([500, 1500], begun=1000) == 2.0


def test_what_does_not_add_up_is_said() -> None:
    right = {"records_in": 9, "vectors_indexed": 9, "predictions_out": 9, "dead_letters": 0}
    assert mismatches(right, ids=9) == []
    wrong = right | {"vectors_indexed": 8, "dead_letters": 1}
    assert mismatches(wrong, ids=9) == [
        "vectors_indexed is 8, expected 9",
        "dead_letters is 1, expected 0",
    ]


def test_the_report_has_a_line_for_every_figure() -> None:
    def search(queries: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        return [[{"id": "a", "score": 0.5, "text": None}] * query["k"] for query in queries]

    assert len(example_lines(search, [("'x'", {"text": "x"})])) == 4
    figures = {
        "records_in": 9,
        "vectors_indexed": 8,
        "predictions_out": 7,
        "dead_letters": 6,
        "records_per_s": 5.5,
        "accuracy": {"fused": 0.875, "text": None},
        "recall": {"text->image": {"1": 0.25, "5": 0.5, "10": None}},
    }
    text = "\n".join(report_lines(figures))
    for shown in ("9", "8", "7", "6", "5.5", "87.5%", "25.0%", "50.0%", "-"):
        assert shown in text
