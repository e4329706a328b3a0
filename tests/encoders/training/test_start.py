"""Projectors that start at canonical correlations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from braid.encoders import TrainingError, load, preset, train
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.training.start import canonical, naming, principal
from tests.encoders.checkpoints import write_bert
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


def test_views_of_one_space_keep_their_similarities() -> None:
    torch.manual_seed(1)
    hidden_nN = torch.randn(50, 6) @ torch.diag(torch.tensor([4.0, 3.0, 0.1, 0.1, 0.1, 0.1]))
    both = {"text": hidden_nN + 5.0, "image": 2.0 * hidden_nN - 3.0}
    maps = principal(both, 2, 0.5)
    mapped = {name: view.double() @ maps[name][0] + maps[name][1] for name, view in both.items()}
    for of in mapped.values():
        assert of.shape == (50, 2)
        assert of.mean(0).abs().max() < 1e-6
        assert of.norm(dim=1).mean().item() == pytest.approx(0.5)
    torch.testing.assert_close(mapped["text"], mapped["image"])  # one is the other, moved, doubled
    kept_nn = mapped["text"] @ mapped["text"].T
    told_nn = (hidden_nN - hidden_nN.mean(0)).double() @ (hidden_nN - hidden_nN.mean(0)).double().T
    assert torch.corrcoef(torch.stack([kept_nn.flatten(), told_nn.flatten()]))[0, 1] > 0.999
    assert len(principal(both, 256, 0.5)["text"][1]) == 6
    assert principal({}, 4, 0.5) == {}


def seeing(text: EncoderConfig, names_source: str | None) -> ModelConfig:
    """Captions, and pictures by an encoder that names what it sees by vectors of `names_source`."""
    options = {"side": 32, "names": 32, "names_source": names_source} if names_source else {}
    image = EncoderConfig(kind="efficientnet-lite0", frozen=True, options=options)
    return ModelConfig(encoders={"text": text, "image": image}, dim=64)


def test_an_encoder_that_names_what_it_sees_by_the_text_encoder(tmp_path: Path) -> None:
    write_bert(tmp_path / "text")
    write_bert(tmp_path / "other")
    source = str(tmp_path / "text")
    text = EncoderConfig(kind="transformer", source=source, options={"layers": [0, -1]})
    views = {"text": torch.randn(3, 64), "image": torch.randn(3, 100)}
    named = naming(seeing(text, source), views)
    assert torch.equal(named["text"], views["text"][:, 32:])
    assert torch.equal(named["image"], views["image"][:, 68:])
    first = replace(text, options={"layers": [-1, 0]})
    for model in (
        seeing(text, None),
        seeing(text, str(tmp_path / "other")),
        seeing(first, source),
    ):
        assert naming(model, views) == {}
    assert naming(seeing(text, source), {"image": views["image"]}) == {}


@pytest.mark.slow
def test_a_quarter_of_the_dimensions_begins_by_names(tmp_path: Path) -> None:
    write_bert(tmp_path / "text")
    source = str(tmp_path / "text")
    text = EncoderConfig(kind="transformer", source=source, frozen=True)
    still = config(start="cca", lr=0.0, start_lr=0.0, encoder_lr=0.0, refit=False)
    seen = [sample for sample in samples() if sample.text and sample.image]
    train(
        seen,
        replace(still, model=seeing(text, source)),
        out=tmp_path / "v",
        name="v",
        version=1,
        seed=0,
    )
    model = load(tmp_path / "v", device="cpu")
    assert isinstance(model, TorchModel)
    text_DF, image_DF = (
        next(p for p in model.net.projectors[name].parameters() if p.ndim == 2)
        for name in ("text", "image")
    )
    names_KN, image_KN = text_DF[48:], image_DF[48:, -32:]
    assert names_KN.norm() > 0
    scale = image_KN.norm() / names_KN.norm()
    torch.testing.assert_close(image_KN, scale * names_KN)
    assert image_DF[48:, :-32].abs().max() == 0.0
    assert image_DF[:48, :-32].abs().max() > 0.0


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
