"""An imported model on Apache Kafka: served, searched, trained further, and replaced."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from braid.index.client import Client
from braid.stream.kafka.schemas import decode_vector
from tests.encoders.joint_models import write_clip
from tests.encoders.test_importing import COSINE, cosines
from tests.encoders.test_importing_joint import PICTURES, seen
from tests.encoders.test_video import filmed
from tests.stream.harness import Deployment, wait_for
from tests.stream.worker.test_hot_swap import braid, labelled, searchable

JUDGED = ("candidate", "refused", "not enough evidence")
pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_clip_is_served_and_predicts_without_training(
    deployment: Deployment, tmp_path: Path
) -> None:
    write_clip(tmp_path / "clip")
    options = ["--classes", "kind=red bird,green branch", "--prompt", "a photo of {}"]
    options += ["--no-promote", "--json"]
    made = braid(deployment, "models", "import", str(tmp_path / "clip"), *options)
    assert (made["status"], made["modalities"]) == ("candidate", ["text", "image"])
    assert braid(deployment, "models", "promote", "1", "--json")["name"] == made["name"]
    worker, index = deployment.worker("one", model=None), deployment.index(model=None)
    deployment.produce({"id": name, "image": data} for name, data in PICTURES.items())
    with Client(deployment.url) as client:
        wait_for("all are searchable", lambda: searchable(client) == len(PICTURES), timeout=300)
        hits = client.search(image=PICTURES["1:3"], k=1).hits
        assert hits[0].id == "1:3"
        assert client.search(text="a red bird", k=3).model == made["name"]
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            embedded(deployment.url, [as_part(b"a film")])
        assert refused.value.response.json()["error"] == {
            "field": "input[0]",
            "reason": f"video: {made['name']} takes text and image only",
        }
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


def test_videos_are_found_by_text_and_a_bad_one_is_a_dead_letter(
    deployment: Deployment, tmp_path: Path
) -> None:
    write_clip(tmp_path / "clip")
    made = braid(deployment, "models", "import", str(tmp_path / "clip"), "--video", "--json")
    assert made["modalities"] == ["text", "image", "video"]
    worker, index = deployment.worker("one", model=None), deployment.index(model=None)
    film = filmed()
    deployment.produce([{"id": "film", "video": film}, {"id": "bad", "video": film[:900]}])
    with Client(deployment.url) as client:
        wait_for("it is searchable", lambda: searchable(client) == 1, timeout=300)
        (hit,) = client.search(text="a red bird", vector="video").hits
        assert (hit.id, hit.modalities) == ("film", ["video"])
        (same,) = client.search(video=film).hits
        assert same.score == pytest.approx(1.0, abs=1e-5)
        record_D, words_D = embedded(deployment.url, [as_part(film), "a red bird"])
        np.testing.assert_allclose(record_D, client.get("film").vectors["fused"], atol=1e-5)
        assert record_D @ words_D == pytest.approx(hit.score, abs=1e-5)
        assert client.status().modalities == made["modalities"]
    wait_for("the bad one is refused", lambda: bool(deployment.read("dead-letters")), timeout=60)
    (letter,) = deployment.read("dead-letters")
    headers = dict(letter.headers)
    assert (letter.key, headers["field"]) == (b"bad", b"video")
    assert b"does not decode" in (headers["reason"] or b"")
    assert worker.running
    assert index.running


def test_labels_train_its_heads_and_a_wider_model_replaces_it(
    deployment: Deployment, tmp_path: Path
) -> None:
    write_clip(tmp_path / "clip")
    records = [
        {name: value for name, value in record.items() if name != "audio"}
        for record in labelled(100)
    ]
    colours = ",".join(sorted({record["labels"]["colour"] for record in records}))
    options = ["--classes", f"colour={colours}", "--prompt", "a {} tile", "--json"]
    first = braid(deployment, "models", "import", str(tmp_path / "clip"), *options)
    assert first["champion"] is True
    worker, index = deployment.worker("one", model=None), deployment.index(model=None)
    deployment.produce(records[:80])
    with Client(deployment.url) as client:
        wait_for("all are searchable", lambda: searchable(client) == 80, timeout=90)
        assert predicted_by(deployment) == {first["name"]: 80}  # before anything was trained

        heads = braid(deployment, "retrain", "--heads-only", "--json")
        assert (heads["parent"], heads["space"]) == (first["name"], first["space"])
        assert heads["status"] in JUDGED
        braid(deployment, "models", "promote", heads["name"], "--force", "--json")
        wait_for("it serves", lambda: client.status().model == heads["name"], timeout=60)
        assert searchable(client) == 80  # nothing is embedded anew
        deployment.produce(records[80:])
        wait_for("the rest is predicted", lambda: len(deployment.predictions()) == 100, timeout=60)
        assert predicted_by(deployment) == {first["name"]: 80, heads["name"]: 20}

        wide = braid(deployment, "retrain", "--preset", "tiny", "--json")
        assert (wide["parent"], wide["status"] in JUDGED) == (None, True)
        compared = braid(deployment, "models", "judge", first["name"], wide["name"], "--json")
        assert compared["records"] + compared["learnt"] == 100 == compared["embed_hours"]["records"]
        assert (compared["unlike"], compared["learnt_unknown"]) == (["audio"], [])
        entry = braid(deployment, "models", "promote", wide["name"], "--force", "--json")
        assert entry["state"] == "building"
        wait_for("it flips", lambda: client.status().model == wide["name"], timeout=120)
        assert searchable(client) == 100
        assert client.search(text="a red tile", k=1).space == wide["space"] != first["space"]
    assert predicted_by(deployment) == {first["name"]: 80, heads["name"]: 20}
    assert worker.running
    assert index.running
    assert not deployment.read("dead-letters")


def as_part(film: bytes) -> dict[str, Any]:
    """A film as a content part."""
    url = "data:video/mp4;base64," + base64.b64encode(film).decode()
    return {"type": "video_url", "video_url": {"url": url}}


def embedded(url: str, inputs: Any) -> list[np.ndarray]:
    """The vectors that OpenAI's own client gets, float32[D] each."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="champion", input=inputs)
    return [np.asarray(one.embedding, dtype=np.float32) for one in answer.data]


def predicted_by(deployment: Deployment) -> dict[str, int]:
    """Version -> the predictions that it made."""
    return dict(Counter(one["model"] for one in deployment.predictions()))
