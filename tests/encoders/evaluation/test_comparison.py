"""Two versions on the same records: which is better, in what, and what is not compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from braid.encoders import BadInput, preset, train
from braid.encoders.evaluation.comparison import _metric, compare
from braid.encoders.evaluation.gates import Gates
from braid.encoders.model.checkpoint import load_folder
from braid.encoders.model.learnt import Learnt
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.training.splits import Splits, marks_of
from braid.encoders.types import Sample
from tests.encoders.material import samples

QUICK = Gates(min_records=8, resamples=200, rounds=1, batch=2)


@pytest.fixture(scope="module")
def trained(version: Path) -> TorchModel:
    return load_folder(version, device="cpu")


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    """One that has learnt next to nothing, of another width, without sounds."""
    out, tiny = tmp_path_factory.mktemp("poor") / "poor", preset("tiny")
    encoders = {name: tiny.model.encoders[name] for name in ("text", "image")}
    model = replace(tiny.model, dim=32, encoders=encoders)
    config = replace(tiny, epochs=1, lr=1e-6, refit=False, model=model)
    train(samples(60), config, out=out, name="poor", version=2, seed=0, device="cpu")
    return load_folder(out, device="cpu")


@pytest.mark.slow
def test_the_better_one_is_named_whichever_comes_first(
    trained: TorchModel, poor: TorchModel
) -> None:
    made = samples(300, seed=9)
    result = compare(trained, poor, made, gates=QUICK)
    assert (result["first"], result["second"]) == ("tiny-0001", "poor")
    assert result["records"] == 280  # the other 20 are sounds alone
    assert (result["learnt"], result["unlike"]) == (0, ["audio"])
    deciding = {one["metric"]: one for one in result["metrics"] if one["deciding"]}
    assert set(deciding) == {
        "accuracy colour: as it comes",
        "recall@10 text->image",
        "recall@10 image->text",
    }
    for metric in deciding.values():
        assert metric["better"] == "first"
        assert metric["difference"] == pytest.approx(metric["second"] - metric["first"], abs=2e-6)
        assert metric["interval"][0] < metric["difference"] < metric["interval"][1] < 0
    assert min(result["ms"].values()) > 0
    json.dumps(result, allow_nan=False)
    other = compare(poor, trained, made, gates=QUICK)
    assert {one["better"] for one in other["metrics"] if one["deciding"]} == {"second"}


def test_a_version_is_no_better_than_itself(trained: TorchModel) -> None:
    result = compare(trained, trained, samples(60, seed=9), gates=QUICK)
    assert result["unlike"] == []
    assert {one["better"] for one in result["metrics"]} == {None}
    assert {one["difference"] for one in result["metrics"]} == {0.0}


def test_what_one_of_both_has_learnt_is_left_out(version: Path, trained: TorchModel) -> None:
    learnt = Learnt.read(version, trained.manifest)
    assert learnt is not None
    result = compare(trained, trained, samples(), learnt=[learnt], gates=QUICK)
    assert result["records"] + result["learnt"] == 160
    assert 0 < result["records"] < 40
    known = Learnt.of(learnt.keys.tolist()) | Learnt.of(
        key for number in range(160) for key in ids(f"s{number}")
    )
    with pytest.raises(BadInput, match="none is left of 160, 160 were learnt"):
        compare(trained, trained, samples(), learnt=[known], gates=QUICK)


def ids(name: str) -> tuple[int, ...]:
    return Splits.among(marks_of([Sample(id=name, text=name)])).keys[name]


@pytest.mark.parametrize(
    ("metric", "interval", "better"),
    [
        ("accuracy kind: text", (0.01, 0.2), "second"),
        ("accuracy kind: text", (-0.2, -0.01), "first"),
        ("accuracy kind: text", (-0.01, 0.2), None),
        ("error size: text", (0.01, 0.2), "first"),
        ("calibration error kind", (-0.2, -0.01), "second"),
    ],
)
def test_of_an_error_the_lower_one_is_better(
    metric: str, interval: tuple[float, float], better: str | None
) -> None:
    gate: dict[str, Any] = dict.fromkeys(("champion", "challenger", "difference", "records"), 0)
    gate |= {"metric": metric, "interval": interval, "role": "primary"}
    assert _metric(gate)["better"] == better
