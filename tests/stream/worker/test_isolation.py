"""Decoding processes of a real worker: killed, they lose no record; they end with their worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.stream.conftest import coloured
from tests.stream.harness import Deployment, assigned, wait_for

pytestmark = pytest.mark.kafka


def decoders(worker: int) -> set[int]:
    """The decoding processes of a worker, from its threads' children."""
    pids = set()
    for task in Path(f"/proc/{worker}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"braid.encoders.decoding.isolation" in Path(f"/proc/{child}/cmdline").read_bytes():
                pids.add(int(child))
    return pids


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_decoders_lose_no_record_and_end_with_their_worker(
    deployment: Deployment, tiny_model: Path
) -> None:
    def send(start: int, end: int) -> None:
        samples = [coloured(number) for number in range(start, end)]
        deployment.produce(
            {"id": sample.id, "image": sample.image, "audio": sample.audio} for sample in samples
        )

    def predicted() -> set[str]:
        return {prediction["id"] for prediction in deployment.predictions()}

    worker = deployment.worker("w1", model=str(tiny_model))
    wait_for("partitions", lambda: bool(assigned(worker)), timeout=120)
    send(0, 20)
    wait_for("the first 20", lambda: len(predicted()) == 20, timeout=120)
    first = decoders(worker.pid)
    assert first
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    send(20, 60)
    wait_for("all 60", lambda: len(predicted()) == 60, timeout=120)
    assert deployment.read("dead-letters") == []
    second = decoders(worker.pid)
    assert second
    assert not second & first
    worker.send(signal.SIGKILL)
    wait_for("no decoder is left", lambda: not any(map(running, second)), timeout=60)
