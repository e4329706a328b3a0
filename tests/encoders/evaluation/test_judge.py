"""The judge: every gate on both sides, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.encoders import (
    CheckpointError,
    Manifest,
    Sample,
    TrainingError,
    load,
    preset,
    split,
    train,
)
from braid.encoders.evaluation import judge as court
from braid.encoders.evaluation.bootstrap import Bootstrap
from braid.encoders.evaluation.examine import Gates, examiner
from braid.encoders.evaluation.verdict import decide
from braid.encoders.model.adapter import Adapter
from braid.encoders.model.checkpoint import load_folder
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.tasks import Task
from braid.encoders.training import loop
from braid.encoders.training.embeddings import ALL, ModelOutputs, TaskOutput, run_models
from braid.encoders.training.splits import records_of
from braid.encoders.types import Examination
from tests.encoders.material import samples

SHORT = replace(preset("tiny"), epochs=1, refit=False)
# Any drop is within these margins: so few records show nothing less.
EASY = Gates(min_records=8, accuracy=1.0, recall=1.0, latency=1e6, resamples=200, rounds=1, batch=2)
N = 800


# ---- every gate, on made-up answers

TASKS = {
    "kind": Task(classes=("a", "b")),
    "tags": Task(kind="multilabel", classes=("x", "y")),
    "size": Task(kind="regression", mean=10.0, spread=4.0),
}
TRUTH = [
    Sample(
        id=str(i),
        text=str(i),
        labels={"kind": "ab"[i % 2], "tags": ["x"] if i % 3 else ["x", "y"], "size": float(i % 9)},
    )
    for i in range(N)
]


def made_up() -> ModelOutputs:
    """A perfect version: right, sure by 0.97, text finds picture and picture text."""
    unit_ND = torch.nn.functional.normalize(
        torch.randn(N, 32, generator=torch.Generator().manual_seed(0)), dim=1
    )
    kind_N = torch.tensor([i % 2 for i in range(N)])
    sure_NC = torch.full((N, 2), 0.03)
    sure_NC[torch.arange(N), kind_N] = 0.97
    tags_NC = torch.tensor([[1.0, float(i % 3 == 0)] for i in range(N)])
    size_N = torch.tensor([(i % 9 - 10.0) / 4.0 for i in range(N)])
    every = ("text", "image", "text+image", ALL)
    return ModelOutputs(
        modalities=("text", "image"),
        tasks=TASKS,
        present_NM=torch.ones(N, 2, dtype=torch.bool),
        by={"text": unit_ND, "image": unit_ND},
        fused=dict.fromkeys(every, unit_ND),
        task_outputs={
            "kind": dict.fromkeys(every, TaskOutput(probs_NC=sure_NC, decided_N=kind_N)),
            "tags": dict.fromkeys(every, TaskOutput(probs_NC=tags_NC, decided_N=tags_NC > 0.5)),
            "size": dict.fromkeys(every, TaskOutput(probs_NC=size_N[:, None], decided_N=size_N)),
        },
    )


def with_output(one: ModelOutputs, task: str, subset: str, **changes: Tensor) -> ModelOutputs:
    output = replace(one.task_outputs[task][subset], **changes)
    return replace(
        one, task_outputs={**one.task_outputs, task: {**one.task_outputs[task], subset: output}}
    )


def first(count: int) -> Tensor:
    return torch.arange(N) < count


def wrong_class(one: ModelOutputs, count: int) -> ModelOutputs:
    output = one.task_outputs["kind"]["text"]
    decided_N = torch.where(first(count), 1 - output.decided_N, output.decided_N)
    return with_output(one, "kind", "text", decided_N=decided_N)


def wrong_tags(one: ModelOutputs, count: int) -> ModelOutputs:
    output = one.task_outputs["tags"]["image"]
    return with_output(one, "tags", "image", decided_N=output.decided_N & ~first(count)[:, None])


def wrong_number(one: ModelOutputs, count: int) -> ModelOutputs:
    output = one.task_outputs["size"][ALL]
    return with_output(one, "size", ALL, decided_N=output.decided_N + first(count).float())


def too_sure(one: ModelOutputs, count: int) -> ModelOutputs:
    probs_NC = one.task_outputs["kind"][ALL].probs_NC
    hesitant_NC = torch.where(
        first(count)[:, None], 0.5 + 0.1 * (probs_NC - 0.5).sign(), probs_NC
    )  # right as before, but unsure of it
    return with_output(one, "kind", ALL, probs_NC=hesitant_NC)


def lost_pictures(one: ModelOutputs, count: int) -> ModelOutputs:
    image_ND = torch.where(first(count)[:, None], one.by["image"].roll(1, 0), one.by["image"])
    return replace(one, by={**one.by, "image": image_ND})


def collapsed(one: ModelOutputs, count: int) -> ModelOutputs:
    flat_ND = one.fused[ALL].clone()
    flat_ND[:, : count // 10] = 0.0
    return replace(one, fused={**one.fused, ALL: torch.nn.functional.normalize(flat_ND, dim=1)})


def bench(
    old: ModelOutputs, new: ModelOutputs, gates: Gates | None = None
) -> dict[str, dict[str, Any]]:
    gates = gates or Gates()
    comparison = court.MetricComparison(
        old, new, TRUTH, gates, Bootstrap(N, resamples=500, seed=0), gates.level
    )
    comparison.scores()
    comparison.recalls()
    comparison.ranks()
    assert comparison.unjudged == {}
    decide(comparison.results, {}, gates, gates.level)
    return {gate["metric"]: gate for gate in comparison.results}


def test_nothing_fails_against_itself_and_every_metric_is_there() -> None:
    result = bench(made_up(), made_up())
    assert all(gate["passed"] and gate["difference"] == 0.0 for gate in result.values())
    subsets = ("text", "image", "text+image", ALL)
    assert set(result) == {
        *(f"{m}: {s}" for m in ("accuracy kind", "F1 tags", "error size") for s in subsets),
        *(f"recall@{k} {way}" for k in (1, 5, 10) for way in ("text->image", "image->text")),
        "calibration error kind",
        "effective rank fused",
        "effective rank text",
        "effective rank image",
    }
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("worse", "metric", "little", "much"),
    [
        (wrong_class, "accuracy kind: text", 3, 120),
        (wrong_tags, "F1 tags: image", 3, 120),
        (wrong_number, "error size: as it comes", 3, 120),
        (too_sure, "calibration error kind", 20, 240),
        (lost_pictures, "recall@10 text->image", 3, 160),
        (collapsed, "effective rank fused", 10, 200),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_gate_fails_for_much_and_passes_for_little(
    worse: Any, metric: str, little: int, much: int
) -> None:
    kept = bench(made_up(), worse(made_up(), little))
    assert [name for name, gate in kept.items() if not gate["passed"]] == []
    assert kept[metric]["champion"] != kept[metric]["challenger"]
    lost = bench(made_up(), worse(made_up(), much))
    assert not lost[metric]["passed"]
    assert lost[metric].get("failed", True), "a primary metric is refused, not left open"
    assert lost[metric]["difference"] == pytest.approx(
        lost[metric]["challenger"] - lost[metric]["champion"], abs=2e-6
    )
    back = bench(worse(made_up(), much), made_up())  # better is never a failure
    assert back[metric]["passed"]


def test_the_numbers_of_a_gate_are_those_of_the_records() -> None:
    result = bench(made_up(), wrong_class(made_up(), 120))["accuracy kind: text"]
    assert (result["champion"], result["challenger"]) == (1.0, 0.85)
    assert (result["difference"], result["limit"], result["records"]) == (-0.15, -0.02, N)
    half = 1.96 * (0.15 * 0.85 / N) ** 0.5
    assert result["interval"] == pytest.approx([-0.15 - half, -0.15 + half], abs=0.012)
    error = bench(made_up(), wrong_number(made_up(), 120))["error size: as it comes"]
    assert error["challenger"] == pytest.approx(0.15)  # 4 units off is one spread
    rank = bench(made_up(), collapsed(made_up(), 200))["effective rank fused"]
    assert rank["limit"] == pytest.approx(0.8 * rank["champion"], abs=1e-5)


def test_a_class_that_only_the_challenger_knows_is_its_gain() -> None:
    old = made_up()
    new = replace(old, tasks={**TASKS, "kind": Task(classes=("b", "a"))})
    result = bench(old, new)["accuracy kind: text"]  # the same places, other names
    assert (result["champion"], result["challenger"]) == (1.0, 0.0)


def test_metrics_with_few_records_are_told_and_not_judged() -> None:
    old = made_up()
    few = replace(old, present_NM=torch.stack([torch.ones(N).bool(), first(12)], dim=1))
    comparison = court.MetricComparison(
        few, few, TRUTH, Gates(), Bootstrap(N, resamples=100, seed=0), Gates().level
    )
    comparison.scores()
    comparison.recalls()
    ways = ("text->image", "image->text")
    assert comparison.short == {f"recall@10 {way}": 12 for way in ways}
    decision, reason = decide(comparison.results, comparison.short, Gates(), Gates().level)
    assert decision == "not enough evidence"
    assert "recall@10 text->image has 12 judge records, the gates want 30" in reason
    assert comparison.unjudged["recall@1 text->image"] == 12
    assert comparison.unjudged["accuracy kind: image"] == 12
    assert all("image" not in gate["metric"] for gate in comparison.results)


class Ticks:
    """A clock that says how long each of the two versions takes, in turns as they are asked."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.now = seconds, 0.0
        self.order = iter(self._order())
        self.running: str | None = None

    def _order(self) -> Iterator[str]:
        while True:
            yield from ("challenger", "champion", "champion", "challenger")

    def __call__(self) -> float:
        if self.running is None:
            self.running = next(self.order)
        else:
            self.now += self.seconds[self.running]
            self.running = None
        return self.now


@pytest.mark.slow
@pytest.mark.parametrize(("slower", "passed"), [(1.4, True), (1.6, False)])
def test_the_latency_gate(model: TorchModel, slower: float, passed: bool) -> None:
    gates = Gates(rounds=4, batch=2)
    clock = Ticks({"champion": 0.1, "challenger": 0.1 * slower})
    result = court.latency_of(model, model, samples(4), gates, clock)
    assert result["passed"] is passed
    assert result["champion"] == pytest.approx(50.0)
    assert result["challenger"] == pytest.approx(50.0 * slower)
    assert result["limit"] == pytest.approx(75.0)
    low, high = result["interval"]
    assert low == high == pytest.approx(50.0 * (slower - 1))


def test_a_machine_that_is_busy_now_and_then_fails_no_version(model: TorchModel) -> None:
    """Half of the challenger's rounds meet other work; one that is slow in all of them fails."""
    gates = Gates(rounds=9, batch=2)

    class Busy(Ticks):
        def __init__(self, disturbed: int) -> None:
            super().__init__({"champion": 0.1, "challenger": 0.1})
            self.turns, self.disturbed = 0, disturbed

        def __call__(self) -> float:
            if self.running == "challenger":
                self.turns += 1
                self.now += 0.9 if self.turns <= self.disturbed else 0.0
            return super().__call__()

    assert court.latency_of(model, model, samples(4), gates, Busy(6))["passed"] is True
    assert court.latency_of(model, model, samples(4), gates, Busy(10))["passed"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_records": 1}, "gates.min_records must be at least 2, is 1"),
        ({"budget": 0.6}, "gates.budget must be at most 0.5, is 0.6"),
        ({"planned": 0}, "gates.planned must be at least 1, is 0"),
        ({"accuracy": -0.1}, "gates.accuracy must be at least 0, is -0.1"),
        ({"latency": float("nan")}, "gates.latency"),
        ({"resamples": 5}, "gates.resamples must be at least 100"),
    ],
)
def test_gates_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gates(**changes)


# ---- whole versions


def test_only_the_judge_split_is_judged_each_id_once() -> None:
    made = samples()
    ids = sorted(sample.id for sample in made if split(sample.id) == "judge")
    again = replace(next(s for s in made if s.id == ids[0]), text="newer")
    result = records_of([*made, again], "judge")
    assert [sample.id for sample in result] == ids
    assert result[0].text == "newer"
    assert len(records_of(made, "judge", 3)) == 3


def test_both_versions_are_asked_as_they_serve(model: TorchModel) -> None:
    q_DD = torch.linalg.qr(torch.randn(model.dim, model.dim))[0]
    turned = Adapter(kind="procrustes", tensors={"R": q_DD})
    plain, model = model, TorchModel(model.net, model.manifest, model.device, turned)
    made = [*samples(20), Sample(id="bad", image=b"broken")]
    kept, (_, entry) = run_models((plain, model), made)
    assert [sample.id for sample in kept] == [sample.id for sample in made[:-1]]
    for row, embedding in enumerate(model.encode([model.prepare(one) for one in kept])):
        assert entry.fused[ALL][row].numpy() == pytest.approx(embedding.fused, abs=1e-5)
        for name, vector_D in embedding.by.items():
            assert entry.by[name][row].numpy() == pytest.approx(vector_D, abs=1e-5)
            (alone,) = model.encode(
                [model.prepare(Sample(id="q", **{name: getattr(kept[row], name)}))]
            )
            assert entry.fused[name][row].numpy() == pytest.approx(alone.fused, abs=1e-5)
        output = entry.task_outputs["colour"][ALL]
        task = embedding.tasks["colour"]
        assert entry.tasks["colour"].classes[int(output.decided_N[row])] == task.label
        assert float(output.probs_NC[row].max()) == pytest.approx(task.prob, abs=1e-5)


def test_a_version_passes_against_itself(model: TorchModel) -> None:
    verdict, kept, _ = court.judge(model, model, samples(), EASY)
    assert verdict["passed"], verdict["reason"]
    assert verdict["records"] == len(kept) == len(records_of(samples(), "judge"))
    assert {"accuracy colour: text", "recall@1 audio->image", "embed ms a record"} <= {
        gate["metric"] for gate in verdict["gates"]
    }


@pytest.mark.parametrize("part", ["projectors", "heads"])
def test_a_challenger_that_emits_nan_fails_and_says_so(version: Path, part: str) -> None:
    champion, challenger = load_folder(version, device="cpu"), load_folder(version, device="cpu")
    with torch.no_grad():
        next(getattr(challenger.net, part).parameters()).fill_(float("nan"))
    verdict, _, pair = court.judge(champion, challenger, samples(), EASY)
    assert (verdict["passed"], verdict["decision"], pair) == (False, "failed", None)
    assert "not finite (NaN or inf)" in verdict["reason"]
    json.dumps(verdict, allow_nan=False)
    with pytest.raises(CheckpointError, match="the champion, gives values that are not finite"):
        court.judge(challenger, champion, samples(), EASY)


def test_training_refuses_to_write_what_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(net: Any, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            next(net.projectors.parameters()).fill_(float("nan"))

    monkeypatch.setattr(loop, "fit_decisions", poison)
    monkeypatch.setattr(loop, "evaluate", lambda *_: {})
    with pytest.raises(TrainingError, match="not finite; refused"):
        train(samples(60), SHORT, out=tmp_path / "v", name="v", version=2, seed=0)
    assert list(tmp_path.iterdir()) == []


def unfit(manifest: Manifest) -> list[tuple[Manifest, str]]:
    tasks = manifest.tasks
    return [
        (replace(manifest, tasks={}), "lacks the task 'colour'.*it has: none"),
        (
            replace(manifest, tasks={"colour": {**tasks["colour"], "kind": "multilabel"}}),
            "makes of the task 'colour' a multilabel",
        ),
        (replace(manifest, modalities=["text"]), "knows no image, audio"),
    ]


def test_a_challenger_that_cannot_take_the_place_is_refused(manifest: Manifest) -> None:
    court.check_can_replace(manifest, replace(manifest, tasks={**manifest.tasks, "more": {}}))
    for challenger, message in unfit(manifest):
        with pytest.raises(CheckpointError, match=message):
            court.check_can_replace(manifest, challenger)


def test_too_few_judge_records_are_a_verdict(model: TorchModel) -> None:
    verdict, _, _ = court.judge(model, model, samples(40), replace(EASY, min_records=30))
    few = len(records_of(samples(40), "judge"))
    assert (verdict["passed"], verdict["decision"]) == (False, "not enough evidence")
    assert verdict["reason"] == f"not enough evidence: {few} judge records, the gates want 30"


def test_a_damaged_champion_or_challenger_is_refused(version: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(version, broken)
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="damaged"):
        examiner(broken)
    with pytest.raises(CheckpointError, match="damaged"):
        examiner(version, gates=EASY)(broken, samples(40))


@pytest.mark.slow
def test_another_dimension_is_judged_by_task_and_recall(version: Path, tmp_path: Path) -> None:
    other = replace(SHORT, model=replace(SHORT.model, dim=32))
    manifest = train(
        samples(),
        other,
        out=tmp_path / "v",
        name="v",
        version=2,
        seed=0,
        examine=examiner(version, gates=EASY),
    )
    assert (manifest.verdict["decision"], manifest.verdict["records"]) == (
        "not enough evidence",
        21,
    )
    judged = {gate["metric"] for gate in manifest.verdict["gates"]}
    assert {"accuracy colour: as it comes", "recall@10 text->image"} <= judged
    assert manifest.compatibility["choice"] == "new space"
    assert manifest.compatibility["reason"] == "v makes vectors of 32 dimensions, tiny-0001 of 64"
    kept = load(tmp_path / "v", device="cpu")
    kept.check()
    assert kept.manifest == manifest


@pytest.mark.slow
def test_the_examination_sees_the_draft_and_all_samples_and_goes_into_the_manifest(
    tmp_path: Path,
) -> None:
    out, looked = tmp_path / "v", []

    def examine(folder: Path, given: Any) -> Examination:
        assert not out.exists()
        looked.append((load(folder, device="cpu").name, len(given)))
        return Examination(
            verdict={"passed": False, "gates": []}, space="s-told", files={"more.txt": b"more"}
        )

    made = train(iter(samples(60)), SHORT, out=out, name="v", version=2, seed=0, examine=examine)
    assert looked == [("v", 60)]
    loaded = load(out, device="cpu")
    loaded.check()
    assert loaded.space == made.space == "s-told"
    assert loaded.manifest.verdict == {"passed": False, "gates": []}
    assert (out / "more.txt").read_bytes() == b"more"
    assert "more.txt" in loaded.manifest.files


def test_an_examination_that_breaks_leaves_nothing_behind(tmp_path: Path) -> None:
    def examine(folder: Path, given: Any) -> Examination:
        raise CheckpointError("no")

    with pytest.raises(CheckpointError, match="no"):
        train(samples(60), SHORT, out=tmp_path / "v", name="v", version=2, seed=0, examine=examine)
    assert list(tmp_path.iterdir()) == []


def test_old_manifests_have_no_verdict(manifest: Manifest) -> None:
    raw = json.loads(manifest.to_json())
    for name in ("verdict", "compatibility"):
        assert raw.pop(name) == {}
    assert Manifest.from_json(json.dumps(raw)) == manifest
    with pytest.raises(CheckpointError, match="'verdict' must be a dict"):
        Manifest.from_json(json.dumps({**raw, "verdict": 3}))
