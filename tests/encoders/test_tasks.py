"""Tasks beyond one class: several labels, numbers, captions; each record by what it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from braid.encoders import Embedder, Model, Sample, TrainingError, load, preset, split, train
from braid.encoders.config import TaskConfig
from braid.encoders.model.caption import (
    END,
    Captioner,
    chrf,
    consensus,
    grams_of,
    spell,
    vocabulary,
    words_of,
)
from braid.encoders.model.checkpoint import make_net
from braid.encoders.model.decision import Decision, subset_of
from braid.encoders.tasks import Task
from braid.encoders.training.data import Column, Dataset
from braid.encoders.training.fit import DECODER_DECAY, parameter_groups
from braid.encoders.training.metrics import calibration_error, interval, label_f1
from braid.encoders.training.objective import Objective
from braid.encoders.training.targets import targets
from braid.encoders.types import Label
from tests.encoders.material import COLOURS, samples

PRICE = {name: 10.0 * i for i, name in enumerate(COLOURS)}


def labelled() -> list[Sample]:
    """The material with a price by colour, the letters of the colour, and nothing on some."""
    made = []
    for i, sample in enumerate(samples()):
        colour = sample.labels.get("colour")
        more: dict[str, Label] = {}
        if isinstance(colour, str) and i % 3:
            more = {"price": PRICE[colour], "letters": sorted({"e", "r"} & set(colour))}
        made.append(replace(sample, labels={**sample.labels, **more}))
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = preset("tiny")
    tasks = {"say": TaskConfig(kind="generation", source="text", length=6)}
    config = replace(
        config, epochs=15, task=1.0, fuse=1.0, model=replace(config.model, tasks=tasks)
    )
    folder = tmp_path_factory.mktemp("tasks") / "v"
    train(labelled(), config, out=folder, name="v", version=1, seed=0, device="cpu")
    return load(folder, device="cpu")


@pytest.mark.slow
def test_a_version_of_all_kinds_is_written_loaded_and_checked(model: Model) -> None:
    model.check()
    assert {name: task["kind"] for name, task in model.manifest.tasks.items()} == {
        "colour": "classification",
        "letters": "multilabel",
        "price": "regression",
        "say": "generation",
    }


@pytest.mark.slow
def test_each_kind_is_predicted_for_what_it_has_not_seen(model: Model) -> None:
    judged = [s for s in labelled() if split(s.id) == "judge" and s.labels.get("price") is not None]
    with Embedder(model) as embedder:
        embeddings = embedder.embed(judged)
    right = Counter[str]()
    for sample, embedding in zip(judged, embeddings, strict=True):
        colour = str(sample.labels["colour"])
        tasks = embedding.tasks
        right["letters"] += tasks["letters"].labels == sample.labels["letters"]
        right["price"] += abs((tasks["price"].value or 0.0) - PRICE[colour]) < 5.0
        right["say"] += colour in words_of(tasks["say"].text or "")
        assert 0.0 < (tasks["say"].prob or 0.0) <= 1.0
        assert "fused" in tasks["price"].by
    assert all(right[name] >= 0.8 * len(judged) for name in ("letters", "price", "say")), right


@pytest.mark.slow
def test_the_validation_figures_speak_of_every_subset(model: Model) -> None:
    figures = model.manifest.metrics["validation"]
    assert set(figures["accuracy"]["colour"]["subsets"]) == {
        "text",
        "image",
        "audio",
        "text+image",
        "text+audio",
        "image+audio",
        "text+image+audio",
    }
    assert figures["accuracy"]["price"]["fused"] < 5.0, "mean absolute error, in its own unit"
    assert {"text->image", "text->audio", "text->fused", "text+image->audio"} <= set(
        figures["recall_fused"]
    )
    assert set(figures["calibration_error"]["colour"]["after"]) == {
        "decision",
        "text",
        "image",
        "audio",
        "fused",
    }


@pytest.mark.slow
def test_a_caption_is_not_made_from_the_text_that_it_repeats(model: Model) -> None:
    red = next(s for s in samples() if s.labels.get("colour") == "red" and s.image)
    with Embedder(model) as embedder:
        alone, beside = embedder.embed(
            [replace(red, text=None, audio=None), replace(red, text="a blue thing", audio=None)]
        )
    assert alone.tasks["say"] == beside.tasks["say"]


def test_kinds_follow_from_labels_and_strays_are_counted() -> None:
    left_out = Counter[str]()
    tasks, result = targets(
        [{"a": "x", "b": 1.0, "c": ["x"]}, {"a": "y", "b": 3.0, "c": []}, {"a": 4.0, "b": "no"}],
        [None] * 3,
        [True] * 3,
        preset("tiny"),
        left_out,
    )
    assert {name: task.kind for name, task in tasks.items()} == {
        "a": "classification",
        "b": "regression",
        "c": "multilabel",
    }
    assert left_out == {"label of another kind": 2}
    assert result["a"].tolist() == [0, 1, -1]
    assert result["b"][:2].tolist() == [-1.0, 1.0]
    assert bool(result["b"][2].isnan())
    assert result["c"][:2].tolist() == [[1.0], [0.0]]


def test_a_declared_task_without_labels_is_refused() -> None:
    config = preset("tiny")
    tasks = {"say": TaskConfig(kind="generation")}
    config = replace(config, model=replace(config.model, tasks=tasks))
    with pytest.raises(TrainingError, match="'say' is declared"):
        targets([{}], [None], [True], config, Counter())


def test_tasks_survive_the_manifest_and_unknown_kinds_do_not() -> None:
    task = Task(kind="regression", mean=3.0, spread=2.0)
    assert Task.from_dict(task.to_dict()) == task
    assert task.to_dict() == {"kind": "regression", "mean": 3.0, "spread": 2.0}
    with pytest.raises(ValueError, match="telepathy"):
        Task(kind="telepathy")


def test_words_and_captions() -> None:
    assert words_of("A red bird's nest.") == ["a", "red", "bird", "'", "s", "nest", "."]
    assert spell(["a", "red", "bird", "."]) == "A red bird."
    words = vocabulary(["a red bird", "a blue bird", "a rare one"])
    assert words[3:] == ("a", "bird")
    assert Captioner(words, 4, 2).encode("a rare bird") == [3, 2, END]


def test_how_often_a_word_must_occur_is_the_tasks_to_say() -> None:
    texts = ["a red bird", "a blue bird", "a rare one"]
    for least, wanted in ((1, {"a", "bird", "blue", "one", "rare", "red"}), (2, {"a", "bird"})):
        declared = {"say": TaskConfig(kind="generation", source="text", min_count=least)}
        tiny = preset("tiny")
        config = replace(tiny, model=replace(tiny.model, tasks=declared))
        tasks, _ = targets([{}] * 3, texts, [True] * 3, config, Counter())
        assert set(tasks["say"].words[3:]) == wanted


def test_a_decoder_hardly_decays() -> None:
    tiny = preset("tiny")
    config = replace(tiny, weight_decay=1.0)
    task = Task(kind="generation", words=("<pad>", "<end>", "<unknown>", "a"), length=4)
    net = make_net(config, {"say": task})
    empty = Column(features_nF=None, inputs=[], row_N=torch.zeros(0, dtype=torch.long))
    data = Dataset(
        ids=[],
        split_N=np.zeros(0),
        columns=dict.fromkeys(net.modalities, empty),
        present_NM=torch.zeros(0, 3),
        group_N=torch.zeros(0),
        target={},
        tasks={"say": task},
    )
    groups = parameter_groups(net, data, config, Objective(net.modalities, config), False)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decay[id(p)] for p in net.heads.captioner("say").parameters()} == {DECODER_DECAY}
    assert decay[id(net.projectors["text"].layers[-1].weight)] == 1.0  # type: ignore[index, union-attr]
    assert len(decay) == sum(len(group["params"]) for group in groups)  # each in one group


def test_a_decoder_is_trained_from_a_blurred_vector_and_writes_from_the_vector_itself() -> None:
    torch.manual_seed(0)
    captioner = Captioner(("<pad>", "<end>", "<unknown>", "a"), 256, 3)
    captioner.dropout.p = 0.0
    fused_BD = torch.nn.functional.normalize(torch.randn(8, 256), dim=1)
    ids_BL = torch.full((8, 3), 3)
    seen: list[torch.Tensor] = []
    captioner.see.register_forward_hook(lambda _, taken, out: seen.append(taken[0]))
    captioner.train()(fused_BD, ids_BL)
    captioner.eval()(fused_BD, ids_BL)
    blurred, plain = (taken / captioner.scale for taken in seen)
    assert torch.allclose(blurred.norm(dim=1), torch.ones(8))
    assert (blurred * fused_BD).sum(1).mean() == pytest.approx(0.5**0.5, abs=0.05)
    assert torch.allclose(plain, fused_BD)


def scripted(words: Sequence[str], after: Mapping[int, Mapping[int, float]]) -> Captioner:
    """A decoder whose next word depends on the last one alone: `after` has the probabilities."""

    class Scripted(Captioner):
        def _run(
            self, fused_BD: torch.Tensor, ids_BL: torch.Tensor, state_1BW: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return ids_BL[:, :, None].float(), state_1BW

    table = torch.full((len(words) + 3, len(words) + 3), 1e-9)
    for before, chances in after.items():
        for word, chance in chances.items():
            table[before, word] = chance

    class Out(torch.nn.Module):
        def forward(self, before_KW: torch.Tensor) -> torch.Tensor:
            return table[before_KW[:, 0].long()].log()

    captioner = Scripted(("<pad>", "<end>", "<unknown>", *words), 4, 3)
    captioner.out = Out()  # type: ignore[assignment]
    return captioner


def test_a_caption_is_what_most_random_ones_have_in_common() -> None:
    """The likeliest caption, "dull", has nothing in common with the others."""
    after = {0: {3: 0.4, 4: 0.6}, 3: {1: 1.0}, 4: {5: 0.35, 6: 0.35, 7: 0.3}}
    after |= {word: {1: 1.0} for word in (5, 6, 7)}
    captioner = scripted(("dull", "red", "bird", "birch", "fish"), after)
    (written,) = captioner.write(torch.zeros(1, 4))
    assert written.text in ("Red bird", "Red birch")
    assert written.score == pytest.approx(float(np.log(0.6 * 0.35)) / 3, abs=1e-4)


def test_random_captions_have_the_decoders_probabilities() -> None:
    captioner = scripted(("dull", "good"), {0: {3: 0.2, 4: 0.8}, 3: {1: 0.5, 4: 0.5}, 4: {1: 1.0}})
    draws_LN = torch.rand(4, 4000, generator=torch.Generator().manual_seed(1))
    one, other = captioner._drawn(torch.zeros(2, 4), draws_LN)
    assert one == other  # the same random numbers for each sample
    times = Counter(caption.text for caption in one)
    assert sum(times.values()) == 4000
    for text, chance in (("Dull", 0.1), ("Dull good", 0.1), ("Good", 0.8)):
        assert times[text] / 4000 == pytest.approx(chance, abs=0.03)
    assert captioner._drawn(torch.zeros(1, 4), torch.zeros(4, 1))[0][0].text == ""  # and no "<pad>"
    score = {caption.text: caption.score for caption in one}
    assert score["Dull good"] == pytest.approx(float(np.log(0.1)) / 3, abs=1e-4)


def test_captions_end_at_the_most_words_and_do_not_depend_on_the_batch() -> None:
    endless = scripted(("on",), {0: {3: 1.0}, 3: {3: 1.0}})
    assert [caption.text for caption in endless.write(torch.zeros(2, 4))] == ["On on on"] * 2
    torch.manual_seed(0)
    captioner = Captioner(("<pad>", "<end>", "<unknown>", *"abcdefgh"), 16, 5).eval()
    fused_BD = torch.nn.functional.normalize(torch.randn(40, 16), dim=1)
    together = captioner.write(10 * fused_BD)
    alone = [captioner.write(10 * row_D[None])[0] for row_D in fused_BD]
    assert [caption.text for caption in together] == [caption.text for caption in alone]
    assert len({caption.text for caption in together}) > 5


def test_chrf_is_that_of_sacrebleu() -> None:
    from sacrebleu.metrics.chrf import CHRF

    texts = ["A steam engine.", "Some bridges.", "STEAM ENGINE on a", "An engine on a bridge."]
    for reference in ("A steam engine on a bridge.", "Snow on a roof, and snow on a bridge."):
        for text in texts:
            wanted = CHRF(lowercase=True).sentence_score(text, [reference]).score / 100
            assert chrf(grams_of(text), grams_of(reference)) == pytest.approx(wanted)
    assert chrf(grams_of("xyz"), grams_of("abc")) == 0.0
    assert consensus(["Snow on a roof.", "A steam engine.", "A steam engine."]) == 1
    assert consensus(["Snow on a roof.", "A steam engine.", "Snow on a roof."]) == 0
    assert consensus(["A steam engine.", "Snow on a roof.", "Snow on a bridge."]) > 0


@pytest.mark.parametrize("rule", ["weighted", "logproduct", "vote"])
def test_a_decision_over_several_labels_and_over_numbers(rule: str) -> None:
    present = torch.tensor([[True, False, True], [True, True, True]])
    logits = torch.tensor([[[2.0, -2.0]] * 3, [[2.0, -2.0], [3.0, -1.0], [-0.1, -0.1]]])
    several = Decision(rule, 3, "multilabel")
    _, _, yes = several(logits, present)
    assert yes.tolist() == [[True, False], [True, False]]
    numbers = Decision(rule, 3, "regression")
    _, _, value = numbers(torch.tensor([[[1.0], [90.0], [1.0]], [[1.0], [2.0], [3.0]]]), present)
    assert value.tolist() == pytest.approx([1.0, 2.0])


def test_averages_of_numbers_learn_whom_to_trust() -> None:
    torch.manual_seed(0)
    target = torch.randn(200)
    values_SNC = torch.stack([target + 0.1 * torch.randn(200), torch.randn(200)], dim=1)[:, :, None]
    decision = Decision("weighted", 2, "regression")
    decision.fit(values_SNC, torch.ones(200, 2, dtype=torch.bool), target)
    assert decision.weights_ZS[1, 0] > 0.9


def test_temperatures_are_those_of_the_subset() -> None:
    torch.manual_seed(0)
    label = torch.arange(400) % 4
    sure = 8.0 * torch.nn.functional.one_hot(label, 4).float() + 4.0 * torch.randn(400, 4)
    both = torch.ones(400, 3, dtype=torch.bool)
    one = both.clone()
    one[:, 1] = False
    decision = Decision("weighted", 3)
    decision.fit(torch.stack([sure] * 3, dim=1), both, label)
    before = decision.temperature_ZS.clone()
    weak = torch.stack([5.0 * sure, sure, 9.0 * torch.randn(400, 4)], dim=1)
    decision.fit_subset(1, weak, one, label)
    assert torch.equal(decision.temperature_ZS[3], before[3])
    assert decision.temperature_ZS[1, 0] > 3.0 * before[1, 0]
    assert subset_of(one)[:2].tolist() == [1, 1]
    decision.fit_subset(2, weak[:5], one[:5], label[:5])
    assert torch.equal(decision.temperature_ZS[2], before[2]), "five samples are too few"


def test_figures() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    label = torch.tensor([0, 0, 0, 1])
    assert calibration_error(probs, label) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert label_f1(torch.tensor([[1, 0], [1, 1]]), torch.tensor([[1, 1], [1, 0]])) == 2 * 2 / 6
    mean, half = interval(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert mean == pytest.approx(0.25)
    assert half == pytest.approx(1.96 * 0.5 / 2)
