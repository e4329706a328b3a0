"""Projectors that start at canonical correlations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from braid.encoders import TrainingError, load, preset, train
from braid.encoders.config import TrainConfig
from braid.encoders.training.start import canonical
from tests.encoders.material import samples


def views(count: int = 400, noise: float = 0.3) -> dict[str, torch.Tensor]:
    """Three views of three hidden numbers, each rotated into more dimensions, with noise."""
    torch.manual_seed(0)
    hidden_n3 = torch.randn(count, 3)
    return {
        name: hidden_n3 @ torch.randn(3, width) + noise * torch.randn(count, width) + 5.0
        for name, width in (("text", 10), ("image", 20), ("audio", 12))
    }


def test_two_views_give_the_correlations_of_a_plain_reference() -> None:
    both = {name: view for name, view in views().items() if name != "audio"}
    maps = canonical(both, 2, ridge=0.0)
    mapped = {name: view.double() @ maps[name][0] + maps[name][1] for name, view in both.items()}
    result = [
        float(torch.corrcoef(torch.stack([mapped["text"][:, i], mapped["image"][:, i]]))[0, 1])
        for i in range(2)
    ]
    # Hotelling 1936: the singular values of Sxx^-1/2 Sxy Syy^-1/2.
    centred = [view.double() - view.double().mean(0) for view in both.values()]
    halves = []
    for view in centred:
        values, vectors = torch.linalg.eigh(view.T @ view)
        halves.append(vectors @ torch.diag(values.rsqrt()) @ vectors.T)
    a, b = centred
    wanted = torch.linalg.svdvals(halves[0] @ a.T @ b @ halves[1])[:2]
    assert result == pytest.approx(wanted.tolist(), abs=1e-6)
    spread = mapped["text"].std(0)  # each direction weighs what it correlates
    assert float(spread[1] / spread[0]) == pytest.approx(float(wanted[1] / wanted[0]), abs=1e-6)


def test_rows_of_three_views_find_each_other_and_have_mean_length_one() -> None:
    all_three = views(noise=0.1)
    maps = canonical(all_three, 3)
    mapped = {n: v.double() @ maps[n][0] + maps[n][1] for n, v in all_three.items()}
    for a, b in (("text", "image"), ("image", "audio"), ("audio", "text")):
        units = [torch.nn.functional.normalize(mapped[name], dim=1) for name in (a, b)]
        right = (units[0] @ units[1].T).argmax(1) == torch.arange(400)
        assert right.double().mean() > 0.5  # 1 in 400 by chance
        assert mapped[a].norm(dim=1).mean() == pytest.approx(1.0)
        assert mapped[a].mean(0).abs().max() < 1e-9


def test_pairs_weigh_as_they_are_told() -> None:
    """Where a view has no weight, the others start as if it were not there."""
    all_three = views()
    two = {name: view for name, view in all_three.items() if name != "audio"}
    config = replace(preset("tiny"), pairs={"audio-text": 0.0, "image-audio": 0.0})
    alone, beside = canonical(two, 3), canonical(all_three, 3, weigh=config.pair_weight)
    equal = canonical(all_three, 3)
    for name, view in two.items():
        mapped = [view.double() @ result[name][0] for result in (alone, beside, equal)]
        for i in range(3):
            like = [
                abs(float(torch.corrcoef(torch.stack([mapped[0][:, i], one[:, i]]))[0, 1]))
                for one in mapped
            ]
            assert like[1] == pytest.approx(1.0, abs=1e-9)
            assert like[2] < 1 - 1e-6


@pytest.mark.parametrize("pair", ["text", "text-text", "text-image-audio", "text-smell"])
def test_a_pair_that_is_none_is_refused(pair: str) -> None:
    with pytest.raises(ValueError, match=f"pairs: '{pair}' is no pair of two of text, image"):
        replace(preset("tiny"), pairs={pair: 1.0})


def test_there_are_never_more_directions_than_the_features_hold() -> None:
    few = {name: view[:6] for name, view in views().items()}
    weight_FD, bias_D = canonical(few, 256)["text"]
    assert weight_FD.shape == (10, len(bias_D))
    assert len(bias_D) <= 3 * 5
    assert torch.isfinite(weight_FD).all()


def test_a_view_that_is_always_the_same_leads_nowhere() -> None:
    flat = {**views(), "audio": torch.zeros(400, 12)}
    for weight_FD, bias_D in canonical(flat, 3).values():
        assert len(bias_D) == 3  # of the other two
        assert torch.isfinite(weight_FD).all()
        assert torch.isfinite(bias_D).all()


def config(**changes: object) -> TrainConfig:
    base = preset("tiny")
    frozen = {name: replace(one, frozen=True) for name, one in base.model.encoders.items()}
    changes = {"model": replace(base.model, encoders=frozen), "epochs": 1, **changes}
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_training_begins_there(tmp_path: Path) -> None:
    still = {"lr": 0.0, "start_lr": 0.0, "encoder_lr": 0.0, "refit": False}
    begun = train(
        samples(), config(start="cca", **still), out=tmp_path / "a", name="a", version=1, seed=0
    )
    random = train(
        samples(), config(start="random", **still), out=tmp_path / "b", name="b", version=1, seed=0
    )
    pairs = begun.metrics["validation"]["recall"]
    sums = [
        sum(one["1"] for one in manifest.metrics["validation"]["recall"].values())
        for manifest in (begun, random)
    ]
    assert pairs
    assert sums[0] > 2 * sums[1]  # over all directed pairs
    load(tmp_path / "a", device="cpu").check()


def test_without_alignment_it_begins_at_random(tmp_path: Path) -> None:
    still = {"lr": 0.0, "start_lr": 0.0, "encoder_lr": 0.0, "refit": False, "align": 0.0}
    spaces = {
        train(
            samples(),
            config(start=start, **still),
            out=tmp_path / start,
            name=start,
            version=1,
            seed=0,
        ).space
        for start in ("cca", "random")
    }
    assert len(spaces) == 1


def test_projectors_with_a_hidden_layer_are_refused(tmp_path: Path) -> None:
    hidden = config(start="cca")
    hidden = replace(hidden, model=replace(hidden.model, hidden=16))
    with pytest.raises(TrainingError, match="linear projectors"):
        train(samples(), hidden, out=tmp_path / "v", name="v", version=1, seed=0)
    with pytest.raises(ValueError, match="start must be one of random, identity, cca, is 'pca'"):
        config(start="pca")
