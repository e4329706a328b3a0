"""A worker's memory does not grow with the records that it has processed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from confluent_kafka import Producer

from braid.stream.kafka.client import PARTITIONER
from braid.stream.kafka.schemas import pack
from tests.stream.harness import Deployment, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

GROWTH = 1.05  # of the resident size after the first half: 140 bytes for each record of the other


def send(deployment: Deployment, numbers: range) -> None:
    """Records, by a client that packs nothing else: quicker than the worker."""
    settings = deployment.settings
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "partitioner": PARTITIONER})
    for number in numbers:
        value = pack({"v": 1, "id": f"r{number}", "text": f"text {number}", "meta": {"n": number}})
        producer.produce(settings.topic("records"), key=f"r{number}", value=value)
        producer.poll(0)
    assert producer.flush(60) == 0


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("model", "records"), [("null:16", 100_000), ("tiny", 10_000)])
def test_the_resident_size_does_not_grow(
    deployment: Deployment, tiny_model: Path, tmp_path: Path, model: str, records: int
) -> None:
    profile = tmp_path / "trace.json"
    spec = str(tiny_model) if model == "tiny" else model
    # With a variable of Python's own it is not forked, and has the size of a user's worker.
    own = {"BRAID_WORKER__PROFILE": str(profile), "PYTHONUNBUFFERED": "1"}
    worker = deployment.worker("one", model=spec, **own)
    sizes = []
    for start in range(0, records, records // 10):  # as much waits in the client each time
        send(deployment, range(start, start + records // 10))
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=60, every=0.2)
        sizes.append(resident_bytes(worker.pid))
    # Before, threads that wait for each other on a busy machine spread the heap over more arenas.
    assert max(sizes[5:]) < GROWTH * sizes[4], sizes
    events = json.loads(profile.read_text().rstrip().rstrip(",") + "]")
    names = {event["name"] for event in events}
    assert {"decode", "prepare records", "collect wait", "encode batch", "transaction"} <= names
    assert (model == "tiny") == ("sub-batch text" in names)
