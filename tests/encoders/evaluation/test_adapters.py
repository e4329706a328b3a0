"""Adapters by themselves: what each kind can undo, their files; and the loss that spares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.encoders import CheckpointError
from braid.encoders.evaluation.fit_adapter import fit_adapter
from braid.encoders.manifest import read_manifest
from braid.encoders.model.adapter import Adapter, load_adapter
from braid.encoders.training.losses import compatibility_loss
from tests.encoders.spaces import LIMITS, D, rotation, unit


def test_what_no_rotation_undoes_needs_the_next_kind() -> None:
    torch.manual_seed(0)
    x_nD, r_DD = unit(torch.randn(600, D)), rotation()
    spread_D = torch.cat([torch.full((4,), 3.0), torch.ones(D - 4)])
    y_nD = unit((x_nD * spread_D) @ r_DD + 0.1)
    held = slice(500, None)

    def fit(kind: str, given_nD: Tensor = y_nD) -> float:
        adapter = fit_adapter(kind, x_nD[:500], given_nD[:500], replace(LIMITS, rank=6, steps=300))
        return float((adapter(x_nD[held]) * given_nD[held]).sum(1).mean())

    assert fit("procrustes") < 0.9
    assert fit("affine") > 0.96
    bent_nD = unit((x_nD.abs() * spread_D) @ r_DD + x_nD)  # and what no linear map does
    assert fit("mlp", bent_nD) > fit("affine", bent_nD) + 0.02


def test_an_adapter_keeps_length_one_absent_rows_and_its_bytes() -> None:
    torch.manual_seed(0)
    x_nD = unit(torch.randn(40, D))
    x_nD[3] = 0.0
    for kind in ("procrustes", "affine", "mlp"):
        adapter = fit_adapter(kind, x_nD, x_nD @ rotation(), LIMITS)
        mapped_nD = adapter(x_nD)
        norm_n = mapped_nD.norm(dim=1)
        assert float(norm_n[3]) == 0.0
        assert torch.allclose(norm_n[torch.arange(40) != 3], torch.ones(39), atol=1e-5)
        assert adapter.apply(x_nD.numpy()) == pytest.approx(mapped_nD.numpy(), abs=1e-6)
        with pytest.raises(ValueError, match="maps 24 dimensions, not 5"):
            adapter(torch.zeros(2, 5))


@pytest.mark.slow
def test_an_adapter_of_another_kind_or_dimension_is_refused(version: Path, tmp_path: Path) -> None:
    content = Adapter(kind="procrustes", tensors={"R": torch.eye(D)}).to_bytes()
    (tmp_path / "adapter.safetensors").write_bytes(content)
    for story, message in (
        ({"kind": "procrustes"}, "adapter of 24 dimensions, not 64"),
        ({"kind": "mlp"}, "is no adapter of kind 'mlp'"),
        ({"kind": "magic"}, "is no adapter of kind 'magic'"),
    ):
        manifest = replace(
            read_manifest(version),
            compatibility={"adapter": {**story, "file": "adapter.safetensors", "applied": True}},
            files={"adapter.safetensors": ""},
        )
        with pytest.raises(CheckpointError, match=message):
            load_adapter(tmp_path, manifest)
    unlisted = replace(manifest, files={})
    with pytest.raises(CheckpointError, match="no checksum of its adapter"):
        load_adapter(tmp_path, unlisted)


def test_the_compatibility_loss_is_the_plain_one_and_leaves_the_old_alone() -> None:
    torch.manual_seed(0)
    new_BD, old_BD = unit(torch.randn(5, 8)), unit(torch.randn(5, 8))
    scores = (new_BD @ old_BD.T / 0.07).double().numpy()
    plain = np.mean(
        [
            1 - float(new_BD[i] @ old_BD[i]) + np.log(np.exp(scores[i] - scores[i, i]).sum())
            for i in range(5)
        ]
    )
    assert float(compatibility_loss(new_BD, old_BD, torch.eye(5))) == pytest.approx(plain, abs=1e-4)
    assert float(compatibility_loss(new_BD[:0], old_BD[:0], torch.zeros(0, 0))) == 0.0
