"""`POST /v1/search/batch`: each query has the answer that it has alone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from braid.index.errors import BadQuery
from braid.index.segments.live_store import LiveStore
from braid.index.service.app import Limits, QueryInput, QueryVectors, Serving
from braid.index.service.requests import MAX_BATCH
from tests.index.conftest import IDS, MAX_BODY, Node, serving
from tests.index.oracle import DIM, SPACE, unit, upsert
from tests.index.service.test_bad_queries import problem

PNG = base64.b64encode(b"\x89PNG a picture").decode()
QUERIES: list[dict[str, Any]] = [
    {"text": "a red bird", "k": 3},
    {"id": "r3", "k": 3},
    {"query": {"values": unit("q").tolist(), "space": SPACE}, "k": 3},
    {"text": "blue", "image": PNG, "k": 2, "vector": "image", "filter": {"lang": "de"}},
    {"text": "a red bird", "k": 3, "filter": {"lang": "fr"}},
]


class Counting(LiveStore):
    """Remembers how it was searched."""

    def __init__(self) -> None:
        super().__init__(space=SPACE, dim=DIM)
        self.searches: list[tuple[int, int, str]] = []

    def search(self, queries_BD: Any, **options: Any) -> Any:
        self.searches.append((len(queries_BD), options["k"], options["vector"]))
        return super().search(queries_BD, **options)


def ask(http: httpx.Client, queries: Sequence[Any]) -> list[dict[str, Any]]:
    answer = http.post("/v1/search/batch", json={"queries": queries})
    assert answer.status_code == 200, answer.text
    result: list[dict[str, Any]] = answer.json()["answers"]
    assert len(result) == len(queries)
    return result


def test_a_batch_is_answered_as_its_queries_alone_and_in_their_order(
    node: Node, http: httpx.Client
) -> None:
    for query, answers in zip(QUERIES, ask(http, QUERIES), strict=True):
        alone = http.post("/v1/search", json=query).json()
        np.testing.assert_allclose(
            [hit.pop("score") for hit in answers["hits"]],
            [hit.pop("score") for hit in alone["hits"]],
            atol=1e-6,
        )
        assert answers | {"took_ms": 0} == alone | {"took_ms": 0}
        assert answers["hits"]


def test_a_bad_query_spoils_no_other(node: Node, http: httpx.Client) -> None:
    bad: list[tuple[Any, int, str]] = [
        ({"text": "q", "k": 0}, 422, "k"),
        ({"id": "nobody"}, 404, "id"),
        ({"text": "q", "generation": "g0009"}, 404, "generation"),
        ({"query": {"values": [1.0] * DIM, "space": "s-other"}}, 409, "space"),
        ({"text": "q", "min_offsets": {"0": 99}, "timeout_ms": 0}, 412, "min_offsets"),
        ({"image": "aGk="}, 422, "image"),
        ({"text": "q", "filter": {"a": {"like": 1}}}, 422, "filter.a.like"),
        ("text", 422, "body"),
        ({}, 422, "body"),
    ]
    queries = [query for one, _, _ in bad for query in (one, {"id": "r1", "k": 1})]
    answers = ask(http, queries)
    assert all(answer["hits"][0]["id"] == "r1" for answer in answers[1::2])
    assert [(one["status"], one["error"]["field"]) for one in answers[::2]] == [
        (status, field) for _, status, field in bad
    ]
    assert all(one["error"]["reason"] for one in answers[::2])


def test_queries_that_agree_are_one_search(node: Node, http: httpx.Client) -> None:
    node.store = counting = Counting()
    node.store.apply(list(node.oracle.rows.values()), positions={}, progress={})
    ask(
        http,
        [
            {"id": "r1", "k": 5},
            {"text": "q", "k": 5},
            {"query": {"values": [1.0] * DIM, "space": SPACE}, "k": 5},
            {"id": "r1", "k": 5, "filter": {"lang": "de", "even": 1}},
            {"id": "r2", "k": 5, "filter": {"even": 1, "lang": "de"}},
            {"id": "r2", "k": 5, "filter": {"even": True, "lang": "de"}},
            {"id": "r2", "k": 6},
            {"id": "r2", "k": 5, "vector": "text"},
        ],
    )
    assert sorted(counting.searches) == sorted(
        [(3, 5, "fused"), (2, 5, "fused"), (1, 5, "fused"), (1, 6, "fused"), (1, 5, "text")]
    )


class Together(Node):
    """A node that embeds several queries at once."""

    calls: list[int]

    def serving(self, name: str | None) -> Serving:
        return Serving(
            generation="g0001", store=self.store, encode=self.encode, encode_many=self.encode_many
        )

    async def encode_many(self, queries: Sequence[QueryInput]) -> list[QueryVectors]:
        self.calls.append(len(queries))
        if any(query.text == "bad" for query in queries):
            raise BadQuery("text", "one of them is bad")
        return [await self.encode(query) for query in queries]

    async def encode(self, query: QueryInput) -> QueryVectors:
        if query.text == "bad":
            raise BadQuery("text", "is bad")
        return await super().encode(query)


def test_media_are_embedded_together_where_the_node_can() -> None:
    node = Together()
    node.reset()
    node.calls = []
    with serving(node) as (url, _), httpx.Client(base_url=url, timeout=20) as http:
        texts = ["one", "two", "three"]
        answers = ask(http, [{"text": text, "k": 4} for text in texts])
        assert node.calls == [3]
        for text, answer in zip(texts, answers, strict=True):
            expected = node.expected(unit(text, None, None), k=4)
            assert [hit["id"] for hit in answer["hits"]] == expected
        answers = ask(http, [{"text": text, "k": 1} for text in ("one", "bad", "three")])
        assert [("hits" in one, one.get("status")) for one in answers] == [
            (True, None),
            (False, 422),
            (True, None),
        ]
        ask(http, [{"text": "one"}, {"id": "r1"}])
        assert node.calls == [3, 3]  # a single one needs no company


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"queries": []}, "queries"),
        ({"queries": [{"id": "r1"}] * (MAX_BATCH + 1)}, "queries"),
        ({"queries": {"id": "r1"}}, "queries"),
        ({"query": []}, "queries"),
        ({"queries": [{"id": "r1"}], "k": 3}, "k"),
        ([], "body"),
    ],
)
def test_a_body_that_is_no_batch(http: httpx.Client, body: Any, field: str) -> None:
    assert problem(http.post("/v1/search/batch", json=body), 422)[0] == field


def test_the_largest_batch(node: Node, http: httpx.Client) -> None:
    ids = [IDS[number % len(IDS)] for number in range(MAX_BATCH)]
    answers = ask(http, [{"id": id_, "k": 1} for id_ in ids])
    assert [one["hits"][0]["id"] for one in answers] == ids


def test_a_batch_asks_for_so_many_hits_together(node: Node, http: httpx.Client) -> None:
    batch = {"queries": [{"id": "r1", "k": 1000}] * 10}
    assert http.post("/v1/search/batch", json=batch).status_code == 200
    batch["queries"].append({"id": "r1", "k": 1})
    field, why = problem(http.post("/v1/search/batch", json=batch), 422)
    assert field == "queries"
    assert "10001 hits" in why


def test_an_answer_has_a_limit(node: Node) -> None:
    meta = {"words": "x" * 5000}
    writes = [upsert(f"m{number}", 50 + number, meta=meta) for number in range(20)]
    node.store.apply(writes, positions={0: 70}, progress={0: 70})
    query = {"id": "m1", "k": 40}
    with (
        serving(node, limits=Limits(body_bytes=MAX_BODY, answer_bytes=50_000)) as (url, _),
        httpx.Client(base_url=url, timeout=20) as http,
    ):
        assert problem(http.post("/v1/search", json=query), 422)[0] == "k"
        assert problem(http.post("/v1/search/batch", json={"queries": [query]}), 422)[0] == "k"
        assert http.post("/v1/search", json={"id": "m1", "k": 5}).status_code == 200
