"""Decisions are fitted and scored on samples that their models have not learnt."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from braid.encoders import Sample, load, train
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig
from braid.encoders.manifest import Manifest
from braid.encoders.model.checkpoint import make_net
from braid.encoders.model.decision import Decision
from braid.encoders.training.data import Dataset, gather
from braid.encoders.training.decisions import (
    WHOLE,
    TaskLogits,
    cross_fitted,
    folds_of,
    groups_of,
    outputs,
)
from braid.encoders.training.metrics import calibration_interval, share_interval

FROZEN = TrainConfig(
    model=ModelConfig(
        encoders={
            "text": EncoderConfig(kind="hashed", frozen=True),
            "image": EncoderConfig(kind="small-cnn", frozen=True, options={"grid": 4}),
        },
        dim=32,
        fusion="early",
    ),
    epochs=20,
    batch=64,
    lr=1e-2,
    weight_decay=0.0,
    judge=False,
)


def noise(count: int, seed: int = 0) -> list[Sample]:
    """Contents and labels that have nothing to do with each other: a model can only memorise."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        picture = io.BytesIO()
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(picture, "PNG")
        samples.append(
            Sample(
                id=f"noise-{seed}-{number}",
                text=" ".join(f"word{word}" for word in rng.integers(0, 500, 6)),
                image=picture.getvalue(),
                labels={"kind": f"k{rng.integers(2)}"},
            )
        )
    return samples


def run(place: Path, config: TrainConfig = FROZEN, seed: int = 0, **more: Any) -> Manifest:
    return train(noise(200), config, out=place, name="v", version=1, seed=seed, **more)


def is_honest_about_noise(manifest: Manifest, samples: int, folds: int) -> None:
    """Accuracy near a half, a likelihood near that of guessing, and intervals with both in them."""
    metrics = manifest.metrics["validation"]
    assert metrics["out_of_fold"]["kind"] == {"samples": samples, "folds": folds}
    interval = metrics["interval"]["kind"]
    assert interval["accuracy"][0] < metrics["accuracy"]["kind"]["fused"] < interval["accuracy"][1]
    assert interval["accuracy"][0] < 0.5
    assert metrics["nll"]["kind"]["after"]["decision"] == pytest.approx(0.693, abs=0.06)
    assert interval["nll"][0] < metrics["nll"]["kind"]["after"]["decision"] < interval["nll"][1]
    low, high = interval["decision - best"]
    assert low <= 0.1
    assert high >= -0.1


@pytest.mark.slow
def test_a_refit_is_calibrated_by_models_that_had_not_learnt_the_samples(tmp_path: Path) -> None:
    """What the version itself is sure of among its own samples is not what the manifest says."""
    manifest = run(tmp_path / "v")
    is_honest_about_noise(manifest, 200, 3)
    assert "refit" in manifest.metrics
    model = load(tmp_path / "v", device="cpu")
    for samples, sure in ((noise(200), None), (noise(200, seed=1), 0.05)):
        predictions = [one.tasks["kind"] for one in model.encode(list(map(model.prepare, samples)))]
        alone = np.mean(
            [
                p.by["fused"]["label"] == s.labels["kind"]
                for p, s in zip(predictions, samples, strict=True)
            ]
        )
        confidence = float(np.mean([p.prob or 0.0 for p in predictions]))
        if sure is None:
            assert alone > 0.8, "the version has memorised its samples"
        else:
            assert confidence == pytest.approx(0.5, abs=sure), "so it must not be sure of others"


@pytest.mark.slow
def test_a_warm_start_does_not_leak_what_the_parent_has_learnt(tmp_path: Path) -> None:
    run(tmp_path / "parent")
    is_honest_about_noise(run(tmp_path / "child", parent=tmp_path / "parent"), 200, 3)


@pytest.mark.slow
def test_where_an_encoder_is_trained_validation_samples_decide_in_folds(tmp_path: Path) -> None:
    encoders = {**FROZEN.model.encoders, "text": EncoderConfig(kind="hashed")}
    config = replace(FROZEN, model=replace(FROZEN.model, encoders=encoders), calibration_copies=1)
    manifest = run(tmp_path / "v", config)
    held = manifest.metrics["validation"]["samples"]
    assert 10 < held < 40
    is_honest_about_noise(manifest, held, 5)


@pytest.mark.slow
def test_a_killed_training_goes_on_in_the_fold_where_it_was(tmp_path: Path) -> None:
    whole, kept = run(tmp_path / "whole"), []

    def interrupt(stage: str, done: int, total: int, figures: Any) -> None:
        kept.append((stage, done, total))
        if (stage, done) == ("train", 30):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", resume=tmp_path / "state", progress=interrupt)
    assert kept[-1] == ("train", 30, 60)
    kept.clear()
    again = run(
        tmp_path / "again",
        resume=tmp_path / "state",
        progress=lambda stage, done, *_: kept.append((stage, done, 0)),
    )
    assert ("train", 30, 0) not in kept
    assert ("train", 31, 0) in kept
    assert again.metrics["validation"]["nll"] == whole.metrics["validation"]["nll"]
    assert again.calibration == whole.calibration


def data_of(count: int, repeated: int = 1) -> Dataset:
    samples = [replace(s, text=f"text {n // repeated}") for n, s in enumerate(noise(count))]
    return gather(
        samples,
        make_net(FROZEN, {}),
        FROZEN,
        all_frozen=False,
        device=torch.device("cpu"),
        progress=lambda *_: None,
    )


def test_folds_are_nearly_equal_keep_contents_together_and_end_with_validation() -> None:
    data = data_of(120, repeated=3)
    fold_N = folds_of(data, 3, seed=0)
    assert fold_N is not None
    assert sorted(fold_N.bincount().tolist())[0] >= 36
    assert set(fold_N[data.rows("validation")].tolist()) == {2}
    for group in data.group_N.unique():
        assert len(fold_N[data.group_N == group].unique()) == 1
    other_N = folds_of(data, 3, seed=1)
    assert other_N is not None
    assert not torch.equal(fold_N, other_N)
    assert folds_of(data, 1, seed=0) is None
    assert folds_of(data, 0, seed=0) is None
    assert folds_of(data, 20, seed=0) is None, "validation is more than a fold"
    parts = groups_of(data, torch.arange(5), 5, seed=0)
    assert int(parts.max()) + 1 == len(data.group_N[:5].unique())


def test_a_class_that_only_the_left_out_have_is_unknown() -> None:
    data = data_of(60)
    data.target["kind"][:] = torch.arange(60) % 2
    left_N = torch.zeros(60, dtype=torch.bool)
    left_N[1::2] = True
    assert data.without(left_N).target["kind"].unique().tolist() == [-1, 0]
    left_N[1] = False
    part = data.without(left_N)
    assert torch.equal(part.target["kind"], data.target["kind"])
    assert torch.equal(part.rows("train"), torch.nonzero(~left_N).flatten())


def logits(rows: int, seed: int = 0) -> TaskLogits:
    """Noise of three sources in ten classes: only a fit on its own rows finds something in it."""
    generator = torch.Generator().manual_seed(seed)
    logits_BSC = 2.0 * torch.randn(rows, 3, 10, generator=generator)
    label_B = torch.randint(0, 10, (rows,), generator=generator)
    present_BS = torch.ones(rows, 3, dtype=torch.bool)
    return TaskLogits(
        views=dict.fromkeys((WHOLE, 3), (logits_BSC, present_BS)),
        targets=dict.fromkeys((WHOLE, 3), label_B),
        folds=dict.fromkeys((WHOLE, 3), torch.arange(rows) % 4),
    )


def test_each_fold_is_decided_by_the_others() -> None:
    given = logits(40)
    decision = Decision("logproduct", 3)
    views = cross_fitted(decision, given)
    assert torch.equal(decision.weights_ZS, Decision("logproduct", 3).weights_ZS), "left as it is"
    first = given.folds[WHOLE] == 0
    for number in (WHOLE, 3):
        fitted = Decision("logproduct", 3)
        fitted.fit(*given.kept(WHOLE, ~first))
        fitted.fit_subset(3, *given.kept(3, ~first))
        _, combined_BC, decided_B = fitted(*given.views[number])
        assert torch.allclose(views[number].combined_BC[:10], combined_BC[first])
        assert torch.equal(views[number].decided[:10], decided_B[first])
    # The rows of a fold say nothing about how they are decided.
    other = replace(given, targets=dict.fromkeys((WHOLE, 3), (given.targets[WHOLE] + first) % 10))
    changed = cross_fitted(decision, other)
    assert torch.equal(changed[WHOLE].combined_BC[:10], views[WHOLE].combined_BC[:10])
    assert not torch.equal(changed[WHOLE].combined_BC[10:], views[WHOLE].combined_BC[10:])


def test_copies_fit_but_do_not_count() -> None:
    one, other = logits(40), logits(40, seed=1)
    views = {
        n: tuple(map(torch.cat, zip(one.views[n], other.views[n], strict=True))) for n in one.views
    }
    both = TaskLogits(
        views=views,  # type: ignore[arg-type]
        targets={n: torch.cat([t, t]) for n, t in one.targets.items()},
        folds={n: torch.cat([f, f]) for n, f in one.folds.items()},
        copies=2,
    )
    decision = Decision("weighted", 3)
    for made in (outputs(decision, both), cross_fitted(decision, both)):
        assert len(made[WHOLE].target) == 40
    assert torch.equal(outputs(decision, both)[WHOLE].logits_BSC, one.views[WHOLE][0])


def test_intervals_cover_what_they_should() -> None:
    low, high = share_interval(torch.tensor([1.0] * 9 + [0.0]))
    assert (low, high) == pytest.approx((0.596, 0.982), abs=1e-3)  # Wilson's, by hand
    assert share_interval(torch.ones(50))[1] == pytest.approx(1.0)
    probs = torch.tensor([[0.8, 0.2]] * 100)
    label = torch.tensor([0] * 60 + [1] * 40)
    low, high = calibration_interval(probs, label)
    assert low < 0.2 < high
    assert high - low < 0.25
    assert calibration_interval(probs[:0], label[:0]) == [0.0, 0.0]
