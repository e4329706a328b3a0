"""Cross-version recall against a plain computation, adapters, and which space is chosen."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.encoders import CheckpointError, TrainingError, load, preset, train
from braid.encoders.config import from_dict
from braid.encoders.evaluation import compatibility as across
from braid.encoders.evaluation.bootstrap import Bootstrap
from braid.encoders.evaluation.cross_version_recall import cross_version_recall, directions
from braid.encoders.evaluation.examine import Compatibility, Gates, examiner
from braid.encoders.evaluation.fit_adapter import fit_adapter, procrustes
from braid.encoders.evaluation.report import _map, encode_samples
from braid.encoders.manifest import read_manifest
from braid.encoders.model.adapter import Adapter, load_adapter
from braid.encoders.model.checkpoint import load_folder, make_net, save
from braid.encoders.model.frozen_queries import FrozenQueries
from braid.encoders.model.learnt import Learnt
from braid.encoders.model.net import Net
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.training.embeddings import ModelOutputs, group_of, run_models
from braid.encoders.training.evaluate import compute_metrics
from braid.encoders.training.splits import records_of
from tests.encoders.material import samples
from tests.encoders.spaces import LIMITS, D, answers_of, made_up, mapped, rotation

SHORT = replace(preset("tiny"), epochs=2, refit=False)
EASY = Gates(
    min_records=6,
    accuracy=1.0,
    recall=1.0,
    calibration=1.0,
    rank=0.0,
    latency=1e6,
    resamples=100,
    rounds=1,
    batch=2,
)


# ---- R


def plain_recall(query_nD: Tensor, gallery_nD: Tensor, k: int) -> float:
    """Without groups or ties: one record at a time."""
    result = 0
    for row, query_D in enumerate(query_nD.numpy()):
        order = np.argsort(-(gallery_nD.numpy() @ query_D), kind="stable")
        result += row in order[:k]
    return result / len(query_nD)


def test_r_is_the_smaller_of_two_recalls_over_the_old_one() -> None:
    old = made_up(noise=1.0)
    new = mapped(old, lambda v: v + 0.8 * v.roll(1, 1))
    k, group_N = 3, torch.arange(60)
    recalls = cross_version_recall(old, new, group_N, k=k, seed=4)
    first_N = np.random.default_rng([4, 50]).permutation(60) % 2 == 0
    both_N = (old.present_NM.all(1)).numpy()
    means: dict[str, list[float]] = {"old": [], "cross": [], "mixed": []}
    shares = []
    for query, target in (("text", "image"), ("image", "text")):
        for _ in range(2):  # the modality, and the fused vector of it alone: the same here
            asked_nD, shelf_nD = new.by[query][both_N], old.by[target][both_N]
            means["old"].append(plain_recall(old.by[query][both_N], shelf_nD, k))
            means["cross"].append(plain_recall(asked_nD, shelf_nD, k))
            halves = []
            for half_n in (first_N[both_N], ~first_N[both_N]):
                gallery_nD = new.by[target][both_N].clone()
                gallery_nD[half_n] = shelf_nD[half_n]
                halves.append(plain_recall(asked_nD, gallery_nD, k))
                tops = [np.argsort(-(gallery_nD.numpy() @ q))[:k] for q in asked_nD.numpy()]
                shares.append(np.mean(half_n[np.stack(tops)]) - half_n.mean() + 0.5)
            means["mixed"].append(float(np.mean(halves)))
    assert sorted(recalls.hits["old"]) == [
        "image->fused",
        "image->text",
        "text->fused",
        "text->image",
    ]
    for way, values in means.items():
        assert recalls.recall(way) == pytest.approx(np.mean(values), abs=1e-6)
    low = float(min(np.mean(means["cross"]), np.mean(means["mixed"])))
    assert recalls.ratio == pytest.approx(low / np.mean(means["old"]), abs=1e-6)
    assert recalls.share == pytest.approx(np.mean(shares), abs=1e-6)
    assert 0.1 < recalls.ratio < 0.99
    low, high = recalls.interval(Bootstrap(60, resamples=200, seed=0))
    assert low < recalls.ratio < high


def test_each_limit_of_staying_is_told_when_it_is_missed() -> None:
    old = made_up(noise=1.2)
    same = answers_of({"text": old.by["text"], "image": old.by["text"]}, old.present_NM)

    def entry(new: ModelOutputs, **limits: Any) -> dict[str, Any]:
        comparison = across._SpaceComparison(
            old=old,
            new=new,
            group_N=torch.arange(60),
            limits=Compatibility(k=3, **limits),
            min_records=2,
            seed=0,
            bootstrap=Bootstrap(60, resamples=100, seed=0),
        )
        return comparison.entry(across.SAME, comparison.base)

    assert entry(old)["failed"] == []
    # Perfect by itself: what it loses by staying among old vectors is more than a point.
    better = entry(same)
    assert "cost" in better["failed"]
    assert better["cost"] == pytest.approx(1.0 - better["recall"])
    assert "cost" not in entry(same, cost=1.0)["failed"]
    turned_away = entry(mapped(old, lambda v: v @ rotation()), cost=1.0, even=1.0)
    assert turned_away["failed"] == ["ratio"]
    assert not turned_away["passed"]
    # What an adapter may cost is against the model as it is where that finds more than its own.
    comparison = across._SpaceComparison(
        old=same,
        new=old,
        group_N=torch.arange(60),
        limits=Compatibility(k=3),
        min_records=2,
        seed=0,
        bootstrap=Bootstrap(60, resamples=100, seed=0),
    )
    as_it_is, its_own = comparison.base.recall("mixed"), comparison.base.recall("new")
    assert as_it_is > its_own
    assert comparison.entry(across.SAME, comparison.base)["cost"] == 0
    lost = comparison.cross(mapped(old, lambda v: v @ rotation()))
    assert comparison.entry(across.ADAPTER, lost)["cost"] == pytest.approx(
        as_it_is - lost.recall("mixed"), abs=1e-4
    )


def test_a_version_is_compatible_with_itself_exactly() -> None:
    old = made_up(audio=True)
    recalls = cross_version_recall(old, old, torch.arange(60), k=10)
    assert recalls.ratio == 1.0
    assert recalls.share == pytest.approx(0.5)
    assert recalls.interval(Bootstrap(60, resamples=50, seed=0)) == (1.0, 1.0)


def test_the_query_s_own_modality_is_never_in_the_target() -> None:
    result = list(directions(("text", "image", "audio")))
    assert ("text->fused", "text", "fused image+audio") in result
    assert ("text+audio->image", "text+audio", "image") in result
    assert len(result) == 3 * 3 + 3 * 2
    for _, query, target in result:
        assert not set(query.split("+")) & set(target.removeprefix("fused ").split("+"))
    assert list(directions(("text",))) == [("text->text", "text", "text")]


def test_a_version_that_buries_the_old_vectors_is_not_even() -> None:
    """Its own vectors share a direction that old ones lack: found, but always after its own."""
    old = made_up()
    wide = answers_of(
        {n: torch.nn.functional.pad(v, (0, 1)) for n, v in old.by.items()}, old.present_NM
    )
    new = mapped(wide, lambda v: v + torch.nn.functional.one_hot(torch.tensor(D), D + 1) * 0.8)
    recalls = cross_version_recall(wide, new, torch.arange(60), k=10)
    assert recalls.share < 0.3
    assert recalls.recall("cross") == pytest.approx(
        recalls.recall("old")
    )  # R alone would not see it


# ---- adapters


def test_procrustes_recovers_a_rotation_exactly() -> None:
    old, r_DD = made_up(200), rotation()
    new = mapped(old, lambda v: v @ r_DD.T)
    raw = cross_version_recall(old, new, torch.arange(200), k=3)
    assert raw.ratio < 0.15
    adapter = fit_adapter("procrustes", *across.pairs(old, new)[::-1], LIMITS)
    assert torch.allclose(adapter.tensors["R"], r_DD, atol=1e-4)
    recalls = cross_version_recall(old, across.mapped(new, adapter), torch.arange(200), k=3)
    assert recalls.ratio == pytest.approx(1.0, abs=1e-3)
    assert recalls.share == pytest.approx(0.5, abs=1e-3)
    assert torch.allclose(procrustes(old.by["text"], new.by["text"]), r_DD.T, atol=1e-4)
    back = fit_adapter("procrustes", *across.pairs(old, new), LIMITS)
    stored = cross_version_recall(old, new, torch.arange(200), k=3, stored=back)
    assert stored.ratio == pytest.approx(1.0, abs=1e-3)


# ---- the choice, with whole versions


@pytest.fixture(scope="module")
def champion(version: Path) -> TorchModel:
    return load_folder(version, device="cpu")


def turned(version: Path, folder: Path) -> Path:
    """The champion with every projector turned by one rotation: as good, and nothing fits."""
    model = load_folder(version, device="cpu")
    q_DD = rotation(dim=model.dim)
    with torch.no_grad():
        for name in model.modalities:
            linear = cast(Any, model.net.projectors[name]).layers[-1]
            linear.weight.copy_(q_DD @ linear.weight)
            linear.bias.copy_(q_DD @ linear.bias)
    save(model.net, folder, config=from_dict(model.manifest.config), name="v2", version_number=2)
    return folder


def examined(
    net: Net,
    folder: Path,
    champion: Path,
    limits: Compatibility,
    gates: Gates = EASY,
    count: int = 240,
) -> TorchModel:
    """Written, examined and loaded, as training does it."""
    examine = examiner(champion, gates=gates, compatibility=limits)
    save(
        net,
        folder,
        config=preset("tiny"),
        name=folder.name,
        version_number=2,
        examine=lambda draft: examine(draft, samples(count)),
        queries=samples(8),
        learnt=Learnt.read(champion, read_manifest(champion)),
    )
    model = load_folder(folder, device="cpu")
    model.check()
    return model


@pytest.mark.slow
def test_a_turned_model_stays_in_the_space_through_its_adapter(
    version: Path, champion: TorchModel, tmp_path: Path
) -> None:
    other = load_folder(turned(version, tmp_path / "raw"), device="cpu")
    model = examined(other.net, tmp_path / "v2", version, LIMITS)
    story = model.manifest.compatibility
    assert story["choice"] == "adapter"
    assert (story["adapter"]["kind"], story["adapter"]["applied"]) == ("procrustes", True)
    assert model.space == champion.space != other.net.space()
    raw, first = story["tried"][0], story["tried"][1]
    assert (raw["choice"], raw["passed"]) == ("same space", False)
    assert (first["maps"], first["passed"]) == ("the new model's vectors", True)
    assert first["ratio"] > 0.99 > raw["ratio"]
    assert first["re_embedded"] == "none"
    assert story["tried"][-1] == {
        "choice": "new space",
        "recall": story["new_to_new"],
        "cost": 0.0,
        "passed": True,
        "re_embedded": "every record",
    }
    json.dumps(story, allow_nan=False)

    made = samples(8)
    frozen = FrozenQueries.read(tmp_path / "v2", model.manifest)
    for sample in made:
        served = model.encode([model.prepare(sample)])[0].by
        for name, vector_D in served.items():
            assert frozen.vectors[name][sample.id] == pytest.approx(vector_D, abs=1e-5)
    for a, b in zip(
        *(m.encode([m.prepare(s) for s in made]) for m in (champion, model)), strict=True
    ):
        assert b.fused == pytest.approx(a.fused, abs=0.02)
        assert {name: float(a.by[name] @ b.by[name]) for name in a.by} == pytest.approx(
            dict.fromkeys(a.by, 1.0), abs=1e-3
        )
    kept = load_adapter(tmp_path / "v2", model.manifest)
    assert kept is not None
    alone = other.encode([other.prepare(made[0])])[0].fused
    assert kept.apply(alone[None])[0] == pytest.approx(
        model.encode([model.prepare(made[0])])[0].fused, abs=1e-5
    )
    assert load_adapter(tmp_path / "v2", model.manifest, applied=False) is None

    # Only its heads trained anew, it is still there, adapter and all.
    child = train(
        samples(60),
        SHORT,
        out=tmp_path / "v3",
        name="v3",
        version=3,
        seed=0,
        parent=tmp_path / "v2",
        heads_only=True,
        examine=examiner(tmp_path / "v2", gates=EASY, compatibility=LIMITS),
    )
    assert (child.space, child.compatibility["choice"]) == (champion.space, "same space")
    loaded = load_folder(tmp_path / "v3", device="cpu")
    loaded.check()
    assert loaded.encode([loaded.prepare(made[0])])[0].fused == pytest.approx(
        model.encode([model.prepare(made[0])])[0].fused, abs=1e-5
    )

    unseen = save(
        model.net,
        tmp_path / "v4",
        config=SHORT,
        name="v4",
        version_number=4,
        unchanged_from=tmp_path / "v2",
    )
    assert (unseen.space, unseen.verdict) == (champion.space, {})  # also where nobody examines
    load(tmp_path / "v4", device="cpu").check()

    (tmp_path / "v2" / "adapter.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors is damaged"):
        load(tmp_path / "v2")
    with pytest.raises(CheckpointError, match="its adapter does not load"):
        load_adapter(tmp_path / "v2", model.manifest)


def test_without_adapters_a_turned_model_opens_a_new_space(
    version: Path, champion: TorchModel, tmp_path: Path
) -> None:
    other = load_folder(turned(version, tmp_path / "raw"), device="cpu")
    model = examined(other.net, tmp_path / "v2", version, replace(LIMITS, adapters=()))
    assert model.manifest.compatibility["choice"] == "new space"
    assert model.manifest.verdict["passed"]
    assert model.space == other.net.space() != champion.space
    assert model.adapter is None


def test_a_challenger_that_fails_its_gates_is_kept_in_a_space_of_its_own(
    version: Path, champion: TorchModel, tmp_path: Path
) -> None:
    other = load_folder(turned(version, tmp_path / "raw"), device="cpu")  # its heads know nothing
    model = examined(other.net, tmp_path / "v2", version, LIMITS, replace(EASY, accuracy=0.01))
    verdict, story = model.manifest.verdict, model.manifest.compatibility
    assert (verdict["passed"], verdict["decision"]) == (False, "failed")
    failed = [gate["metric"] for gate in verdict["gates"] if gate.get("failed")]
    assert failed == ["accuracy colour: as it comes"]
    assert verdict["reason"] == f"failed: {', '.join(failed)}"
    assert (story["choice"], story["tried"]) == ("new space", [])
    assert "not measured, the verdict is: failed" in story["reason"]
    assert model.space == other.net.space() != champion.space


@pytest.mark.slow
def test_an_unrelated_model_opens_a_new_space(version: Path, tmp_path: Path) -> None:
    config = from_dict(load_folder(version).manifest.config)
    torch.manual_seed(99)
    net = make_net(config, load_folder(version).net.tasks)
    net.eval()
    model = examined(net, tmp_path / "v2", version, replace(LIMITS, k=1))
    story = model.manifest.compatibility
    assert story["choice"] == "new space", story
    assert model.space == net.space()
    tried = [(one.get("kind"), one.get("maps")) for one in story["tried"]]
    assert tried == [
        (None, None),
        *((kind, maps) for kind in LIMITS.adapters for maps in (across.QUERIES, across.STORED)),
        (None, None),
    ]


@pytest.mark.slow
def test_stored_vectors_are_mapped_where_that_is_allowed(
    version: Path, champion: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_folder(turned(version, tmp_path / "raw"), device="cpu")
    made = samples(240)
    kept, pair = run_models((champion, other), records_of(made, "judge"), predict=False)
    monkeypatch.setattr(across, "mapped", lambda one, adapter: one)  # the other way never passes

    def choose_space(stored: bool) -> across.Choice:
        limits = replace(LIMITS, stored=stored, adapters=("procrustes",))
        return across.choose_space(
            champion, other, kept, (pair[0], pair[1]), made, limits, min_records=6, resamples=100
        )

    assert choose_space(False).report["choice"] == "new space"
    result = choose_space(True)
    assert result.report["choice"] == "adapter"
    assert result.space == other.space
    assert result.report["adapter"]["applied"] is False
    assert result.adapter is not None
    old, new = (m.encode([m.prepare(made[0])])[0].fused for m in (champion, other))
    assert float(result.adapter.apply(old[None])[0] @ new) > 0.999


@pytest.mark.slow
def test_new_heads_alone_keep_the_space(version: Path, tmp_path: Path) -> None:
    made = train(
        samples(),
        SHORT,
        out=tmp_path / "v2",
        name="v2",
        version=2,
        seed=3,
        parent=version,
        heads_only=True,
        examine=examiner(version, gates=EASY),
    )
    champion = load(version, device="cpu").manifest
    assert made.space == champion.space
    assert made.compatibility["choice"] == "same space"
    assert made.compatibility["reason"] == "encoders, projections and fusion are unchanged"
    assert made.verdict["passed"]
    assert made.files["model.safetensors"] != champion.files["model.safetensors"]


# ---- the loss


@pytest.mark.slow
def test_the_pull_makes_a_new_version_find_the_old_vectors(
    version: Path, champion: TorchModel, tmp_path: Path
) -> None:
    made = samples(240)
    result = {}
    for weight in (0.0, 3.0):
        config = replace(SHORT, epochs=6, compatible=weight)
        out = tmp_path / f"v{weight:g}"
        manifest = train(made[:160], config, out=out, name="v", version=2, seed=5, champion=version)
        assert ("compatible" in manifest.metrics["parts"]) == (weight > 0)
        kept, (old, new) = run_models(
            (champion, load_folder(out, device="cpu")), records_of(made, "judge"), predict=False
        )
        result[weight] = cross_version_recall(old, new, group_of(kept), k=3)
    assert result[3.0].ratio > 0.8
    assert result[0.0].ratio < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"champion": None}, "needs a champion or a parent"),
        ({"dim": 32}, "another dimension"),
        ({"frozen": True}, "the frozen text encoder is not that of tiny-0001"),
    ],
    ids=["none", "dimension", "frozen"],
)
def test_what_nothing_can_be_compatible_with_says_why(
    version: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = SHORT.model
    if "dim" in change:
        model = replace(model, dim=32)
    if "frozen" in change:
        text = replace(model.encoders["text"], frozen=True)
        model = replace(model, encoders={**model.encoders, "text": text})
    config = replace(SHORT, compatible=1.0, model=model)
    with pytest.raises(TrainingError, match=message):
        train(
            samples(60),
            config,
            out=tmp_path / "v",
            name="v",
            version=2,
            seed=0,
            champion=change.get("champion", version),
        )
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_measures_what_is_served(champion: TorchModel) -> None:
    flat_DD = torch.zeros(champion.dim, champion.dim)
    flat_DD[:, 0] = 1.0  # every vector becomes the same one, or its opposite
    adapter = Adapter(kind="procrustes", tensors={"R": flat_DD})
    flat = TorchModel(champion.net, champion.manifest, champion.device, adapter)
    _, seen = encode_samples(champion, samples(40), Counter())
    plain = compute_metrics(champion.net, seen)
    result = compute_metrics(flat.net, seen, flat.served)
    for kind, way in (("recall", "text->image"), ("recall_fused", "text->fused")):
        assert result[kind][way]["1"] < plain[kind][way]["1"]
    assert result["accuracy"] == plain["accuracy"]
    points = np.array(_map(flat, seen, samples(40))["points"])
    assert np.abs(points[:, 1]).max() < 1e-3  # two places only: a line


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"k": 0}, "compatibility.k must be at least 1"), ({"adapters": ("magic",)}, "'magic'")],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compatibility(**changes)
