"""Fitting: early stopping, averaging, freezing, precision, crashes, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from braid.encoders import CheckpointError, TrainingError, load, preset, split, train
from braid.encoders.backbones.registry import encoder_class
from braid.encoders.config import EncoderConfig, TrainConfig
from braid.encoders.manifest import Manifest, read_manifest
from braid.encoders.model.checkpoint import make_net
from braid.encoders.model.net import Net
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.training.data import Dataset, gather
from braid.encoders.training.ema import Ema
from braid.encoders.training.fit import fit
from braid.encoders.training.loss_weights import BOUND, LearnedWeights
from braid.encoders.training.resume import running_statistics
from tests.encoders.material import samples

ROOT = Path(__file__).parents[3]
SHORT = replace(preset("tiny"), epochs=2)


def run(place: Path, config: TrainConfig, **more: Any) -> Manifest:
    return train(samples(), config, out=place / "v", name="v", version=1, seed=0, **more)


def made(config: TrainConfig) -> tuple[Net, Dataset]:
    """A new model and the material as it trains on it."""
    torch.manual_seed(0)
    net = make_net(config, {})
    data = gather(
        samples(),
        net,
        config,
        all_frozen=False,
        device=torch.device("cpu"),
        progress=lambda *_: None,
    )
    net.new_heads(data.tasks)
    return net, data


def weights(version: Path) -> dict[str, torch.Tensor]:
    model = load(version, device="cpu")
    assert isinstance(model, TorchModel)
    return dict(model.net.state_dict())


@pytest.mark.slow
def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    config = replace(SHORT, epochs=40, lr=0.3, patience=2, refit=False)
    story = run(tmp_path, config).metrics
    held_out = story["held_out"]
    assert len(held_out) < 40, "it never stopped"
    assert held_out[story["best_epoch"] - 1] == min(held_out)
    assert len(held_out) == story["best_epoch"] + 2


@pytest.mark.slow
def test_the_best_epochs_running_statistics_are_kept_with_its_weights() -> None:
    config = replace(SHORT, epochs=40, lr=0.3, patience=2)
    net, data = made(config)
    seen: list[list[torch.Tensor]] = []

    def keep(*_: object) -> None:
        seen.append([one.clone() for one in running_statistics(net)])

    state = fit(net, data, config, splits=("train",), seed=0, progress=keep)
    assert 0 < state.best < len(seen)
    result = running_statistics(net)
    assert len(result) == 9, "of three batch norms"
    assert all(torch.equal(a, b) for a, b in zip(result, seen[state.best - 1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(result, seen[-1], strict=True))


@pytest.mark.slow
def test_a_batch_norm_outside_the_trained_blocks_keeps_its_statistics() -> None:
    resnet = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
    options = {"config": resnet, "side": 32}
    encoders = {"image": EncoderConfig(kind="resnet", train_last=1, options=options)}
    config = replace(SHORT, epochs=1, model=replace(SHORT.model, encoders=encoders))
    net, data = made(config)
    before = {name: buffer.clone() for name, buffer in net.encoders.named_buffers()}
    fit(net, data, config, splits=("train",), seed=0)
    changed = {k for k, b in net.encoders.named_buffers() if not torch.equal(b, before[k])}
    last = "image.net.encoder.stages.1."
    assert changed == {name for name in before if name.startswith(last)}
    assert any("embedder" in name for name in before), "there is a stem with a batch norm"


@pytest.mark.slow
def test_a_refit_trains_as_long_as_the_best_epoch(tmp_path: Path) -> None:
    story = run(tmp_path, replace(SHORT, epochs=40, lr=0.3, patience=2)).metrics
    assert len(story["refit"]["losses"]) == story["best_epoch"]


@pytest.mark.slow
def test_only_the_last_blocks_are_trained(tmp_path: Path) -> None:
    encoders = dict(SHORT.model.encoders)
    encoders["image"] = replace(encoders["image"], train_last=1)
    config = replace(SHORT, model=replace(SHORT.model, encoders=encoders), refit=False)
    run(tmp_path, config)
    run(tmp_path / "more", replace(config, epochs=4))
    before, after = weights(tmp_path / "v"), weights(tmp_path / "more" / "v")
    same = {k: torch.equal(before[k], after[k]) for k in before if k.startswith("encoders.image")}
    assert {name for name, equal in same.items() if not equal} == {
        f"encoders.image.layers.2.{part}.{kind}" for part in (0, 1) for kind in ("weight", "bias")
    }


def test_more_blocks_than_there_are_is_an_error(tmp_path: Path) -> None:
    encoders = {"image": EncoderConfig(kind="small-cnn", train_last=9)}
    config = replace(SHORT, model=replace(SHORT.model, encoders=encoders))
    with pytest.raises(TrainingError, match="must be 1 to 3, is 9"):
        run(tmp_path, config)


@pytest.mark.slow
def test_bf16_trains_and_is_written_in_float32(tmp_path: Path) -> None:
    story = run(tmp_path, replace(SHORT, epochs=6, precision="bf16")).metrics
    assert story["losses"][-1] < story["losses"][0]
    assert weights(tmp_path / "v")["projectors.text.layers.1.weight"].dtype == torch.float32
    model = load(tmp_path / "v", device="cpu")
    model.check()
    assert isinstance(model, TorchModel)
    assert not model.bf16, "on a CPU it is slower"


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["mean", "early", "intermediate"])
def test_a_version_serves_in_bf16_and_is_checked_in_float32(tmp_path: Path, fusion: str) -> None:
    """As it does on a GPU, where it was trained so; here it is told to."""
    run(tmp_path, replace(SHORT, model=replace(SHORT.model, fusion=fusion), refit=False))
    model = load(tmp_path / "v", device="cpu")
    assert isinstance(model, TorchModel)
    prepared = [model.prepare(sample) for sample in samples(8)]
    exact = model.encode(prepared)
    model.bf16 = True
    rough = model.encode(prepared)
    off = [np.abs(a.fused - b.fused).max() for a, b in zip(exact, rough, strict=True)]
    assert 0.0 < max(off) < 0.05
    for one in rough:
        for vector_D in (one.fused, *one.by.values()):
            assert vector_D.dtype == np.float32
            assert np.linalg.norm(vector_D) == pytest.approx(1.0, abs=1e-5)
    manifest = replace(model.manifest, golden={**model.manifest.golden, "tolerance": 1e-5})
    model.manifest = manifest
    model.check()
    assert model.bf16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("contrast", "triplet"),
        ("precision", "fp8"),
        ("batch", 0),
        ("ema", 1.0),
        ("task", -0.1),
        ("align", -1.0),
        ("fuse", -1.0),
        ("match", -0.3),
        ("monotone", -1.0),
        ("compatible", -1.0),
        ("drop", -0.1),
        ("drop", 1.1),
        ("chunk", -1),
        ("same_label", -0.1),
        ("same_label", 2),
        ("patience", -1),
        ("pairs", {"text-audio": -1.0}),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, field: str, value: Any) -> None:
    shown = value["text-audio"] if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=rf"^{field}\b.* is .*{shown}"):
        run(tmp_path, replace(SHORT, **{field: value}))


def test_a_frozen_encoder_trains_no_block() -> None:
    with pytest.raises(ValueError, match="train_last of a frozen encoder must be None, is 4"):
        EncoderConfig(kind="vit", frozen=True, train_last=4)


@pytest.mark.parametrize(
    ("modality", "kind"),
    [("text", "hashed"), ("image", "small-cnn"), ("audio", "logmel-cnn"), ("audio", "logmel-rnn")],
)
def test_a_source_that_would_be_ignored_is_refused(modality: str, kind: str) -> None:
    config = EncoderConfig(kind=kind, source="somebody/some-model")
    with pytest.raises(CheckpointError, match=f"source of a {kind} encoder must be None.*some-mod"):
        encoder_class(modality, config).create(config)


def test_the_average_of_the_weights_is_what_its_formula_says() -> None:
    parameter = nn.Parameter(torch.tensor([0.0]))
    ema = Ema([parameter], 0.5)
    shadow = 0.0
    for step in range(1, 30):
        parameter.data += 1.0
        ema.update()
        keep = min(0.5, (1 + step) / (10 + step))
        shadow = keep * shadow + (1 - keep) * step
    with ema.averaged():
        assert parameter.item() == pytest.approx(shadow)
    assert parameter.item() == 29.0
    ema.take()
    assert parameter.item() == pytest.approx(shadow)


def test_learnt_weights_prefer_the_term_that_is_small_and_stay_bounded() -> None:
    weigh = LearnedWeights(["a", "b"])
    optimizer = torch.optim.SGD(weigh.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weigh({"a": torch.tensor(0.001), "b": torch.tensor(2.0)}).backward()
        optimizer.step()
        weigh.clamp()
    result = {name: float(s.detach()) for name, s in weigh.log_variance.items()}
    assert result["a"] == -BOUND, "half its s must not carry it away"
    # At the minimum exp(-s) L = 1/2, equation 10 of the paper differentiated.
    assert result["b"] == pytest.approx(float(torch.tensor(4.0).log()), abs=1e-3)


SCRIPT = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from braid.encoders import preset, train
from braid.encoders.training import fit
from tests.encoders.material import samples

torch.set_num_threads(1)
if "drift" in sys.argv and os.environ["RANK"] == "1":  # what rounding does on a GPU, but more of it
    class Drifting(fit.AdamW):
        def step(self):
            super().step()
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(1e-3)
                    for moment in self.state[parameter].values():
                        moment.add_(1e-3 * (moment.ndim > 0))

    fit.AdamW = Drifting
place, fatal = Path(sys.argv[1]), int(sys.argv[2])
config = replace(preset("tiny"), epochs=5, ema=0.9, patience=4, batch=int(sys.argv[4]))
encoders = {k: v for k, v in config.model.encoders.items() if k in sys.argv[3].split(",")}
config = replace(config, model=replace(config.model, encoders=encoders, fusion="intermediate"))
ends = 0

def progress(stage, done, total, figures):
    global ends
    if stage in ("train", "refit"):
        ends += 1
        if ends == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

train(samples(), config, out=place / "v", name="v", version=1, seed=0, progress=progress,
      resume=place / "state")
if "RANK" not in os.environ:  # not under torchrun
    assert "torch._dynamo" not in sys.modules, "its import takes as long as torch's"
"""


def script(
    place: Path,
    fatal: int,
    *launcher: str,
    modalities: str = "text,image,audio",
    batch: int = 32,
    drift: bool = False,
) -> int:
    place.mkdir(exist_ok=True)
    (place / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [
            sys.executable,
            *launcher,
            str(place / "run.py"),
            str(place),
            str(fatal),
            modalities,
            str(batch),
            *(["drift"] if drift else []),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if launcher and fatal:  # torchrun's own status says less
        assert f"exitcode  : {-signal.SIGKILL}" in done.stderr, done.stderr
        return -signal.SIGKILL
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def story(place: Path) -> Mapping[str, Any]:
    return read_manifest(place / "v").metrics


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as beside:
        undisturbed = beside.submit(script, tmp_path / "whole", 0)
        assert script(tmp_path / "killed", 3) == -signal.SIGKILL
        assert undisturbed.result() == 0
    kept = [path.name for path in (tmp_path / "killed" / "state").rglob("epoch-*")]
    assert kept == ["epoch-00003"]
    assert script(tmp_path / "killed", 4) == -signal.SIGKILL, "it did not go on, it began anew"
    assert script(tmp_path / "killed", 0) == 0
    whole, killed = story(tmp_path / "whole"), story(tmp_path / "killed")
    for stage in (lambda s: s, lambda s: s["refit"]):
        assert stage(killed)["losses"] == pytest.approx(stage(whole)["losses"], abs=1e-6)
    assert killed["held_out"] == pytest.approx(whole["held_out"], abs=1e-6)
    assert not list((tmp_path / "killed" / "state").iterdir()), "the state is let go of at the end"
    one, other = weights(tmp_path / "whole" / "v"), weights(tmp_path / "killed" / "v")
    assert all(torch.allclose(one[k].float(), other[k].float(), atol=1e-5) for k in one)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    """The sound encoder stays out: its batch norm sees each process's share by itself."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    script(tmp_path / "two", 3, *launcher, modalities="text,image")
    kept = {rank: _kept(tmp_path / "two", rank) for rank in (0, 1)}
    assert all(len(entry) == 2 for entry in kept.values()), (
        "the epoch before is kept for the others"
    )
    if max(kept[1]).name == max(kept[0]).name:
        shutil.rmtree(max(kept[1]))  # as if it had been killed before it kept this one
    assert script(tmp_path / "two", 0, *launcher, modalities="text,image") == 0
    assert script(tmp_path / "one", 0, modalities="text,image") == 0
    assert story(tmp_path / "two")["losses"] == pytest.approx(
        story(tmp_path / "one")["losses"], abs=1e-4
    )
    one, two = weights(tmp_path / "one" / "v"), weights(tmp_path / "two" / "v")
    assert all(torch.allclose(one[k], two[k], atol=1e-3) for k in one)


@pytest.mark.slow
def test_a_batch_may_be_smaller_than_the_number_of_processes(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")
    number = sum(split(sample.id) == "train" for sample in samples())
    script(tmp_path, 2, *launcher, batch=number - 2)
    # The first to end itself has kept both; torchrun ends the others, wherever they are.
    assert max(len(_kept(tmp_path, rank)) for rank in range(3)) == 2


@pytest.mark.slow
def test_processes_keep_and_evaluate_the_same_model(tmp_path: Path) -> None:
    """Batch norm sees each process's share by itself, and rounding moves the copies of the weights
    apart; what comes of it must be one model."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    script(tmp_path, 3, *launcher, drift=True)
    epoch = min(max(_kept(tmp_path, rank)).name for rank in (0, 1))
    places = [_kept(tmp_path, rank)[0].with_name(epoch) for rank in (0, 1)]
    one, two = (load_file(place / "state.safetensors") for place in places)
    statistics = [name for name in one if name.startswith("buffer.")]
    assert len(statistics) == 9, "of three batch norms"
    assert {name.partition(".")[0] for name in one} > {"weight", "optimizer", "ema", "buffer"}
    assert all(torch.equal(one[name], two[name]) for name in one)
    fitted = [json.loads((place / "state.json").read_text())["fitted"] for place in places]
    assert fitted[0]["held_out"] == fitted[1]["held_out"]
    assert fitted[0]["best"] == fitted[1]["best"]


def _kept(place: Path, rank: int) -> list[Path]:
    return list((place / "state").glob(f"*/train-{rank}/epoch-*"))


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, SHORT, resume=state, progress=_interrupt)
    (kept,) = state.rglob("state.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "shapes": "other"}))
    with pytest.raises(TrainingError, match="another model"):
        run(tmp_path, SHORT, resume=state)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_another_parent_label_or_content_begins_anew(tmp_path: Path, frozen: bool) -> None:
    encoders = {"image": EncoderConfig(kind="small-cnn", frozen=frozen)}
    config = replace(SHORT, refit=False, model=replace(SHORT.model, encoders=encoders))
    start = [replace(sample, text=None, audio=None) for sample in samples() if sample.image]
    for number in (1, 2):
        name = f"p{number}"
        train(start, config, out=tmp_path / name, name=name, version=number, seed=number)
    first = next(i for i, one in enumerate(start) if split(one.id) == "train" and one.labels)
    label = next(one.labels for one in start if one.labels not in ({}, start[first].labels))
    picture = next(one.image for one in start if one.image != start[first].image)
    relabelled, repainted = list(start), list(start)
    relabelled[first] = replace(start[first], labels=label)
    repainted[first] = replace(start[first], image=picture)
    state = tmp_path / "state"
    ways = [(start, "p1"), (start, "p1"), (start, "p2"), (relabelled, "p1"), (repainted, "p1")]
    kept = []
    for given, parent in ways:
        with pytest.raises(KeyboardInterrupt):
            train(
                given,
                config,
                out=tmp_path / "v",
                name="v",
                version=3,
                seed=0,
                parent=tmp_path / parent,
                resume=state,
                progress=_interrupt,
            )
        kept.append(len(list(state.iterdir())))
    assert kept == [1, 1, 2, 3, 4]


def _interrupt(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    if stage == "train":
        raise KeyboardInterrupt
