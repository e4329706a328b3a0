"""The benchmarks run, on a little data: their rows are there, and add up."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.__main__
from benchmarks import (
    av_digits,
    gpu,
    index_exact,
    limits,
    scaling,
    stamps,
    stamps_references,
    training,
    trainings,
    xor,
)
from benchmarks.__main__ import Target, figure, run, verdicts
from benchmarks.cache import repeating
from benchmarks.common import by_item, paired, spread
from benchmarks.stamps import apart, chrf, grouped
from benchmarks.throughput import operations
from benchmarks.trainings import Finished, key_of, read_once
from braid.encoders import Sample, TrainConfig, preset, train
from braid.encoders.backbones.bert import Bert
from braid.encoders.model.checkpoint import make_net
from braid.encoders.tasks import Task
from braid.encoders.training.data import Dataset, gather
from braid.stream.datasets.sources import DatasetError, held_out
from tests.documents import pages
from tests.encoders.material import samples
from tests.stream.conftest import COLOURS, picture, tone
from tests.test_data_digits import made

FOLDER = Path(benchmarks.__file__).parent


def test_spread_is_the_samples() -> None:
    assert spread([{"a": 1.0}, {"a": 3.0}])["a"] == {
        "mean": 2.0,
        "sd": pytest.approx(2**0.5, abs=1e-4),
    }
    assert spread([{"a": 1.0}])["a"] == {"mean": 1.0, "sd": 0.0}


def test_a_figure_spreads_over_trainings_and_over_items() -> None:
    runs = [
        {"a": [1.0, 1.0, 0.0, 0.0], "b": [0.0] * 4},
        {"a": [1.0, 0.0, 0.0, 0.0], "b": [1.0] * 4},
    ]
    figures = by_item(runs)
    assert figures["a"]["mean"] == 0.375
    assert figures["a"]["sd"] == pytest.approx(0.125 * 2**0.5, abs=1e-4)
    of_items = [1.0, 0.5, 0.0, 0.0]
    assert figures["a"]["se"] == pytest.approx(np.std(of_items, ddof=1) / 2, abs=1e-4)
    assert figures["b"] == {"mean": 0.5, "sd": pytest.approx(0.5 * 2**0.5, abs=1e-4), "se": 0.0}
    difference = paired(runs * 3, "a", "b")  # a run more is no item more
    assert difference["mean"] == -0.125
    assert difference["half"] == pytest.approx(1.96 * np.std(of_items, ddof=1) / 2, abs=1e-4)


def test_stamps_of_one_caption_or_picture_are_on_one_side() -> None:
    samples = [
        Sample(id=f"s{n}", text=f"A bird{'.' * (n % 2)} {n // 3}", image=b"%d" % (n // 6))
        for n in range(400)
    ]
    known, unseen = grouped(samples)
    assert len(known) + len(unseen) == 400
    for content in ("text", "image"):
        sides = [{getattr(sample, content) for sample in side} for side in (known, unseen)]
        assert not sides[0] & sides[1]
    single = [Sample(id=f"s{n}", text=f"bird {n}") for n in range(400)]
    assert 50 < len(grouped(single)[1]) < 110
    assert [s.id for s in grouped(single)[1]] == [s.id for s in single if held_out(s.id)]


def test_each_stamp_is_left_out_once_with_those_of_its_caption() -> None:
    samples = [Sample(id=f"s{n}", text=f"A bird {n // 3}") for n in range(300)]
    left_out = []
    for seed in range(stamps.FOLDS):
        known, unseen = apart(samples, seed)
        assert not {sample.text for sample in known} & {sample.text for sample in unseen}
        left_out += [sample.id for sample in unseen]
    assert sorted(left_out) == sorted(sample.id for sample in samples)


def test_folds_of_other_stamps_are_one_test_set() -> None:
    runs = [
        stamps.Run(items={"kind decision": [1.0] * 3, "kind text": [0.0] * 3}, whole={"s": 1.0}),
        stamps.Run(items={"kind decision": [0.0], "kind text": [0.0]}, whole={"s": 3.0}),
    ]
    row = stamps.pooled(runs)
    assert row["kind decision"] == {
        "mean": 0.75,
        "sd": pytest.approx(0.5**0.5, abs=1e-4),
        "se": 0.25,
    }
    assert row["kind decision - best (kind text)"]["half"] == pytest.approx(0.49, abs=1e-4)


def test_captions_are_compared_stamp_by_stamp() -> None:
    runs = [
        stamps.Run(
            items={"chrF of each, decoder": [0.5, 0.7], "chrF of each, nearest": [0.4, 0.4]},
            whole={"chrF of the decoder": 0.6},
        )
    ]
    difference = stamps.captions_row(runs)["chrF of each, decoder - chrF of each, nearest"]
    assert difference == {"mean": 0.2, "half": pytest.approx(0.196, abs=1e-4)}


def test_a_share_of_the_contents_repeats() -> None:
    samples = [Sample(id=f"r{n}", text=f"text {n}") for n in range(100)]
    for share, distinct in ((0.0, 100), (0.5, 50), (0.9, 10)):
        made = repeating(samples, share)
        assert [sample.id for sample in made] == [f"r{n}" for n in range(100)]
        assert len({sample.text for sample in made}) == distinct


def test_chrf_is_one_for_the_same_and_counts_case_for_nothing() -> None:
    assert chrf(["a red bird."], ["A red bird."]) == 1.0
    assert chrf(["xyz"], ["A red bird."]) == 0.0
    assert 0.2 < chrf(["a red fish."], ["A red bird."]) < 0.8


def small(folder: Path) -> list[str]:
    return ["--data", str(folder), "--seeds", "1", "--epochs", "1", "--json"]


@pytest.mark.slow
def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path)
    report = av_digits.main([*small(folder), "--part", "known"])
    assert json.loads(capsys.readouterr().out) == report
    assert {f"known, {snr:g} dB" for snr in av_digits.SNRS_DB} < report["rows"].keys()
    clean = report["rows"]["known, clean"]
    assert {"decision", "picture", "sound", "cross-attention"} < clean.keys()
    deaf = report["rows"]["known, sound missing"]
    assert "sound" not in deaf
    assert any(name.startswith("decision - picture") for name in deaf)
    for part, rows in (("unseen", 7), ("development", 13)):
        assert len(av_digits.main([*small(folder), "--part", part])["rows"]) == rows
    (ways,) = av_digits.main([*small(folder), "--part", "align"])["rows"].values()
    assert len(ways) == 6
    assert all(way.keys() == {"mean", "sd", "se"} for way in ways.values())
    with pytest.raises(SystemExit):
        av_digits.main([*small(folder), "--part", "nothing"])


@pytest.mark.slow
def test_digits_heard_by_a_pretrained_network_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the demo extra is not installed")
    command = [*small(made(tmp_path)), "--part", "pretrained-unseen"]
    one = av_digits.main(command)
    assert len(one["rows"]) == 7
    two = av_digits.main([*command, "--jobs", "2"])
    timed = "pretrained-unseen, one training"
    assert {name: entry for name, entry in one["rows"].items() if name != timed} == {
        name: entry for name, entry in two["rows"].items() if name != timed
    }


def pictures(folder: Path) -> Path:
    for number in range(60):
        colour = sorted(COLOURS)[number % 2]
        stem = folder / colour / f"{colour}-{number}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".png").write_bytes(picture(colour, number))
        stem.with_suffix(".wav").write_bytes(tone(colour, number))
        stem.with_suffix(".txt").write_text(f"a {colour} square, number {number}")
    return folder


@pytest.mark.slow
def test_stamps_on_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "pictures")
    given = ["--data", str(folder), "--preset", "tiny", "--json"]
    flags = [*given, "--seeds", "1", "--resume", str(tmp_path / "finished"), "--part", "recall"]
    report = stamps.main(flags)
    assert json.loads(capsys.readouterr().out) == report
    assert report["trained_on"] + report["held_out"] == 60
    row = report["rows"]["recall"]
    assert row["category decision"]["mean"] == 1.0
    assert 0.0 <= row["text->image recall@1"]["mean"] <= row["text->image recall@10"]["mean"] <= 1.0
    monkeypatch.setattr(stamps, "fit", never)
    assert stamps.main(flags) == report
    rows = stamps_references.main(given)["rows"]
    correlated = {"retrieval", "retrieval, correlation alone", "retrieval, cross-validated"}
    classified = {"category, logistic regression", "category, support vectors"}
    chosen = {"nearest, held out", "nearest, cross-validated"}
    assert rows.keys() == {"captions", *chosen, *correlated, *classified}
    for name in classified:
        shares = ("accuracy", "accuracy, cross-validated")
        assert [rows[name][share]["mean"] for share in shares] == [1.0, 1.0]
    assert rows["captions"]["chrF of each, best training caption"]["mean"] > 0.8
    assert rows["retrieval"]["weight of the class names"] == 0.0


def never(*_: object) -> None:
    raise AssertionError("a finished training is done again")


@pytest.mark.slow
def test_a_fusion_of_xor_and_its_finished_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xor, "RECORDS", 200)
    monkeypatch.setattr(xor, "EPOCHS", 1)
    flags = ["--part", "early", "--seeds", "1", "--json", "--resume", str(tmp_path / "finished")]
    report = xor.main(flags)
    assert report["rows"].keys() == {"early"}
    assert {"decision", "fused vector", "without audio"} < report["rows"]["early"].keys()
    monkeypatch.setattr(xor, "run", never)
    assert xor.main(flags) == report
    monkeypatch.setattr(xor, "EPOCHS", 2)
    with pytest.raises(AssertionError):
        xor.main(flags)


def test_the_result_of_a_training_is_taken_from_the_file(tmp_path: Path) -> None:
    file, runs = tmp_path / "finished", []

    def run() -> dict[str, list[float]]:
        runs.append(1)
        return {"decision": [1.0, 0.0]}

    for key, calls in (("one", 1), ("one", 1), ("two", 2)):
        finished = Finished(file)
        assert (key in finished) == (len(runs) == calls)
        assert finished.result(key, run) == {"decision": [1.0, 0.0]}
        assert len(runs) == calls
    config = preset("tiny")
    keys = {
        key_of("a", config, 0),
        key_of("b", config, 0),
        key_of("a", config, 1),
        key_of("a", config, 0, ["id"]),
        key_of("a", replace(config, epochs=1), 0),
    }
    assert len(keys) == 5


def test_frozen_encoders_encode_once_for_all_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = preset("tiny")
    image = replace(tiny.model.encoders["image"], frozen=True)
    config = replace(tiny, epochs=1, model=replace(tiny.model, encoders={"image": image}))
    readings = []

    def counted(*args: Any, **more: Any) -> Dataset:
        readings.append(1)
        return gather(*args, **more)

    def losses(name: str, config: TrainConfig, seed: int = 0) -> Any:
        out = tmp_path / name
        return train(samples(), config, out=out, name="v", version=1, seed=seed).metrics["losses"]

    monkeypatch.setattr(trainings, "gather", counted)
    plain = losses("plain", config)
    with read_once():
        assert losses("once", config) == plain
        assert losses("again", config) == plain
        losses("weights", replace(config, task=1.0))
        assert len(readings) == 1
        losses("other encoder", config, seed=1)  # its weights are drawn by the seed
        assert len(readings) == 2
    losses("outside", config)
    assert len(readings) == 2


def test_a_command_line_names_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for main, option in ((xor.main, "--data"), (index_exact.main, "--seeds")):
        with pytest.raises(SystemExit):
            main([option, "2"])
        assert f"unrecognized arguments: {option} 2" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="no av-digits folder"):
        av_digits.main(["--data", str(tmp_path)])


def test_a_verdict_compares_a_figure_with_its_target() -> None:
    rows = {"a": {"ratio": 0.8, "ms": 5.0}}
    targets = [
        Target(name="high enough", of=figure("a", "ratio"), bound=0.8),
        Target(name="too low", of=figure("a", "ratio"), bound=0.81),
        Target(name="low enough", of=figure("a", "ms"), bound=5, most=True),
        Target(name="too high", of=figure("a", "ms"), bound=4.9, most=True),
    ]
    table = verdicts({"rows": rows}, targets)
    assert [row["reached"] for row in table] == [True, False, True, False]
    assert [row["value"] for row in table] == [0.8, 0.8, 5.0, 5.0]
    assert [row["target"] for row in table] == [">= 0.8", ">= 0.81", "<= 5", "<= 4.9"]
    assert not any("error" in row for row in table)
    failed = verdicts({"error": "no broker"}, targets)
    assert [(row["reached"], row["value"]) for row in failed] == [(False, None)] * 4
    assert {row["error"] for row in failed} == {"no broker"}
    (absent,) = verdicts({"rows": rows}, [Target(name="absent", of=figure("a", "s"), bound=1)])
    assert (absent["reached"], absent["value"], absent["error"]) == (False, None, "no figure 's'")


def test_a_benchmark_that_fails_is_a_row_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(["vectors", "--json"])  # has no main: prints nothing
    assert report["error"].startswith("printed no report")
    assert run(["no_such_benchmark"])["error"].endswith(
        "No module named benchmarks.no_such_benchmark"
    )
    monkeypatch.setattr(benchmarks.__main__, "TIMEOUT_S", 0.01)
    assert run(["vectors"])["error"] == "took over 0.01 s"


def test_more_workers_are_expected_to_do_more_while_there_are_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scaling, "CORES", 3)
    runs = {
        "1 worker": scaling.Run(8.0, 1.2),
        "2 workers": scaling.Run(4.0, 2.4),
        "4 workers": scaling.Run(4.0, 3.0),
        "a tenth": scaling.Run(1.0, 1.0),
        "short texts": scaling.Run(1.0, 1.0),
        "long texts": scaling.Run(5.0, 1.0),
    }
    rows = scaling.summary([runs] * 3, 1000)
    assert rows["1 worker"]["core ms a record"] == 9.6
    assert [rows[f"{n} workers"]["times one worker"] for n in (2, 4)] == [2.0, 2.0]
    assert [rows[f"{n} workers"]["expected"] for n in (2, 4)] == [2.0, 2.5]
    assert [rows[f"{n} workers"]["times one worker / expected"] for n in (2, 4)] == [1.0, 0.8]
    assert rows["10 times the records"]["rate / before"] == 1.25
    assert rows["10 times the text"]["rate / before"] == 2.0


def test_operations_of_texts_are_what_torch_counts() -> None:
    bert = Bert(
        {
            "vocab_size": 50,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 96,
            "max_position_embeddings": 40,
            "type_vocab_size": 2,
            "pad_token_id": 0,
            "layer_norm_eps": 1e-12,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
        }
    ).eval()
    lengths = [7, 7, 20]
    ids_BT = torch.ones(3, 20, dtype=torch.long)
    mask_BT = torch.arange(20) < torch.tensor(lengths)[:, None]
    # The counter knows the products that attention is made of, but not its kernel for a CPU.
    kernel = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), kernel:
        bert(ids_BT, mask_BT, [-1])
    blocks = list(bert.encoder["layer"].children())
    assert operations(blocks, 32, lengths) == counter.get_total_flops()


def test_the_plain_training_step_has_the_same_loss() -> None:
    config = replace(preset("tiny"), batch=8, match=0.3, pairs={"text-audio": 0.1})
    frozen = {
        name: replace(encoder, frozen=True) for name, encoder in config.model.encoders.items()
    }
    config = replace(config, model=replace(config.model, encoders=frozen, fusion="early"))
    net = make_net(config, {"category": Task(classes=tuple("abcdefghijklmnop"))})
    data = training.dataset(net, config, 16)
    training.check_same_loss(net, data, config)
    with pytest.raises(AssertionError, match="not close"):
        training.check_same_loss(net, data, replace(config, batch=9, contrast="siglip"))


def commands() -> list[tuple[str, list[str]]]:
    """The benchmarks that pages and figures call, with their arguments; of `a|b` the first."""
    texts = [path.read_text() for path in (FOLDER / "RESULTS.md", *pages())]
    found = re.findall(r"python -m benchmarks\.([\w.]+)([^\n`>]*)", "\n".join(texts))
    return [
        (name, [one.strip("[]").split("|")[0] for one in shlex.split(rest, comments=True)])
        for name, rest in dict.fromkeys(found)
    ]


def test_the_commands_of_the_documents_are_there() -> None:
    named = {name for name, _ in commands()}
    assert {"xor", "stamps", "av_digits", "index_exact", "peers.compare"} <= named
    for name in named:
        text = (FOLDER / f"{name.replace('.', '/')}.py").read_text()
        assert '\nif __name__ == "__main__":\n    main()\n' in text, name


def test_intervals_that_overlap_cover_time_once() -> None:
    assert gpu.covered([(4.0, 5.0), (1.0, 3.0), (2.0, 2.5)]) == 0.75
    assert gpu.covered([(0.0, 1.0), (0.5, 2.0)]) == 1.0


@pytest.mark.kafka
@pytest.mark.slow
def test_the_rows_of_a_gpu_run_on_a_cpu(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", kafka)
    small = ["--records", "3", "--rounds", "1", "--layers", "1"]
    report = gpu.main(["--device", "cpu", "--only", "image", *small, "--json"])
    row = report["rows"]["image"]
    assert row["precision"] == "float32"
    limit = row["product, TFLOP a second"] * 1e12
    layer = 4 * 768**2 + 2 * 768 * 3072  # weights of a block of ViT-B, over 197 tokens
    needed = 197 * 2 * layer + 4 * 768 * 197**2
    expected = row["encode, records a second"] * needed / limit
    assert row["encode / floor"] == pytest.approx(expected, rel=0.05)
    assert 0 < row["busy while streaming"] <= 1
    assert row["stream, records a second"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_rows_of_one_are_refused() -> None:
    with pytest.raises(SystemExit, match="no CUDA GPU here"):
        gpu.main(["--only", "image"])


def test_the_commands_of_the_documents_have_arguments_that_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Taken(Exception):
        """The arguments were."""

    parse = ArgumentParser.parse_args

    def only_parse(self: ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        parse(self, args, namespace)
        raise Taken

    monkeypatch.setattr(ArgumentParser, "parse_args", only_parse)
    for name, arguments in commands():
        main = importlib.import_module(f"benchmarks.{name}").main
        with pytest.raises(Taken):
            main(arguments)


def test_the_limits_of_a_core_are_measured_at_each_level() -> None:
    threads = torch.get_num_threads()
    try:
        rows = limits.main(["--rows", "2000", "--rounds", "1", "--json"])["rows"]
    finally:
        torch.set_num_threads(threads)
    assert rows["of float32"]["float32"] == 1.0
    assert set(rows["GFLOP a second"]) == {"float32", "bf16", "int8"}
    measured = {name.split(", ")[0] for name in rows["ms of a search"]}
    assert measured == {"IndexFlat", "8 bits"}
