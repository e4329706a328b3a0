"""An imported model on Apache Kafka: imported, promoted, served by a worker, searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from braid.index.client import Client
from braid.stream.kafka.schemas import decode_vector
from tests.encoders.joint_models import write_clip
from tests.encoders.test_importing import COSINE, cosines
from tests.encoders.test_importing_joint import PICTURES, seen
from tests.stream.harness import Deployment, wait_for
from tests.stream.worker.test_hot_swap import braid, searchable

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_clip_is_served_and_predicts_without_training(
    deployment: Deployment, tmp_path: Path
) -> None:
    write_clip(tmp_path / "clip")
    options = ["--classes", "kind=red bird,green branch", "--prompt", "a photo of {}"]
    options += ["--no-promote", "--json"]
    made = braid(
        deployment, "models", "import", str(tmp_path / "clip"), *options, "--no-promote", "--json"
    )
    assert (made["status"], made["modalities"]) == ("candidate", ["text", "image"])
    assert braid(deployment, "models", "promote", "1", "--json")["name"] == made["name"]
    worker, index = deployment.worker("one", model=None), deployment.index(model=None)
    deployment.produce({"id": name, "image": data} for name, data in PICTURES.items())
    with Client(deployment.url) as client:
        wait_for("all are searchable", lambda: searchable(client) == len(PICTURES), timeout=300)
        hits = client.search(image=PICTURES["1:3"], k=1)["hits"]
        assert hits[0]["id"] == "1:3"
        assert client.search(text="a red bird", k=3)["model"] == made["name"]
    rows = [decode_vector(message.value or b"") for message in deployment.vectors()]
    served = {row.id: row.by["image"] for row in rows}
    ours_BD = np.stack([served[name] for name in PICTURES])
    assert cosines(ours_BD, seen(tmp_path / "clip", list(PICTURES.values()))) >= COSINE
    assert {row.space for row in rows} == {made["space"]}
    predictions = deployment.predictions()
    assert {one["id"] for one in predictions} == set(PICTURES)
    for one in predictions:
        assert one["tasks"]["kind"]["label"] in ("red bird", "green branch")
        assert set(one["tasks"]["kind"]["by"]) == {"image", "fused"}
    assert worker.running
    assert index.running
    assert not deployment.read("dead-letters")
