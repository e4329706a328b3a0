"""Which device a process gets, alone and under `torchrun`."""

from __future__ import annotations

import pytest
import torch

from braid.encoders import TrainingError
from braid.encoders.training.parallel import own_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_alone_it_is_what_was_asked_for(gpus: pytest.MonkeyPatch) -> None:
    assert own_device(None) == torch.device("cuda")
    assert own_device("cuda:1") == torch.device("cuda", 1)
    assert own_device("cpu") == torch.device("cpu")
    gpus.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device(None) == torch.device("cpu")


def test_each_process_has_the_gpu_of_its_number(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in (0, 1):
        gpus.setenv("LOCAL_RANK", str(rank))
        assert own_device(None) == own_device("cuda") == torch.device("cuda", rank)
        assert own_device("cpu") == torch.device("cpu")


def test_processes_do_not_share_a_gpu(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("LOCAL_RANK", "0")
    gpus.setenv("LOCAL_WORLD_SIZE", "1")
    assert own_device("cuda:1") == torch.device("cuda", 1)
    gpus.setenv("LOCAL_RANK", "2")
    gpus.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match=r"started 3 processes .* it has 2 GPUs.* 'cpu'"):
        own_device(None)
    with pytest.raises(TrainingError, match="'cuda:1' is one GPU for 3 processes: say 'cuda'"):
        own_device("cuda:1")


def test_each_process_was_shown_its_own_gpu(gpus: pytest.MonkeyPatch) -> None:
    """`torchrun --virtual-local-rank`: one GPU is seen, and every process is the first."""
    gpus.setattr(torch.cuda, "device_count", lambda: 1)
    gpus.setenv("LOCAL_RANK", "0")
    gpus.setenv("LOCAL_WORLD_SIZE", "2")
    assert own_device(None) == torch.device("cuda", 0)
