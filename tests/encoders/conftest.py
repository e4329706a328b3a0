"""A trained tiny version, made once for all tests of this folder. Nobody may change it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.encoders import Model, load, preset, train
from braid.encoders.manifest import Manifest
from tests.conftest import made_once
from tests.encoders.material import samples


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny arrays: more threads only wait for each other


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared to the last digit is the CPU's, also where there is a GPU."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the processes that a test starts


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        out = folder / "tiny-0001"
        train(samples(), preset("tiny"), out=out, name="tiny-0001", version=1, seed=0, device="cpu")

    return made_once(tmp_path_factory, "encoders-version", make) / "tiny-0001"


@pytest.fixture(scope="session")
def model(version: Path) -> Model:
    return load(version, device="cpu")


@pytest.fixture(scope="session")
def manifest(model: Model) -> Manifest:
    return model.manifest
