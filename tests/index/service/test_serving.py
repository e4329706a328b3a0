"""Several generations behind one service: one generation answers each query."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import httpx
import numpy as np
import pytest

from braid.index.client import Client
from braid.index.errors import BadQuery, BraidIndexError, UnknownGeneration
from braid.index.responses import SearchAnswer
from braid.index.segments.live_store import LiveStore
from braid.index.service.app import QueryInput, QueryVectors, Serving
from tests.index.conftest import Node, serving
from tests.index.oracle import upsert
from tests.index.service.test_bad_queries import problem

DIMS = {"g0001": 8, "g0002": 5}


@dataclass
class Generations(Node):
    """Two generations of different dimensions; `alias` may be moved at any time."""

    alias: str = "g0001"
    stores: dict[str, LiveStore] = field(default_factory=dict)

    def fill(self) -> None:
        for name, dim in DIMS.items():
            store = LiveStore(space=f"s-{name}", dim=dim)
            rows = [
                upsert(f"{name}-{number}", number, by=[], model=f"m-{name}") for number in range(9)
            ]
            cut = [replace(row, fused=row.fused[:dim]) for row in rows]
            store.apply(cut, positions={}, progress={0: dim})
            self.stores[name] = store

    def serving(self, name: str | None) -> Serving:
        chosen = self.alias if name is None else name
        if chosen not in self.stores:
            raise UnknownGeneration(chosen, self.stores)

        async def encode(query: QueryInput) -> QueryVectors:
            vector_D = np.ones(DIMS[chosen], np.float32) / np.sqrt(np.float32(DIMS[chosen]))
            return QueryVectors(fused=vector_D, by={}, space=f"s-{chosen}", model=f"q-{chosen}")

        return Serving(
            generation=chosen, store=self.stores[chosen], encode=encode, model=f"q-{chosen}"
        )


@pytest.fixture
def two() -> Iterator[tuple[Generations, Client, httpx.Client]]:
    node = Generations()
    node.fill()
    with (
        serving(node, generations=lambda: [*node.stores, "g-dropped-just-now"]) as (url, _),
        Client(url) as client,
        httpx.Client(base_url=url, timeout=20) as http,
    ):
        yield node, client, http


def assert_of(answer: SearchAnswer | BraidIndexError, name: str) -> None:
    """All that an answer says belongs to one generation."""
    assert isinstance(answer, SearchAnswer)
    assert answer.generation == name
    assert answer.space == f"s-{name}"
    assert answer.model in (f"q-{name}", f"m-{name}", None)
    assert answer.as_of == {"0": DIMS[name]}
    assert answer.hits
    assert all(hit.id.startswith(name) for hit in answer.hits)
    assert all(hit.model == f"m-{name}" for hit in answer.hits)


def test_a_query_may_name_its_generation(two: tuple[Generations, Client, httpx.Client]) -> None:
    node, client, _ = two
    assert_of(client.search(text="q"), "g0001")
    for name, dim in DIMS.items():
        assert_of(client.search(text="q", generation=name), name)
        assert_of(client.search(text="q", image=b"\x89PNG", generation=name), name)
        assert_of(client.search(id=f"{name}-3", generation=name), name)
        values, space = [1.0] * dim, f"s-{name}"
        assert_of(client.search(values=values, space=space, generation=name), name)
        record = client.get(f"{name}-3", generation=name)
        assert (record.generation, record.space) == (name, space)
        assert len(record.vectors["fused"]) == dim
    node.alias = "g0002"
    assert_of(client.search(text="q"), "g0002")
    answers = client.search_many([{"text": "q"}, {"text": "q", "generation": "g0001"}])
    assert_of(answers[0], "g0002")
    assert_of(answers[1], "g0001")


def test_an_unknown_generation_is_refused_with_those_there_are(
    two: tuple[Generations, Client, httpx.Client],
) -> None:
    _, client, http = two
    for call in (
        lambda: client.search(text="q", generation="g0009"),
        lambda: client.get("g0001-3", generation="g0009"),
    ):
        with pytest.raises(BadQuery, match="g0001, g0002") as caught:
            call()
        assert (caught.value.field, caught.value.status) == ("generation", 404)
    with pytest.raises(BadQuery) as caught:
        client.search(values=[1.0] * 8, space="s-g0001", generation="g0002")
    assert caught.value.status == 409
    with pytest.raises(BadQuery) as caught:
        client.search(id="g0001-3", generation="g0002")
    assert (caught.value.field, caught.value.status) == ("id", 404)
    for wrong in ("", "g" * 65, 7):
        answer = http.post("/v1/search", json={"text": "q", "generation": wrong})
        assert problem(answer, 422)[0] == "generation"


def test_the_generations_are_listed(two: tuple[Generations, Client, httpx.Client]) -> None:
    node, client, _ = two
    node.alias = "g0002"
    assert client.generations().model_dump() == {
        "serving": "g0002",
        "generations": [
            {
                "name": name,
                "space": f"s-{name}",
                "dim": dim,
                "records": 9,
                "model": f"q-{name}",
                "exact": True,
            }
            for name, dim in DIMS.items()
        ],
    }


def test_no_answer_mixes_two_generations_while_the_alias_moves(
    two: tuple[Generations, Client, httpx.Client],
) -> None:
    node, client, http = two
    done = threading.Event()

    def move() -> None:
        while not done.is_set():
            node.alias = "g0002" if node.alias == "g0001" else "g0001"
            done.wait(0.0005)

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        try:
            for _ in range(60):
                answer = client.search(text="q", k=3)
                seen.add(answer.generation)
                assert_of(answer, answer.generation)
                both = http.post("/v1/search/batch", json={"queries": [{"text": "q"}] * 2}).json()
                assert len({one["generation"] for one in both["answers"]}) == 1
        finally:
            done.set()
            moving.result()
    assert seen == set(DIMS)


class Rough(LiveStore):
    """A store that says that it may miss the best."""

    @property
    def exact(self) -> bool:
        return False


def test_exact_is_what_the_store_says(two: tuple[Generations, Client, httpx.Client]) -> None:
    node, client, _ = two
    assert client.search(text="q").exact is True
    rough = Rough(space="s-g0001", dim=8)
    node.stores["g0001"] = rough
    assert client.search(text="q").exact is False
    listed = client.generations().generations
    assert [one.exact for one in listed] == [False, True]


def test_a_generation_without_a_model_takes_vectors_and_ids(
    two: tuple[Generations, Client, httpx.Client],
) -> None:
    node, _, _ = two
    store = node.stores["g0001"]

    class Bare(Generations):
        def serving(self, name: str | None) -> Serving:
            return Serving(generation="g0001", store=store)

    with serving(Bare()) as (url, _), httpx.Client(base_url=url, timeout=20) as bare:
        assert bare.post("/v1/search", json={"id": "g0001-1"}).status_code == 200
        assert problem(bare.post("/v1/search", json={"text": "q"}), 501)[0] == "body"
        assert bare.get("/v1/generations").json()["generations"][0]["model"] is None
