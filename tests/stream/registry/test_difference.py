"""What `braid models diff` shows of two versions: what a person reads at a glance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from braid.encoders.manifest import Manifest
from braid.stream.registry.difference import short_lines

KIND = {"kind": "classification", "classes": ["bird", "frog"]}


def manifest(name: str, *, samples: int = 100, accuracy: float = 0.8, **fields: Any) -> Manifest:
    """A version whose measures, all but the accuracy of pictures, depend on nothing."""
    validation = {
        "samples": samples,
        "accuracy": {"kind": {"fused": 0.9, "image": accuracy, "subsets": {"text": 0.7}}},
        "nll": {"kind": {"before": {"decision": 0.6}, "after": {"decision": 0.5}}},
        "interval": {"kind": {"nll": [0.4, 0.6]}},
        "recall": {"text->image": {"1": 0.2, "10": 0.6}},
    }
    encoders = {modality: {"kind": "tiny", "source": None} for modality in ("text", "image")}
    made = Manifest(
        name=name,
        version=1,
        space="s-1",
        dim=64,
        modalities=["text", "image"],
        preprocessing="x",
        tasks={"kind": KIND},
        config={"epochs": 8, "model": {"dim": 64, "encoders": encoders}},
        metrics={"seed": 0, "losses": [1.0, 0.5], "validation": validation},
        window={"samples": 500, "shards_of": "run-1", "run": name},
    )
    return replace(made, **fields)


def rows(left: Manifest, right: Manifest) -> list[str]:
    return [" ".join(line.split()) for line in short_lines(left, right)]


def test_the_same_model_and_data_do_not_differ_whatever_their_names() -> None:
    shown = rows(manifest("a"), manifest("b"))
    assert shown == [
        "a and b: the same space",
        "neither model, data nor settings differ",
        "",
        "on 100 and 100 validation records",
        "6 within their error (95 %); --all shows all",
    ]


@pytest.mark.parametrize(
    ("samples", "accuracy", "shown"),
    [
        (100, 0.79, False),
        (100, 0.70, False),
        (100, 0.65, True),
        (2000, 0.76, True),
        (2000, 0.79, False),
        (10, 0.5, False),
        (100, float("nan"), True),
    ],
)
def test_a_measure_is_shown_if_it_differs_by_more_than_its_error(
    samples: int, accuracy: float, shown: bool
) -> None:
    left = manifest("a", samples=samples)
    right = manifest("b", samples=samples, accuracy=accuracy)
    lines = rows(left, right)
    assert any(line.startswith("accuracy kind: image 0.8000") for line in lines) == shown, lines


def test_an_interval_of_the_validation_is_the_error() -> None:
    left, right = manifest("a"), manifest("b")
    for value, shown in ((0.62, False), (0.66, True)):  # the intervals' halves are 0.1: 0.141
        right.metrics["validation"]["nll"]["kind"]["after"]["decision"] = value
        assert any(line.startswith("nll kind") for line in rows(left, right)) == shown


def test_model_data_and_settings_are_shown_by_their_names() -> None:
    encoders = {
        "text": {"kind": "clip-text", "source": "a/b", "options": {"x": 1}},
        "image": {"kind": "tiny", "source": None, "frozen": True},
    }
    right = manifest(
        "b",
        space="s-2",
        dim=32,
        parent="a",
        tasks={
            "kind": {**KIND, "classes": ["bird", "frog", "toad"]},
            "size": {"kind": "regression"},
        },
        config={"epochs": 9, "model": {"dim": 32, "encoders": encoders}},
        window={"samples": 600, "shards_of": "run-2"},
        code={"torch": "2.14"},
    )
    assert rows(manifest("a"), right)[:12] == [
        "a and b: different spaces",
        "a b",
        "space s-1 s-2",
        "dimension 64 32",
        "text encoder tiny clip-text a/b",
        "task kind classification: bird, frog classification: bird, frog, toad",
        "task size - regression",
        "started from - a",
        "learnt from 500 records, run run-1 600 records, run run-2",
        "epochs 8 9",
        "model.encoders.image.frozen - True",
        "torch - 2.14",
    ]


def test_a_long_difference_is_cut() -> None:
    many = {f"setting{number:02d}": number for number in range(30)}
    source = {"kind": "tiny", "source": "x" * 300}
    right = manifest("b", config={"epochs": 8, "model": {"encoders": {"text": source}}, **many})
    for direction in range(200):
        right.metrics["validation"]["recall"][f"text->{direction}"] = {"1": 1.0}
    left = manifest("a")
    left.metrics["validation"]["recall"].update(
        {f"text->{direction}": {"1": 0.1} for direction in range(200)}
    )
    lines = short_lines(left, right)
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 130
    assert "  and 22 more settings: --all shows all" in lines
    assert "and 192 more; 6 within" in lines[-1]


def gate(metric: str, before: float, after: float, *interval: float) -> dict[str, Any]:
    return {
        "metric": metric,
        "champion": before,
        "challenger": after,
        "interval": list(interval) or None,
    }


@pytest.mark.parametrize("swapped", [False, True])
def test_the_judge_s_comparison_comes_before_validation_records(swapped: bool) -> None:
    gates = [
        gate("recall@10 text->image", 0.5, 0.6, 0.02, 0.18),
        gate("accuracy kind", 0.8, 0.79, -0.05, 0.03),
        gate("effective rank", 20, 30),
    ]
    verdict = {"champion": "a", "records": 300, "reason": "2 gates failed", "gates": gates}
    left = manifest("a")
    right = manifest("b", accuracy=0.1, verdict=verdict)
    shown = rows(*((right, left) if swapped else (left, right)))[-4:]
    assert shown == [
        "judged: 2 gates failed",
        "on 300 judge records, record by record",
        "recall@10 text->image 0.6000 0.5000 -0.1 (-0.1800 to -0.0200)"
        if swapped
        else "recall@10 text->image 0.5000 0.6000 +0.1 (0.0200 to 0.1800)",
        "1 within their error (95 %); --all shows all",
    ]


def test_versions_without_validation_records_are_not_measured() -> None:
    shown = rows(manifest("a", metrics={"seed": 0}), manifest("b", metrics={}))
    assert shown[-1] == "no measure on validation records of both"
