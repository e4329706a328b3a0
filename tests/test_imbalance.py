"""The benchmark of imbalanced modalities: its rows, and OGM-GE as a hook of the optimiser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from benchmarks import data_digits, imbalance
from braid.encoders.model.checkpoint import make_net
from braid.encoders.model.net import Net
from braid.encoders.training.batches import Batch
from braid.encoders.training.data import gather
from braid.encoders.training.fit import fit
from tests.test_data_digits import made


@pytest.mark.slow
def test_ways_of_imbalance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--data", str(made(tmp_path)), "--seeds", "1", "--epochs", "1", "--json"]
    flags += ["--resume", str(tmp_path / "finished")]
    report = imbalance.main(flags)
    assert report["rows"].keys() == imbalance.ways(1).keys()
    assert {"fused - joint", "sound - joint", "sound", "picture"} < report["rows"]["OGM-GE"].keys()
    assert report["rows"]["alone"].keys() == {"sound", "picture"}

    def never(*_: object) -> None:
        raise AssertionError("a finished training is done again")

    monkeypatch.setattr(imbalance, "trained", never)
    assert imbalance.main(flags) == report


def test_ogm_ge_scales_the_updates_of_the_surer_modality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser must not divide the scale out again: one step, since gradients differ then."""
    config = replace(imbalance.ways(1)["OGM-GE"], batch=500)
    known, _ = imbalance.data(data_digits.load(made(tmp_path)), seed=0)
    moved: dict[float, dict[str, float]] = {}
    for scale in (1.0, 0.25):
        monkeypatch.setattr(imbalance, "scales", lambda *_, scale=scale: [scale, 1.0])
        torch.manual_seed(0)
        net, device = make_net(config, {}), torch.device("cpu")
        data = gather(known, net, config, all_frozen=False, device=device, progress=lambda *_: None)
        net.new_heads(data.tasks)
        before = {name: value.detach().clone() for name, value in net.named_parameters()}
        with imbalance.modulated():
            fit(net, data, config, splits=("train",), seed=0)
        moved[scale] = {
            name: float((value.detach() - before[name]).norm())
            for name, value in net.named_parameters()
        }
    ratios = {name: moved[0.25][name] / whole for name, whole in moved[1.0].items() if whole > 0}
    damped = {name for name in ratios if name.startswith(("encoders.image", "projectors.image"))}
    assert len(damped) > 4
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(0.25 if name in damped else 1.0, rel=1e-2), name


def test_the_modality_whose_own_head_is_surer_is_damped() -> None:
    class Sure:
        """A net of two modalities, of which the first one's own head is surer of class 0."""

        def units(self, *_: object) -> torch.Tensor:
            return torch.zeros(5, 2, 3)

        def logits(self, *_: object) -> torch.Tensor:
            return torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 9.0]]).expand(5, 3, 2)

    batch = Batch(
        features={},
        present_BM=torch.ones(5, 2, dtype=torch.bool),
        group_B=torch.zeros(5),
        target={data_digits.TASK: torch.zeros(5, dtype=torch.long)},
    )
    scale, other = imbalance.scales(cast(Net, Sure()), batch, 0.5)
    assert other == 1.0
    rho = 1 / (1 + np.exp(-2)) / 0.5
    assert scale == pytest.approx(1 - np.tanh(0.5 * rho))
