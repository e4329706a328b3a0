"""Canaries: which records, what becomes of a challenger that goes wrong, and how it is judged."""

from __future__ import annotations

import json
import math
import random
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from braid.encoders.errors import BadInput
from braid.encoders.model.null import NullModel
from braid.encoders.types import Embedding, Prepared, Sample
from braid.stream.cli.main import app
from braid.stream.errors import ConfigError, RegistryError
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import Record, decode_map, decode_vector
from braid.stream.monitoring.canary_comparison import CanaryLimits, Comparing, limits_of
from braid.stream.registry.canaries import Canaries, Canary
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings
from braid.stream.worker.canary_shadow import (
    CanaryShadow,
    active_results,
    encode_both,
)
from braid.stream.worker.in_flight import Item
from braid.stream.worker.offsets import Ticket
from braid.stream.worker.outputs import OutputTopics
from tests.stream.cli.test_versions import altered

CANARY = Canary(
    number=1, model="null-16-v2", champion="null-16", seq=1, share=0.5, since_ms=1_700_000_000_000
)
LIMITS = CanaryLimits()
IDS = [f"r{number}" for number in range(20_000)]

pytestmark = pytest.mark.timeout(360)


# ---- which records


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1.0])
def test_the_share_of_records_is_as_asked_and_the_same_in_every_worker(share: float) -> None:
    one, other = (CanaryShadow(replace(CANARY, share=share), None) for _ in range(2))
    taken = [id_ for id_ in IDS if one.takes(id_, 0)]
    spread = math.sqrt(len(IDS) * share * (1 - share))
    assert abs(len(taken) - len(IDS) * share) <= 4 * spread
    assert [id_ for id_ in IDS if other.takes(id_, 3)] == taken


def test_another_canary_takes_other_records() -> None:
    one, other = CanaryShadow(CANARY, None), CanaryShadow(replace(CANARY, number=2), None)
    both = sum(one.takes(id_, 0) and other.takes(id_, 0) for id_ in IDS)
    assert abs(both - len(IDS) / 4) < 4 * math.sqrt(len(IDS) * 3 / 16)


def test_a_canary_of_partitions_takes_nothing_elsewhere() -> None:
    shadow = CanaryShadow(replace(CANARY, share=1.0, partitions=(0, 3)), None)
    assert [shadow.takes("a", number) for number in range(5)] == [True, False, False, True, False]
    half = CanaryShadow(replace(CANARY, partitions=(3,)), None)
    taken = sum(half.takes(id_, 3) for id_ in IDS)
    assert abs(taken - len(IDS) / 2) < 4 * math.sqrt(len(IDS) / 4)


# ---- in the worker: whatever goes wrong, the record has its vector and one prediction


class Wrong(NullModel):
    """A challenger that goes wrong at some records."""

    def __init__(self, dim: int, at: str, what: str) -> None:
        super().__init__(dim, "v2")
        self.at, self.what = at, what

    def prepare(self, sample: Sample) -> Prepared:
        if self.what == "refuses" and sample.id == self.at:
            raise BadInput("text", "is not to its taste")
        return super().prepare(sample)

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        ids = [record.id for record in prepared]
        if self.what == "raises" and self.at in ids:
            raise RuntimeError("out of memory " + 500 * "x")
        embeddings = super().encode(prepared)
        if self.what == "nan" and self.at in ids:
            embedding = embeddings[ids.index(self.at)]
            task = replace(embedding.tasks["parity"], probs={"even": math.nan, "odd": 0.5})
            embeddings[ids.index(self.at)] = replace(embedding, tasks={"parity": task})
        return embeddings


def published(
    shadow: CanaryShadow, ids: Sequence[str], *, ends: bool = False
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The vector and the prediction of each record, the way that they go through a worker."""
    champion = NullModel(16)
    items, prepared = [], []
    for offset, id_ in enumerate(ids):
        message = Message(topic="records", partition=0, offset=offset, key=id_.encode(), value=b"")
        record = Record(id=id_, ts=1, text=f"text of {id_}", labels={"parity": "odd"})
        sample = Sample(id=id_, text=record.text)
        prepared.append(champion.prepare(sample))
        result = shadow.prepare(sample, prepared[-1], partition=0)
        items.append(Item(message, Ticket(0, offset), 0.0, record=record, shadow_result=result))
    shadow_results = active_results(items, None if ends else shadow, champion)
    embeddings = encode_both(champion, prepared, shadow_results)
    topics, outputs = OutputTopics(Settings(), "g0001"), {}
    for item, embedding in zip(items, embeddings, strict=True):
        vector, prediction = topics.embedded(item, embedding, champion, now_ms=2.0)
        assert (vector.topic, prediction.topic) == ("vectors.g0001", "predictions")
        outputs[embedding.id] = (
            decode_vector(vector.value or b""),
            decode_map(prediction.value or b""),
        )
    return outputs


def test_a_challenger_predicts_its_records_and_the_champions_stand_beside() -> None:
    ids = IDS[:40]
    for challenger in (NullModel(16, "v2"), NullModel(32, "v2")):  # prepared once, and twice
        canary = replace(CANARY, model=challenger.name)
        shadow = CanaryShadow(canary, challenger)
        alone = published(CanaryShadow(replace(canary, share=1e-12), challenger), ids)
        for id_, (vector, prediction) in published(shadow, ids).items():
            before, unmarked = alone[id_]
            assert (vector.model, vector.space) == ("null-16", before.space)
            assert vector.fused.tolist() == before.fused.tolist()
            assert "canary" not in unmarked
            if not shadow.takes(id_, 0):
                assert prediction == unmarked
                continue
            assert prediction["model"] == challenger.name
            mark = prediction["canary"]
            assert mark["number"] == 1
            assert (mark["model"], mark["tasks"]) == (unmarked["model"], unmarked["tasks"])
            assert mark["labels"] == {"parity": "odd"}
            assert len(mark["seconds"]) == 2
            want = challenger.encode([challenger.prepare(Sample(id=id_, text=f"text of {id_}"))])
            assert prediction["tasks"]["parity"]["probs"] == want[0].tasks["parity"].probs


@pytest.mark.parametrize(
    ("what", "dim", "reason", "others_fail"),
    [
        ("refuses", 32, "BadInput: text: is not to its taste", False),
        ("nan", 16, "FloatingPointError: a prediction is not finite", False),
        ("raises", 16, "RuntimeError: out of memory xxx", True),
    ],
)
def test_what_a_challenger_fails_at_the_champion_predicts(
    what: str, dim: int, reason: str, others_fail: bool
) -> None:
    ids = IDS[:20]
    canary = replace(CANARY, share=1.0)
    alone = published(CanaryShadow(replace(canary, share=1e-12), None), ids)
    outputs = published(CanaryShadow(canary, Wrong(dim, ids[7], what)), ids)
    for id_, (vector, prediction) in outputs.items():
        before, unmarked = alone[id_]
        assert vector.fused.tolist() == before.fused.tolist()
        mark = prediction.pop("canary")
        if id_ == ids[7] or others_fail:  # a batch that raises is lost to the challenger whole
            assert prediction == unmarked
            assert set(mark) == {"number", "model", "failed"}
            assert mark["failed"].startswith(reason)
            assert len(mark["failed"]) <= 120
        else:
            assert prediction["model"] != unmarked["model"]
            assert "failed" not in mark


def test_a_challenger_that_did_not_load_is_marked_so() -> None:
    canary = replace(CANARY, share=1.0)
    shadow = CanaryShadow(canary, None, broken="does not load: model.safetensors")
    ((_, prediction),) = published(shadow, ["a"]).values()
    assert prediction["model"] == "null-16"
    assert prediction["canary"]["failed"] == "does not load: model.safetensors"


def test_what_was_prepared_before_a_trial_ended_is_the_champions() -> None:
    shadow = CanaryShadow(replace(CANARY, share=1.0), NullModel(16, "v2"))
    for _, prediction in published(shadow, ["a", "b"], ends=True).values():
        assert prediction["model"] == "null-16"
        assert "canary" not in prediction
    other = CanaryShadow(replace(CANARY, share=1.0, champion="null-16-v3"), NullModel(16, "v2"))
    ((_, prediction),) = published(other, ["a"]).values()
    assert "canary" not in prediction, "it is compared with its own champion or not at all"


# ---- comparing


def marked(
    offset: int,
    ours: object,
    theirs: object,
    label: object = None,
    *,
    kind: str = "classification",
    **mark: Any,
) -> dict[str, Any]:
    """A prediction of the challenger, with the champion's in its mark."""
    key = {"classification": "label", "multilabel": "labels", "regression": "value"}[kind]
    decisions = ({"kind": kind, key: ours, "prob": 0.5}, {"kind": kind, key: theirs, "prob": 0.75})
    labels = {} if label is None else {"labels": {"colour": label}}
    tasks = {"tasks": {"colour": decisions[0]}, "seconds": [0.001, 0.003]}
    return {
        "id": f"r{offset}",
        "model": CANARY.model,
        "tasks": {"colour": decisions[1]},
        "source": {"partition": 0, "offset": offset},
        "canary": {"number": 1, "model": CANARY.champion, **tasks, **labels, **mark},
    }


def failed(offset: int, reason: str = "RuntimeError: x") -> dict[str, Any]:
    return {
        "model": CANARY.champion,
        "tasks": {},
        "source": {"partition": 0, "offset": offset},
        "canary": {"number": 1, "model": CANARY.champion, "failed": reason},
    }


def told(*predictions: dict[str, Any]) -> Comparing:
    comparing = Comparing(CANARY)
    for prediction in predictions:
        comparing.add(prediction)
    return comparing


def drawn(count: int, ours: float, theirs: float) -> list[dict[str, Any]]:
    """Labelled records, of which each is right about so many."""
    rng = random.Random(count)

    def says(share: float) -> str:
        return "red" if rng.random() < share else "blue"

    return [marked(offset, says(ours), says(theirs), "red") for offset in range(count)]


def test_a_worse_challenger_fails_and_an_equal_one_passes() -> None:
    worse = told(*drawn(1000, 0.95, 0.80)).result(LIMITS)
    assert worse.passed is False
    assert worse.reason.startswith("accuracy of colour by -0.1")
    equal = told(*(marked(n, "red", "red", "red") for n in range(1000))).result(LIMITS)
    assert equal.passed is True
    task = equal.tasks["colour"]
    assert (task.agreement, task.confidence, task.scores) == (1.0, (0.5, 0.75), (1.0, 1.0))
    assert task.interval == pytest.approx((-1.96 / 1002, 1.96 / 1002), rel=1e-3)
    assert equal.seconds == pytest.approx((0.001, 0.003))
    better = told(*drawn(1000, 0.80, 0.95)).result(LIMITS)
    assert better.passed is True
    assert better.tasks["colour"].difference == pytest.approx(0.15, abs=0.05)


def test_the_interval_of_two_accuracies_is_agresti_and_mins() -> None:
    """20 records that only the champion is right about, 5 that only the challenger is, of 200."""
    pairs = [("red", "blue")] * 20 + [("blue", "red")] * 5 + [("red", "red")] * 175
    result = told(*(marked(n, *pair, "red") for n, pair in enumerate(pairs))).result(LIMITS)
    b, c, n = 5.5, 20.5, 202.0
    middle = (b - c) / n
    half = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert result.tasks["colour"].interval == pytest.approx((middle - half, middle + half))
    assert result.tasks["colour"].difference == pytest.approx(-15 / 200)
    assert result.tasks["colour"].agreement == pytest.approx(175 / 200)


def test_a_number_is_compared_by_its_error_in_spreads_of_the_labels() -> None:
    def numbers(off: float) -> Comparing:
        rng = random.Random(7)
        labels = [rng.gauss(100, 10) for _ in range(500)]
        return told(
            *(
                marked(
                    n, label + rng.gauss(0, 1), label + rng.gauss(0, off), label, kind="regression"
                )
                for n, label in enumerate(labels)
            )
        )

    same, worse = numbers(1.0).result(LIMITS), numbers(2.0).result(LIMITS)
    assert same.passed is True
    assert same.tasks["colour"].limit == pytest.approx(0.02 * 10, rel=0.1)
    assert worse.passed is False
    assert worse.tasks["colour"].metric == "error"
    assert worse.tasks["colour"].agreement is None


def test_several_labels_are_compared_by_their_f1() -> None:
    pairs = [(["a", "b"], ["a"])] * 300
    several = [marked(n, *pair, ["a", "b"], kind="multilabel") for n, pair in enumerate(pairs)]
    task = told(*several).result(LIMITS).tasks["colour"]
    assert task.scores == pytest.approx((1.0, 2 / 3))
    assert (task.metric, task.agreement) == ("F1", 0.0)


def test_failures_count_and_too_many_fail_it() -> None:
    good = [marked(n, "red", "red", "red") for n in range(999)]
    result = told(*good, failed(999)).result(LIMITS)
    assert (result.records, result.failures, result.passed) == (999, 1, True)
    result = told(*good, failed(999), failed(1000), failed(1001, "other")).result(LIMITS)
    assert result.reasons == {"RuntimeError: x": 2, "other": 1}
    assert result.passed is False
    assert "it failed at 3 of 1002 records, 0.10% may be: RuntimeError: x" in result.reason
    all_failed = told(*(failed(n) for n in range(200))).result(LIMITS)
    assert (all_failed.passed, all_failed.seconds) == (False, None)


def test_too_few_records_give_no_verdict() -> None:
    result = told(*drawn(99, 0.9, 0.1)).result(LIMITS)
    assert result.passed is None
    assert result.reason == "not enough evidence: 99 records, 100 are wanted"


def test_without_labels_only_a_limit_that_was_given_counts() -> None:
    differing = told(*(marked(n, "red", "blue") for n in range(200)))
    assert differing.result(LIMITS).passed is True
    assert "no labels" in differing.result(LIMITS).reason
    result = differing.result(CanaryLimits(agreement=0.9))
    assert result.passed is False
    assert "both decide colour alike for 0.0%, 90.0% are wanted" in result.reason


def test_a_task_that_the_challenger_lacks_fails_it() -> None:
    result = told(*(marked(n, "red", "red") | {"tasks": {}} for n in range(200))).result(LIMITS)
    assert result.passed is False
    assert result.reason == "it did not predict colour of 200 records"


def test_what_is_not_this_canarys_and_what_came_twice_is_left_out() -> None:
    one = marked(3, "red", "red")
    comparing = told(
        one,
        one,  # read again
        {"model": CANARY.champion, "tasks": {}, "source": {"partition": 0, "offset": 4}},
        marked(5, "red", "red", number=2),
        marked(6, "red", "red", model="another-0001"),
        marked(2, "red", "red") | {"source": {"partition": 1, "offset": 2}},
    )
    assert comparing.seen == 2


def test_limits_come_from_the_settings_and_are_checked() -> None:
    limits = limits_of(Settings(refresh={"canary": {"min_records": 7, "accuracy": 0.1}}))
    assert limits.min_records == 7
    for wrong, words in (
        ({"unheard": 1}, "canary: .*unheard"),
        ({"failures": 1.5}, "canary: failures must be 0 to 1, is 1.5"),
        ({"min_records": 1}, "canary: min_records must be at least 2, is 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            limits_of(Settings(refresh={"canary": wrong}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("2 --promote", "--promote needs --records"),
        ("2 --records 99", "--records is 99, canary.min_records wants at least 100"),
        ("2 --stop", "--stop, and the state without a version, take --json only"),
        ("--share 0.5", "--stop, and the state without a version, take --json only"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(
    tmp_path: Path, given: str, words: str
) -> None:
    done = CliRunner().invoke(app, ["--home", str(tmp_path), "models", "canary", *given.split()])
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)


# ---- the registry


@pytest.fixture
def registry(tmp_path: Path, tiny_model: Path) -> Registry:
    """Three versions that differ by their names; the first is champion, the last was refused."""
    registry = Registry(tmp_path / "models", base="tiny")
    for number in (1, 2, 3):
        copied(tiny_model, registry, number)
    altered(registry.path("tiny-0003"), verdict={"passed": False, "reason": "recall fell"})
    registry.promote("tiny-0001", generation="g0001")
    return registry


def copied(source: Path, registry: Registry, number: int, **fields: Any) -> str:
    """A version like another, under a name of its own."""
    name = f"tiny-{number:04d}"
    shutil.copytree(source, registry.path(name))
    altered(registry.path(name), name=name, version=number, **fields)
    return name


@pytest.mark.slow
def test_one_canary_at_a_time_and_only_of_what_may_serve(registry: Registry) -> None:
    canaries = Canaries(registry.log)
    for name, words in (
        ("tiny-0001", "is the champion"),
        ("tiny-0003", "did not pass its examination: recall fell"),
        ("tiny-0009", "tiny-0009"),
    ):
        with pytest.raises(RegistryError, match=words):
            canaries.begin(registry, name, share=0.5)
    with pytest.raises(RegistryError, match=r"over 0 and at most 1, is 1\.5"):
        canaries.begin(registry, "tiny-0002", share=1.5)
    assert canaries.last() is None
    one = canaries.begin(registry, "tiny-0003", share=0.5, partitions=[3, 0], force=True)
    assert (one.number, one.seq, one.champion, one.partitions) == (1, 1, "tiny-0001", (0, 3))
    with pytest.raises(RegistryError, match="canary 1 runs with tiny-0003"):
        canaries.begin(registry, "tiny-0002", share=0.5)
    ended = canaries.end(one, "stopped", why="by hand", comparison={"records": 3})
    assert canaries.last() == ended
    assert canaries.running(registry.champion()) is None
    two = canaries.begin(registry, "tiny-0002", share=0.5)
    assert canaries.all() == [ended, two]
    assert canaries.running(registry.champion()) == two


def test_of_two_that_begin_at_once_one_is_told(registry: Registry) -> None:
    outcomes: list[object] = []
    barrier = threading.Barrier(4)

    def begin() -> None:
        barrier.wait()
        try:
            outcomes.append(Canaries(registry.log).begin(registry, "tiny-0002", share=0.5))
        except RegistryError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, Canary) for outcome in outcomes) == 1, outcomes
    assert len(Canaries(registry.log).all()) == 1


@pytest.mark.parametrize(
    ("promoted", "state", "why"),
    [
        ("tiny-0002", "promoted", "champion number 2"),
        ("tiny-0003", "stopped", "tiny-0003 became champion number 2 meanwhile"),
    ],
)
def test_another_champion_ends_a_canary(
    registry: Registry, promoted: str, state: str, why: str
) -> None:
    canaries = Canaries(registry.log)
    canaries.begin(registry, "tiny-0002", share=0.5)
    registry.promote(promoted, generation="g0001", force=True)
    assert canaries.running(registry.champion()) is None, "workers see it at once"
    settled = canaries.last()
    assert settled is not None
    assert (settled.state, settled.why) == (state, why)
    again = canaries.begin(registry, "tiny-0001", share=0.5)
    assert canaries.all() == [settled, again]


def test_the_story_tells_of_a_canary_and_gc_keeps_what_it_tries_out(registry: Registry) -> None:
    canaries = Canaries(registry.log)
    one = canaries.begin(registry, "tiny-0002", share=0.5)
    home = str(registry.root.parent)

    def braid(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["--home", home, "models", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    def collected() -> dict[str, Any]:
        plan: dict[str, Any] = json.loads(braid("gc", "--keep", "0", "--dry-run", "--json"))
        return plan

    assert collected()["versions"] == ["tiny-0003"]
    assert collected()["kept"]["tiny-0002"] == "canary 1 runs with it"
    result = told(*drawn(1000, 0.95, 0.80)).result(LIMITS)
    canaries.end(one, "failed", why=result.reason, comparison={"records": 990, "failures": 10})
    story = braid("show", "tiny-0002")
    assert "canary 1 beside tiny-0001 on 1000 records failed: accuracy of colour" in story
    assert collected()["versions"] == ["tiny-0002", "tiny-0003"]
