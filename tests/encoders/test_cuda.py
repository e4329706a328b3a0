"""On a CUDA GPU: losses and vectors are the CPU's in float32, and close to them in bf16."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from braid.encoders import load, preset, train
from braid.encoders.config import TrainConfig
from braid.encoders.manifest import read_manifest
from braid.encoders.model.fusion import FUSIONS
from braid.encoders.types import Sample
from tests.encoders.backbones.test_bert import pair, texts
from tests.encoders.material import samples

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]

NAMES = tuple(preset("tiny").model.encoders)


def config(fusion: str, precision: str = "float32", *names: str) -> TrainConfig:
    """Ten steps of the tiny preset, each over a batch of everything.

    Args:
        names: the modalities; all, if there are none.
    """
    tiny = preset("tiny")
    encoders = {name: tiny.model.encoders[name] for name in names or NAMES}
    return replace(
        tiny,
        model=replace(tiny.model, fusion=fusion, encoders=encoders),
        precision=precision,
        epochs=10,
        batch=1000,
        refit=False,
    )


def losses(config: TrainConfig, out: Path, device: str) -> list[float]:
    made = train(samples(), config, out=out, name="v", version=1, seed=0, device=device)
    result: list[float] = made.metrics["losses"]
    return result


def subsets() -> list[Sample]:
    """A record of every modality there is, without each of them, and with each alone."""
    whole = next(s for s in samples() if s.text and s.image and s.audio)
    keeps = [NAMES, *((name,) for name in NAMES)]
    keeps += [tuple(other for other in NAMES if other != name) for name in NAMES]
    return [
        Sample(id="+".join(kept), **{name: getattr(whole, name) for name in kept}) for kept in keeps
    ]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_ten_steps_give_the_losses_of_the_cpu(fusion: str, tmp_path: Path) -> None:
    """Sounds stay out: what training varies in their frames is drawn on the device."""
    one = config(fusion, "float32", "text", "image")
    there, here = losses(one, tmp_path / "gpu", "cuda"), losses(one, tmp_path / "cpu", "cpu")
    assert there == pytest.approx(here, rel=1e-3)
    assert here[-1] < here[0]


def test_a_process_of_torchrun_trains_as_one_alone(tmp_path: Path) -> None:
    alone = losses(config("intermediate"), tmp_path / "alone", "cuda")
    assert torchrun(1, tmp_path).returncode == 0
    assert read_manifest(tmp_path / "v").metrics["losses"] == pytest.approx(alone, rel=1e-3)


def test_more_processes_than_gpus_are_refused(tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    done = torchrun(count + 1, tmp_path)
    assert done.returncode != 0
    assert f"torchrun started {count + 1} processes on this machine, and it has" in done.stderr
    assert not (tmp_path / "v").exists()


SCRIPT = """
import sys
from pathlib import Path
from tests.encoders.test_cuda import config, losses

losses(config("intermediate"), Path(sys.argv[1]) / "v", "cuda")
"""


def torchrun(count: int, place: Path) -> subprocess.CompletedProcess[str]:
    (place / "run.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run(
        [sys.executable, *launcher, str(place / "run.py"), str(place)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_version_made_on_the_gpu_serves_anywhere(fusion: str, tmp_path: Path) -> None:
    losses(config(fusion), tmp_path / "v", "cuda")
    result = {}
    for device in ("cuda", "cpu"):
        model = load(tmp_path / "v", device=device)
        model.check()
        result[device] = model.encode([model.prepare(sample) for sample in subsets()])
    for there, here in zip(result["cuda"], result["cpu"], strict=True):
        np.testing.assert_allclose(there.fused, here.fused, atol=1e-3)
        assert there.by.keys() == here.by.keys()
        assert there.tasks.keys() == here.tasks.keys() != set()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_bf16_trains_and_serves_close_to_float32(fusion: str, tmp_path: Path) -> None:
    half = losses(config(fusion, "bf16"), tmp_path / "v", "cuda")
    assert half == pytest.approx(losses(config(fusion), tmp_path / "w", "cuda"), rel=0.05)
    assert read_manifest(tmp_path / "v").config["precision"] == "bf16"

    model, plain = (load(tmp_path / "v", device=device) for device in ("cuda", "cpu"))
    assert (model.bf16, plain.bf16) == (True, False)  # type: ignore[attr-defined]
    model.check()  # in float32, whatever it serves in
    served, exact = (
        each.encode([each.prepare(sample) for sample in subsets()]) for each in (model, plain)
    )
    for got, wanted in zip(served, exact, strict=True):
        assert got.fused.dtype == np.float32
        assert float(np.linalg.norm(got.fused)) == pytest.approx(1, abs=1e-5)
        assert float(got.fused @ wanted.fused) > 0.999
    assert any((a.fused != b.fused).any() for a, b in zip(served, exact, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_bert_padded_on_the_gpu_is_bert_packed_on_the_cpu(seed: int) -> None:
    encoder = pair()[1].eval()
    batch = encoder.collate([np.array(ids_T) for ids_T in texts(seed)])
    here = encoder(*batch)
    there = encoder.cuda()(*(tensor.cuda() for tensor in batch))
    assert here.tokens_BTF is not None
    assert there.tokens_BTF is not None
    torch.testing.assert_close(there.pooled_BF.cpu(), here.pooled_BF, atol=1e-5, rtol=1e-4)
    real_BT = here.mask_BT
    torch.testing.assert_close(
        there.tokens_BTF.cpu()[real_BT], here.tokens_BTF[real_BT], atol=1e-5, rtol=1e-4
    )
