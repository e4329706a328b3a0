"""The query service over HTTP: valid calls."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from braid.index.client import Client
from braid.index.errors import BadQuery, ServiceError
from braid.index.payloads import Payload, Payloads
from braid.index.responses import DeleteAnswer, SearchAnswer
from braid.index.service.app import QueryInput
from braid.modalities import MODALITIES
from tests.index.conftest import IDS, Node, serving
from tests.index.oracle import DIM, SPACE, unit, upsert
from tests.index.service.test_bad_queries import problem

PNG = b"\x89PNG a picture"


def ids(answer: SearchAnswer) -> list[str]:
    return [hit.id for hit in answer.hits]


def test_a_text_is_embedded_and_its_neighbours_come_best_first(node: Node, client: Client) -> None:
    answer = client.search(text="a red bird", k=7)
    query_D = unit("a red bird", None, None)
    expected = node.oracle.search(query_D, k=7)
    assert ids(answer) == [id_ for id_, _ in expected]
    scores = answer.to_numpy()
    np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-5)
    assert node.asked == [QueryInput(text="a red bird")]
    first = answer.hits[0]
    row = node.oracle.rows[first.id]
    assert first.model_dump(exclude_unset=True) | {"score": 0} == {
        "id": row.id,
        "score": 0,
        "text": None,
        "uri": None,
        "meta": row.meta,
        "model": "m-1",
        "version": row.version,
        "partition": 0,
        "labels": None,
        "predicted": None,
        "ts": row.ts,
        "modalities": ["image", "text"],
        "matched": max(row.by, key=lambda name: float(row.by[name] @ query_D)),
    }
    assert answer.model == "m-query"
    assert (answer.space, answer.generation) == (SPACE, "g0001")
    assert answer.as_of == {"0": 30, "1": 5}
    assert answer.exact is True
    assert answer.payloads == "unavailable"
    assert answer.took_ms >= 0


def test_picture_and_sound_reach_the_model_as_bytes(
    node: Node, client: Client, tmp_path: Path
) -> None:
    sound = tmp_path / "bird.wav"
    sound.write_bytes(b"RIFF\x00\xff")
    answer = client.search(text="with", image=PNG, audio=sound, vector="image", k=3)
    assert node.asked == [QueryInput(text="with", image=PNG, audio=b"RIFF\x00\xff")]
    query_D = unit("with", PNG, b"RIFF\x00\xff")
    assert ids(answer) == node.expected(query_D, k=3, vector="image")


def test_a_raw_vector_is_made_unit_and_needs_no_model(node: Node, client: Client) -> None:
    query_D = unit("raw")
    answer = client.search(values=(query_D * 1e30).tolist(), space=SPACE, k=5, vector="text")
    assert ids(answer) == node.expected(query_D, k=5, vector="text")
    assert answer.model is None
    assert node.asked == []
    for scale in (1e-300, 1e300, 5.0):
        values = [float(value) * scale for value in query_D]
        again = client.search(values=values, space=SPACE, k=5, vector="text")
        assert ids(again) == ids(answer)
        for hit, other in zip(again.hits, answer.hits, strict=True):
            assert hit.score == pytest.approx(other.score, abs=1e-5)
    client.search(values=[1] + [0] * (DIM - 1), space=SPACE)  # whole numbers are numbers


def test_a_records_id_asks_with_its_vector(node: Node, client: Client) -> None:
    row = node.oracle.rows["r3"]
    answer = client.search(id="r3", k=4)
    assert ids(answer) == node.expected(row.fused, k=4)
    assert ids(answer)[0] == "r3"
    assert answer.model == "m-1"
    answer = client.search(id="r3", k=4, vector="text")
    assert ids(answer) == node.expected(row.by["text"], k=4, vector="text")


def test_a_filter_on_meta_and_the_largest_k(node: Node, client: Client) -> None:
    query_D = unit("q", None, None)
    wanted = {"lang": "de", "number": {"gte": 5}}
    answer = client.search(text="q", k=1000, filter=wanted)
    assert ids(answer) == node.expected(query_D, k=1000, filter=wanted)
    assert 0 < len(answer.hits) < len(IDS)
    assert client.search(text="q", filter={"lang": "xx"}).hits == []
    assert ids(client.search(text="q", vector="audio")) == []


def test_offsets_that_are_reached_and_those_that_come_while_waiting(
    node: Node, client: Client
) -> None:
    assert client.search(text="q", min_offsets={0: 30, 1: 5}).as_of == {"0": 30, "1": 5}
    new = upsert("new", 50, by=[])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            lambda: client.search(id="new", k=1, min_offsets={0: 51}, timeout_ms=15_000)
        )
        threading.Event().wait(0.05)
        node.store.apply([new], positions={0: 41}, progress={0: 51})
        answer = waiting.result()
    assert ids(answer) == ["new"]
    assert answer.as_of["0"] == 51


def test_a_record_as_the_index_holds_it(node: Node, client: Client) -> None:
    record = client.get("r4")
    row = node.oracle.rows["r4"]
    assert (record.id, record.version, record.partition) == ("r4", 4, 0)
    assert (record.ts, record.model, record.space) == (4, "m-1", SPACE)
    assert record.meta == row.meta
    assert set(record.vectors) == {"fused", "text", "image"}
    np.testing.assert_array_equal(record.to_numpy()["text"], row.by["text"])


@pytest.mark.redis
def test_no_answer_holds_a_path_of_the_producers_machine(node: Node, valkey: str) -> None:
    payloads = Payloads(valkey)
    uri = {"image": "FILE:///tmp/r4.png", "audio": "https://a.example/r4.wav"}
    payloads.put_many({"r4": Payload(text="four", uri=uri)})
    with serving(node, payloads=payloads) as (url, _), Client(url) as client:
        hit = client.search(id="r4", k=1).hits[0]
        record = client.get("r4")
        live = httpx.get(f"{url}/v1/shown", params={"id": "r4"}).json()
    for answer in (hit.model_dump(), record.model_dump(), live):
        assert answer["text"] == "four"
        assert answer["uri"] == {"audio": "https://a.example/r4.wav"}


@pytest.mark.parametrize(
    "id",
    ["a/b", "/a//b/", "..", ".", "a/../b", "ü ☃", "a?b#c%2F", "a+b&c", "%", "a\nb\n", "x" * 256],
)
def test_any_id_can_be_got_searched_and_deleted(node: Node, client: Client, id: str) -> None:
    node.store.apply([upsert(id, 99)], positions={}, progress={})
    assert client.get(id).id == id
    assert ids(client.search(id=id, k=1)) == [id]
    assert client.delete(id) == DeleteAnswer(id=id, partition=1, offset=42)
    assert node.deleted == [id]


def test_a_deletion_is_asked_for_not_done(node: Node, http: httpx.Client) -> None:
    answer = http.delete("/v1/records/r1")
    assert answer.status_code == 202
    assert answer.json() == {"id": "r1", "partition": 1, "offset": 42}
    assert node.store.get("r1") is not None


def test_status_health_and_readiness(node: Node, client: Client, http: httpx.Client) -> None:
    status = client.status()
    assert status.modalities == list(MODALITIES)
    assert status.records == len(IDS)
    assert status.positions == {"0": 40, "1": 2}
    assert status.progress == {"0": 30, "1": 5}
    assert (status.space, status.dim, status.generation) == (SPACE, DIM, "g0001")
    assert (status.ready, status.lag, status.payloads) == (True, {"0": 0}, False)
    assert http.get("/healthz").json() == {"ok": True}
    assert client.ready()
    node.not_ready = "still reading"
    assert not client.ready()
    answer = http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "reason": "still reading"}
    assert client.status().ready is False
    assert http.get("/healthz").status_code == 200


def test_metrics_are_prometheus_text(node: Node, client: Client, http: httpx.Client) -> None:
    def read() -> dict[str, float]:
        answer = http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(answer.text)
        return {
            sample.name + sample.labels.get("kind", ""): sample.value
            for family in families
            for sample in family.samples
        }

    before = read()
    asked: list[tuple[str, dict[str, Any]]] = [
        ("text", {"text": "q"}),
        ("image", {"image": PNG}),
        ("composed", {"text": "q", "image": PNG}),
        ("id", {"id": "r1"}),
        ("query", {"values": [1.0] * DIM, "space": SPACE}),
    ]
    for _, query in asked:
        client.search(**query)
    after = read()
    assert after["braid_index_records"] == len(IDS)
    for kind, _ in asked:
        name = f"braid_search_seconds_count{kind}"
        assert after[name] == before[name] + 1
    assert after["braid_searches_in_flight"] == after["braid_searches_waiting"] == 0


@pytest.mark.slow
def test_many_ask_at_once(node: Node) -> None:
    def ask(number: int) -> None:
        with Client(node.url) as client:
            answer = client.search(text=f"q{number}", k=5)
        assert ids(answer) == node.expected(unit(f"q{number}", None, None), k=5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))


def test_what_breaks_inside_is_a_500_in_json(
    node: Node, client: Client, http: httpx.Client
) -> None:
    node.broken = RuntimeError("a secret of the model")
    with pytest.raises(ServiceError) as caught:
        client.search(text="q")
    assert caught.value.status == 500
    assert "RuntimeError" in str(caught.value)
    assert "secret" not in str(caught.value)
    answer = http.post("/v1/search", json={"text": "q"})
    assert answer.headers["connection"] == "close"
    node.broken = None
    assert client.search(text="q").hits


def test_the_client_without_a_service_or_with_another() -> None:
    with Client("http://127.0.0.1:1") as nobody:
        assert not nobody.ready()
        with pytest.raises(ServiceError) as caught:
            nobody.status()
        assert caught.value.status == 0
    with pytest.raises(ServiceError):
        Client("http://host:port")


def test_the_client_refuses_what_json_cannot_hold(client: Client) -> None:
    with pytest.raises(BadQuery):
        client.search(values=[float("nan")] * DIM, space=SPACE)
    with pytest.raises(BadQuery):
        client.search(text="\ud800")


def test_base64_is_what_the_service_takes(node: Node, http: httpx.Client) -> None:
    body = {"image": base64.b64encode(PNG).decode()}
    assert http.post("/v1/search", json=body).status_code == 200
    assert node.asked == [QueryInput(image=PNG)]


def test_a_record_is_waited_for(node: Node, http: httpx.Client) -> None:
    """As a search: right after its acknowledgement a record is not there yet."""
    assert http.get("/v1/records/late").status_code == 404
    answer = http.get("/v1/records/late", params={"min_offsets": "0:31", "timeout_ms": 20})
    assert problem(answer, 412)[0] == "min_offsets"
    assert answer.headers["retry-after"] == "1"
    with ThreadPoolExecutor(1) as pool, Client(node.url) as client:
        asked = pool.submit(client.get, "late", min_offsets={0: 31, 1: 5}, timeout_ms=20_000)
        threading.Event().wait(0.1)
        assert not asked.done()
        node.store.apply([upsert("late", 30)], positions={0: 41}, progress={0: 31})
        assert asked.result().id == "late"
        assert client.delete("late", min_offsets={0: 31}).id == "late"
    for wrong in ("0", "0:-1", "a:1", "0:1,", "0:1;1:2", "1" * 10 + ":1", "0:" + "1" * 19):
        answer = http.get("/v1/records/late", params={"min_offsets": wrong})
        assert problem(answer, 422)[0].endswith("min_offsets")
