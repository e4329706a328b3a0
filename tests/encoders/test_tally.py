"""Tallies add up, survive as plain values, and drift is what is beyond chance and its limit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from braid.encoders import Model, load, preset, train
from braid.encoders.drift import Limits, compare
from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import Manifest, read_manifest
from braid.encoders.output_statistics import MAX_LABELS, NONE, OTHER, Tally
from braid.encoders.training import split
from braid.encoders.types import Embedding, TaskPrediction
from tests.encoders.material import samples

CLASSES = ("ant", "bee", "cat", "dog", "eel")
DIM = 16


def total(tallies: Iterable[Tally]) -> Tally:
    """One tally of all."""
    whole = Tally()
    for tally in tallies:
        whole.merge(tally)
    return whole


def records(
    count: int,
    seed: int,
    *,
    shares: Sequence[float] = (0.4, 0.3, 0.15, 0.1, 0.05),
    sure: float = 0.8,
    moved: float = 0.0,
    missing: float = 0.2,
) -> list[Embedding]:
    """Records of a population: its labels, its confidence, where its vectors are, what it lacks."""
    rng = np.random.default_rng(seed)
    centre_D = np.zeros(DIM)
    centre_D[:2] = (1.0, moved)
    vectors_BD = centre_D + rng.normal(0, 0.3, (count, DIM))
    vectors_BD /= np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    labels_B = rng.choice(CLASSES, size=count, p=shares)
    sure_B = rng.beta(20 * sure, 20 * (1 - sure), size=count)
    lacks_B = rng.random(count) < missing
    return [
        record(
            vectors_BD[b],
            {
                "kind": _said(label=str(labels_B[b]), prob=float(sure_B[b])),
                "price": _said(value=100 * float(sure_B[b])),
            },
            ("text",) if lacks_B[b] else ("text", "image"),
        )
        for b in range(count)
    ]


def record(
    vector_D: NDArray[Any],
    tasks: Mapping[str, TaskPrediction] | None = None,
    present: Sequence[str] = ("text",),
) -> Embedding:
    fused = vector_D.astype(np.float32)
    return Embedding(id="x", fused=fused, by=dict.fromkeys(present, fused), tasks=tasks or {})


def _said(**fields: Any) -> TaskPrediction:
    return TaskPrediction(kind="any", rule="any", **fields)


def tally(embeddings: Sequence[Embedding]) -> Tally:
    counted = Tally()
    counted.add_all(embeddings)
    return counted


def same(left: Tally, right: Tally) -> bool:
    assert left.vectors_D == pytest.approx(right.vectors_D, abs=1e-5)
    left_plain, right_plain = left.to_plain(), right.to_plain()
    del left_plain["vectors"], right_plain["vectors"]
    assert list(_numbers(left_plain)) == pytest.approx(list(_numbers(right_plain)), rel=1e-9)
    return True


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for key in sorted(value) for n in _numbers(value[key])]
    if isinstance(value, list):
        return [n for part in value for n in _numbers(part)]
    return [value]


def test_merging_is_adding_all() -> None:
    all_ = records(300, seed=1)
    one_by_one = Tally()
    for embedding in all_:
        one_by_one.add(embedding)
    parts = [tally(all_[start : start + 70]) for start in range(0, 300, 70)]
    assert same(one_by_one, tally(all_))
    assert same(one_by_one, total(parts))
    assert same(one_by_one, total([Tally(), *reversed(parts)]))


def test_what_is_derived_is_what_numpy_says() -> None:
    all_ = records(400, seed=2)
    counted = tally(all_)
    vectors_BD = np.stack([one.fused for one in all_])
    assert counted.mean_D == pytest.approx(vectors_BD.mean(0), abs=1e-6)
    assert counted.concentration == pytest.approx(np.linalg.norm(vectors_BD.mean(0)), abs=1e-6)
    assert counted.norm == pytest.approx(1.0, abs=1e-6)
    sure_B = np.array([one.tasks["kind"].prob for one in all_])
    confidence = counted.tasks["kind"].confidence
    assert (confidence.mean, confidence.sd) == pytest.approx((sure_B.mean(), sure_B.std()))
    assert counted.tasks["price"].value.mean == pytest.approx(100 * sure_B.mean())
    assert counted.tasks["price"].confidence.count == 0
    shares = counted.shares("kind")
    assert next(iter(shares)) == "ant"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["bee"] == sum(one.tasks["kind"].label == "bee" for one in all_) / 400
    assert counted.missing("image") == sum("image" not in one.by for one in all_) / 400
    assert (counted.missing("text"), counted.missing("audio")) == (0.0, 1.0)
    alike = tally([record(vectors_BD[0])] * 5)
    assert alike.concentration == pytest.approx(1.0, abs=1e-6)
    assert (Tally().concentration, Tally().norm, Tally().missing("text")) == (0.0, 0.0, 0.0)


def test_a_tally_survives_as_json_and_what_is_none_is_refused() -> None:
    counted = tally(records(50, seed=3))
    again = Tally.from_plain(json.loads(json.dumps(counted.to_plain())))
    assert same(counted, again)
    assert same(total([again, counted]), total([counted, counted]))
    assert Tally.from_plain(Tally().to_plain()).count == 0
    plain = counted.to_plain()
    changes: list[dict[str, Any]] = [
        {"count": -1},
        {"count": 1.5},
        {"vectors": [float("nan")]},
        {"vectors": "abc"},
        {"norms": float("inf")},
        {"present": {"text": "many"}},
        {"tasks": {"kind": {"labels": {}}}},
        {"tasks": {"kind": {"labels": {}, "confidence": [1, 2], "value": [0, 0, 0]}}},
    ]
    for change in changes:
        with pytest.raises(ValueError, match=r"not a tally|could not convert|values to unpack"):
            Tally.from_plain({**plain, **change})
    nothings: list[object] = [None, [], {}, "x"]
    for nothing in nothings:
        with pytest.raises(ValueError, match="not a tally"):
            Tally.from_plain(nothing)


def test_labels_are_bounded_and_several_or_none_are_counted() -> None:
    vector_D = np.eye(4)[0]
    many = [record(vector_D, {"t": _said(label=f"l{n}")}) for n in range(MAX_LABELS + 50)]
    counted = tally([*many, *many])
    labels = counted.tasks["t"].labels
    assert len(labels) == MAX_LABELS + 1
    assert (labels["l0"], labels[OTHER], labels.total()) == (2, 100, 2 * len(many))
    merged = total([counted, tally(many[::-1])]).tasks["t"].labels
    assert (len(merged), merged["l0"], merged["l100"]) == (MAX_LABELS + 1, 2, 3)
    assert merged.total() == 3 * len(many)
    several = tally(
        [record(vector_D, {"t": _said(labels=labels)}) for labels in (["a", "b"], ["a"], [])]
    )
    assert several.tasks["t"].labels == {"a": 2, "b": 1, NONE: 1}


def test_labels_beyond_the_bound_do_not_look_like_drift() -> None:
    """The same thousand labels; which of them are drift by name differs by their order."""
    vector_D = np.eye(4)[0]
    rng = np.random.default_rng(0)
    drawn = [record(vector_D, {"t": _said(label=f"l{n}")}) for n in rng.integers(0, 1000, 8000)]
    drift = compare(tally(drawn[:4000]), tally(drawn[4000:]), Limits())
    assert str(drift) == "none"
    assert [one.name for one in drift.statistics] == ["labels t", "embedding", "missing text"]


@pytest.mark.slow
def test_two_draws_of_one_population_are_no_drift() -> None:
    """Of 80 pairs of two sizes hardly one exceeds anything, and the values are not biased."""
    labels, moved, alarms = [], [], 0
    nothing = Limits(labels=1e-3, embedding=1e-3, confidence=1e-3, missing=1e-3)
    for seed in range(80):
        n, m = (150, 600) if seed % 2 else (800, 500)
        all_ = records(n + m, seed=seed)
        reference, window = tally(all_[:n]), tally(all_[n:])
        drift = compare(reference, window, nothing)
        alarms += bool(drift.exceeded)
        by_name = {one.name: one for one in drift.statistics}
        labels.append(by_name["labels kind"].value)
        moved.append(by_name["embedding"].value)
        assert not compare(reference, window, Limits()).exceeded
    assert list(by_name) == [
        "labels kind",
        "confidence kind",
        "value price",
        "embedding",
        "missing image",
        "missing text",
    ]
    assert alarms <= 3, "with limits near nothing it is chance alone that holds them back"
    assert np.mean(labels) < 0.01
    assert np.mean(moved) < 0.05


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"shares": (0.1, 0.1, 0.15, 0.25, 0.4)}, {"labels kind"}),
        ({"sure": 0.65}, {"confidence kind", "value price"}),
        ({"moved": 0.6}, {"embedding"}),
        ({"missing": 0.5}, {"missing image"}),
    ],
)
def test_each_change_is_seen_and_nothing_else(change: dict[str, Any], names: set[str]) -> None:
    reference, window = tally(records(800, seed=1)), tally(records(600, seed=2, **change))
    drift = compare(reference, window, Limits())
    assert {one.name for one in drift.exceeded} == names
    first = drift.exceeded[0]
    assert str(drift).startswith(f"{first.name} {first.value:.2g}, limit {first.limit:g}")
    assert not compare(reference, window, Limits(min_records=601)).exceeded, "too few records"
    assert not compare(reference, window, Limits(min_records=601)).enough
    wide = Limits(labels=9, confidence=9, embedding=9, missing=0.9)
    assert not compare(reference, window, wide).exceeded


def test_what_cannot_be_compared() -> None:
    some = tally(records(600, seed=1))
    assert compare(Tally(), some, Limits()).statistics == ()
    other = tally([record(np.eye(4)[0])] * 600)
    with pytest.raises(ValueError, match="vectors have 4 values, not 16"):
        compare(some, other, Limits())
    same_ = tally([record(np.eye(DIM)[0])] * 600)
    (moved, _, _) = compare(same_, some, Limits()).statistics
    assert (moved.name, np.isfinite(moved.value), moved.exceeds) == ("embedding", True, True)


def test_limits_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"drift.missing must be a number above 0, is -1"):
        Limits(missing=-1)
    with pytest.raises(ValueError, match=r"drift.min_records must be a whole number"):
        Limits(min_records=0)


# ---- what a version says of itself


def test_a_version_has_the_tally_of_its_validation_split(model: Model, manifest: Manifest) -> None:
    held = [sample for sample in samples() if split(sample.id, True) == "validation"]
    reference = Tally.from_plain(manifest.reference)
    counted = tally(model.encode([model.prepare(sample) for sample in held]))
    assert reference.count == counted.count == len(held) > 5
    assert reference.present == counted.present
    assert reference.norm == pytest.approx(1.0, abs=1e-5)
    assert reference.mean_D == pytest.approx(counted.mean_D, abs=1e-4)
    assert reference.tasks.keys() == counted.tasks.keys() == manifest.tasks.keys()
    for one in reference.tasks.values():
        assert one.labels.total() + one.value.count + one.confidence.count > 0


def test_manifests_from_before_load(version: Path) -> None:
    raw = json.loads((version / "manifest.json").read_text())
    del raw["reference"]
    assert Manifest.from_json(json.dumps(raw)).reference == {}
    with pytest.raises(CheckpointError, match="'reference' must be a dict"):
        Manifest.from_json(json.dumps({**raw, "reference": [1]}))


@pytest.mark.slow
def test_nothing_held_out_is_no_reference(tmp_path: Path) -> None:
    learnt = [sample for sample in samples() if split(sample.id, True) == "train"]
    train(learnt, preset("tiny"), out=tmp_path / "v", name="v-1", version=1, seed=0)
    assert read_manifest(tmp_path / "v").reference == {}
    load(tmp_path / "v", device="cpu").check()
