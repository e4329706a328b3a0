"""The training loop: repeatable, refuses what is not finite, says what it left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.encoders import Sample, TrainingError, load, preset, split, train
from braid.encoders.config import EncoderConfig, TrainConfig, from_dict
from braid.encoders.manifest import Manifest
from braid.encoders.model.checkpoint import make_net
from braid.encoders.model.decision import known
from braid.encoders.model.fusion import FUSIONS, IntermediateFusion, Tokens
from braid.encoders.model.net import Net
from braid.encoders.presets import PRESETS
from braid.encoders.training.data import Dataset, gather
from braid.encoders.training.evaluate import held_out_loss
from braid.encoders.training.metrics import ranks, recall
from braid.encoders.training.objective import Objective
from braid.encoders.types import Label
from tests.encoders.material import png, samples

SHORT = replace(preset("tiny"), epochs=2)


BARE = [replace(sample, labels={}) for sample in samples()]


def run(tmp_path: Path, name: str = "v", **changes: Any) -> Manifest:
    given: dict[str, Any] = {"samples": samples(), "config": SHORT, "seed": 0, **changes}
    return train(
        given.pop("samples"),
        given.pop("config"),
        out=tmp_path / name,
        name=name,
        version=1,
        **given,
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses_and_the_same_space(tmp_path: Path) -> None:
    first = run(tmp_path, "a")
    torch.rand(1)  # the caller's randomness has moved on: it must not matter
    second = run(tmp_path, "b")
    assert first.metrics["losses"] == pytest.approx(second.metrics["losses"], abs=1e-6)
    assert first.space == second.space
    assert run(tmp_path, "c", seed=1).metrics["losses"] != first.metrics["losses"]


@pytest.mark.slow
def test_training_leaves_the_callers_randomness_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.slow
def test_the_loss_falls_and_the_metrics_are_there(manifest: Manifest) -> None:
    losses = manifest.metrics["losses"]
    assert losses[-1] < 0.7 * losses[0]
    validation = manifest.metrics["validation"]
    assert validation["accuracy"]["colour"]["fused"] >= max(
        validation["accuracy"]["colour"][name] for name in ("text", "image", "audio")
    )
    assert set(validation["recall"]) == {
        f"{a}->{b}"
        for a in ("text", "image", "audio")
        for b in ("text", "image", "audio")
        if a != b
    }


def test_a_step_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 0: loss inf"):
        run(tmp_path, config=replace(SHORT, task=math.inf))
    assert list(tmp_path.iterdir()) == []


def test_an_exploding_gradient_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> torch.Tensor:
        return torch.tensor(math.inf)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    with pytest.raises(TrainingError, match="gradient inf"):
        run(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, Mapping[str, float]]] = []
    run(tmp_path, progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(stage for stage, *_ in told)) == [
        "read",
        "train",
        "evaluate",
        "refit",
        "write",
    ]
    assert [(done, total) for stage, done, total, _ in told if stage == "train"] == [(1, 2), (2, 2)]
    assert all("loss" in figures for stage, _, _, figures in told if stage == "train")
    reads = [(done, total) for stage, done, total, _ in told if stage == "read"]
    assert len(reads) > 1
    assert all(total == 160 for _, total in reads)


@pytest.mark.slow
def test_samples_may_come_one_by_one_and_in_any_order(tmp_path: Path) -> None:
    made = samples()
    first = run(tmp_path, "a", samples=iter(made))
    second = run(tmp_path, "b", samples=iter(made[::-1]))
    assert first.metrics["loss"] == pytest.approx(second.metrics["loss"], abs=1e-3)


@pytest.mark.slow
def test_the_judge_split_is_not_looked_at_and_bad_samples_are_counted(tmp_path: Path) -> None:
    made = samples()
    judged = {sample.id for sample in made if split(sample.id) == "judge"}
    poisoned = [
        replace(sample, labels={"colour": "leaked"}) if sample.id in judged else sample
        for sample in made
    ]
    ids = [f"bad{i}" for i in range(40) if split(f"bad{i}") != "judge"][:5]
    assert split(ids[0] + "none") != "judge"
    assert split("n") != "judge"
    poisoned += [Sample(id=one, image=b"broken") for one in ids]
    again = next(sample for sample in made if sample.id not in judged)
    poisoned += [Sample(id=ids[0] + "none"), again]
    poisoned += [Sample(id="n", text="priced", labels={"colour": 3.5})]
    done = run(tmp_path, samples=poisoned)
    assert "leaked" not in done.tasks["colour"]["classes"]
    left_out = Counter(done.metrics["left_out"])
    assert left_out == {
        "judge split": len(judged),
        "bad input": 6,
        "older version of an id": 1,
        "label of another kind": 1,
    }


@pytest.mark.slow
def test_without_labels_it_still_aligns(tmp_path: Path) -> None:
    done = run(tmp_path, samples=[replace(sample, labels={}) for sample in samples()])
    assert done.tasks == {}
    model = load(tmp_path / "v", device="cpu")
    model.check()
    assert model.encode([model.prepare(samples(1)[0])])[0].tasks == {}


@pytest.mark.slow
def test_one_modality_alone_is_enough(tmp_path: Path) -> None:
    made = [replace(sample, image=None, audio=None) for sample in samples() if sample.text]
    done = run(tmp_path, samples=made, config=replace(SHORT, epochs=20))
    assert done.metrics["validation"]["accuracy"]["colour"]["text"] > 0.9
    model = load(tmp_path / "v", device="cpu")
    (embedding,) = model.encode([model.prepare(Sample(id="p", image=png()))])
    assert tuple(embedding.by) == ("image",)  # untrained, but served


def test_several_tasks_each_on_what_has_its_label() -> None:
    """The loss of all samples is that of each task on the samples that have its label."""
    made = [
        replace(
            sample,
            labels={
                **sample.labels,
                **({"half": "ab"[i % 2]} if i % 3 else {}),
                **({"size": float(i % 7)} if i % 4 else {}),
                **({"marks": [mark for mark in "xy" if (i + ord(mark)) % 3]} if i % 5 else {}),
            },
        )
        for i, sample in enumerate(samples())
    ]
    config = replace(SHORT, task=1.0, align=0.0, fuse=1.0, drop=0.0, batch=1000)
    device = torch.device("cpu")
    torch.manual_seed(0)
    net = make_net(config, {})
    data = gather(made, net, config, all_frozen=False, device=device, progress=lambda *_: None)
    net.new_heads(data.tasks)
    objective = Objective(net.modalities, config)
    assert set(data.tasks) == {"colour", "half", "marks", "size"}

    def loss(data: Dataset, rows: torch.Tensor) -> float:
        return held_out_loss(net, objective, data, rows, device)

    apart = 0.0
    for name, target in data.target.items():
        rows = torch.nonzero(known(target)).flatten()
        assert 0 < len(rows) < len(data.ids)
        apart += loss(replace(data, target={name: target}), rows)
    assert loss(data, torch.arange(len(data.ids))) == pytest.approx(apart, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": []}, "no usable sample"),
        ({"samples": [Sample(id="x")]}, "no usable sample"),
        ({"heads_only": True}, "needs a parent"),
        ({"config": replace(SHORT, max_classes=3)}, "colour.*4 classes"),
        (
            {"samples": BARE, "config": replace(SHORT, align=0.0)},
            "no label makes a task.*align 0.0, match 0.0",
        ),
        (
            {"samples": [replace(sample, image=None, audio=None) for sample in BARE]},
            "no label makes a task.*0 of 96 samples have two modalities",
        ),
        (
            {
                "samples": [replace(sample, labels={"colour": "red"}) for sample in BARE],
                "config": replace(SHORT, align=0.0),
            },
            "no label makes a task",
        ),
        (
            {"config": replace(SHORT, align=0.0, task=0.0, fuse=0.0)},
            "task 0.0 and fuse 0.0 leave the labels out",
        ),
    ],
    ids=[
        "nothing",
        "nothing usable",
        "heads only",
        "too many classes",
        "neither label nor pair",
        "one modality",
        "one class",
        "no weight",
    ],
)
def test_what_cannot_be_trained_says_why(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [{}, {"colour": "red"}], ids=["no label", "one class"])
def test_heads_only_needs_something_to_tell_apart(
    tmp_path: Path, version: Path, labels: dict[str, Label]
) -> None:
    made = [replace(sample, labels=labels) for sample in BARE]
    with pytest.raises(TrainingError, match="only heads are trained, and no label makes a task"):
        run(tmp_path, samples=made, parent=version, heads_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_last_batch_that_no_encoder_takes_teaches_nothing(tmp_path: Path) -> None:
    """Of one sample: batch norm needs two, so its modalities sit it out."""
    number = sum(split(sample.id) == "train" for sample in BARE)
    config = replace(SHORT, batch=number - 1, refit=False)
    assert math.isfinite(run(tmp_path, samples=BARE, config=config).metrics["loss"])


def test_a_parent_of_another_shape_is_refused(tmp_path: Path, version: Path) -> None:
    other = replace(SHORT, model=replace(SHORT.model, dim=32))
    with pytest.raises(TrainingError, match="another model configuration"):
        run(tmp_path, config=other, parent=version)


def test_the_configuration_survives_json() -> None:
    import json

    for name in PRESETS:
        config = preset(name)
        assert from_dict(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()
    older = {**config.to_dict(), "balance": 0.5}
    assert from_dict(older) == config, "a field that was removed since"
    with pytest.raises(ValueError, match="no preset"):
        preset("huge")


def test_an_unknown_encoder_is_named(tmp_path: Path) -> None:
    encoders = {"text": EncoderConfig(kind="telepathy")}
    config: TrainConfig = replace(SHORT, model=replace(SHORT.model, encoders=encoders))
    with pytest.raises(ValueError, match="telepathy"):
        run(tmp_path, config=config)


def test_recall_counts_the_same_content_as_right_and_ties_both_ways() -> None:
    eye = torch.eye(4)
    assert recall(eye, eye, torch.arange(4))["1"] == 1.0
    swapped = eye[[1, 0, 2, 3]]
    assert recall(eye, swapped, torch.arange(4))["1"] == 0.5
    assert recall(eye, swapped, torch.tensor([0, 0, 1, 2]))["1"] == 1.0
    same = torch.ones(4, 4) / 2
    assert recall(same, same, torch.arange(4))["1"] == 0.0
    assert recall(same, same, torch.arange(4), ties_right=True)["1"] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_equal_captions_from_other_batches_are_ties(seed: int) -> None:
    """Their vectors differ by what the padding of a batch rounds."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(20, 32, generator=generator), dim=1)
    twice = vectors.repeat(2, 1) + 1e-7 * torch.randn(40, 32, generator=generator)
    rank_B = ranks(twice, vectors.repeat(2, 1), torch.arange(40))
    assert rank_B.tolist() == [1] * 40
    assert (
        ranks(twice, vectors.repeat(2, 1), torch.arange(40), ties_right=True).tolist() == [0] * 40
    )


@pytest.mark.parametrize("ties_right", [False, True])
def test_a_vector_that_is_not_finite_is_never_found(ties_right: bool) -> None:
    query, target, group = torch.eye(4), torch.eye(4), torch.tensor([0, 1, 2, 3])
    for broken in (math.nan, math.inf, -math.inf):
        query_BD, target_BD = query.clone(), target.clone()
        query_BD[1, 0] = broken
        assert ranks(query_BD, target, group, ties_right=ties_right).tolist() == [0, 3, 0, 0]
        target_BD[2, 0] = broken
        found = ranks(query, target_BD, group, ties_right=ties_right).tolist()
        assert found == [0, 0, 3, 0]
        alike = torch.tensor([0, 1, 2, 2])  # the other right one is found
        assert int(ranks(query, target_BD, alike, ties_right=ties_right)[2]) < 3


def test_the_split_is_fixed_for_ever() -> None:
    result = Counter(split(str(i)) for i in range(5000))
    assert result["train"] == pytest.approx(4000, abs=120)
    assert result["validation"] == pytest.approx(500, abs=70)
    assert [split(one) for one in ("a", "b", "c", "d", "e", "f")] == [
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
    ]


@pytest.mark.slow
def test_without_a_judge_its_tenth_trains(tmp_path: Path) -> None:
    assert {split(str(i), judge=False) for i in range(5000)} == {"train", "validation"}
    kept, all_of_it = (
        run(tmp_path, str(judge), config=replace(SHORT, judge=judge, epochs=1))
        for judge in (True, False)
    )
    judged = sum(split(sample.id) == "judge" for sample in samples())
    assert judged > 0
    assert kept.metrics["left_out"]["judge split"] == judged
    assert "judge split" not in all_of_it.metrics["left_out"]
    assert all_of_it.metrics["train_samples"] == kept.metrics["train_samples"] + judged


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["mean", "early", "intermediate"])
def test_every_fusion_is_trained_written_and_loaded(tmp_path: Path, fusion: str) -> None:
    config = replace(preset("tiny"), match=1.0, model=replace(SHORT.model, fusion=fusion))
    manifest = run(tmp_path, config=config)
    losses = manifest.metrics["losses"]
    assert losses[-1] < losses[0]
    model = load(tmp_path / "v", device="cpu")
    model.check()
    (embedding,) = model.encode([model.prepare(Sample(id="1", text="a red thing"))])
    assert embedding.tasks["colour"].label == "red"


@pytest.mark.slow
def test_a_frozen_encoders_tokens_reach_the_fusion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = {
        name: replace(encoder, frozen=True) for name, encoder in SHORT.model.encoders.items()
    }
    model = replace(SHORT.model, fusion="intermediate", encoders=encoders)
    config = replace(SHORT, model=model, refit=False)
    seen: dict[int, set[int]] = {}

    class Seen(IntermediateFusion):
        def forward(
            self, unit_BMD: torch.Tensor, present_BM: torch.Tensor, tokens: Tokens | None = None
        ) -> torch.Tensor:
            if self.training:
                for m, (_, mask_BT) in (tokens or {}).items():
                    seen.setdefault(m, set()).update(mask_BT.sum(1).tolist())
            return super().forward(unit_BMD, present_BM, tokens)

    monkeypatch.setitem(FUSIONS, "intermediate", Seen)
    with_tokens = run(tmp_path, "a", config=config)
    text, image, audio = (seen[m] for m in range(3))
    assert text == {0, 5}, "words; none where there is no text"
    assert image == {0, 16}
    assert len(audio) > 0
    assert 0 not in audio, "every sample has a sound"
    monkeypatch.setattr(Net, "tokens", lambda *_: {})
    without = run(tmp_path, "b", config=config)
    assert abs(with_tokens.metrics["losses"][-1] - without.metrics["losses"][-1]) > 1e-4
