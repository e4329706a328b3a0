"""Generations and their alias in Milvus, addresses, and servers that fail."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from braid.index.errors import StoreError
from braid.index.milvus.client import connect
from braid.index.milvus.collections import MilvusGenerations
from braid.index.milvus.store import MilvusStore
from braid.index.store import Delete, Upsert
from braid.stream.local.child import start_server
from tests.index.conftest import Node, serving
from tests.index.lite import fresh, need_lite, opened, put
from tests.index.oracle import DIM, NAMES, SPACE, Oracle, assert_same, unit, upsert

IDS = ["a", 'a"b\\', "é"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with opened(tmp_path_factory.mktemp("milvus") / "generations.db") as opened_client:
        yield opened_client


def test_generations_are_collections_and_the_alias_flips(client: Any) -> None:
    generations = MilvusGenerations(client, prefix="flip-")
    make: dict[str, Any] = {"dim": DIM, "names": NAMES[1:]}
    one = generations.open("g0001", space="s-1", **make)
    two = generations.open("g0002", space="s-2", **make)
    assert one.collection != two.collection
    assert generations.serving() is None
    put(one, upsert("old", 1))
    put(two, upsert("new", 1))

    generations.flip(one.collection)
    reader = MilvusStore(client, generations.alias)
    assert reader.space == "s-1"
    assert [hit.id for hit in reader.search(unit("q")[None], k=5)[0]] == ["old"]
    generations.flip(two.collection)
    assert generations.serving() == two.collection
    assert [hit.id for hit in reader.search(unit("q")[None], k=5)[0]] == ["new"]
    generations.flip(one.collection)  # a rollback
    assert [hit.id for hit in reader.search(unit("q")[None], k=5)[0]] == ["old"]

    with pytest.raises(StoreError, match="flip"):
        generations.drop(one.collection)
    generations.drop(two.collection)
    generations.drop(two.collection)
    assert generations.names() == [one.collection]
    with pytest.raises(StoreError, match="begin with"):
        MilvusGenerations(client, prefix="other").drop(one.collection)
    assert len(one) == 1


def test_deployments_do_not_meet(client: Any) -> None:
    make: dict[str, Any] = {"space": SPACE, "dim": DIM, "names": NAMES[1:]}
    stores = [
        MilvusGenerations(client, prefix=prefix).open("g0001", **make)
        for prefix in ("a-", "a_", "a.", "")
    ]
    assert len({store.collection for store in stores}) == 4
    put(stores[0], upsert("a", 1))
    assert [len(store) for store in stores] == [1, 0, 0, 0]


def test_a_collection_of_another_shape_is_refused(client: Any) -> None:
    generations = MilvusGenerations(client, prefix="shape")
    generations.open("g0001", space=SPACE, dim=DIM, names=["text"])
    generations.open("g0001", space=SPACE, dim=DIM, names=["text"])
    with pytest.raises(StoreError, match="16 for text"):
        generations.open("g0001", space=SPACE, dim=16, names=["text"])
    with pytest.raises(StoreError, match="image"):
        generations.open("g0001", space=SPACE, dim=DIM, names=["image"])
    with pytest.raises(ValueError, match="limit is 9"):
        generations.open("g0002", space=SPACE, dim=DIM, names=[*"abcdefghij"])


@pytest.mark.parametrize("step", ["create_index", "load_collection", "upsert"])
def test_a_crash_while_a_collection_is_made_is_repaired(client: Any, step: str) -> None:
    class Dying:
        def __getattr__(self, name: str) -> Any:
            if name == step:
                raise KeyboardInterrupt
            return getattr(client, name)

    make: dict[str, Any] = {"space": SPACE, "dim": DIM, "names": NAMES[1:]}
    with pytest.raises(KeyboardInterrupt):
        MilvusGenerations(Dying(), prefix=f"dying_{step}").open("g0001", **make)
    store = MilvusGenerations(client, prefix=f"dying_{step}").open("g0001", **make)
    put(store, upsert("a", 1))
    assert len(MilvusGenerations(client, prefix=f"dying_{step}").open("g0001", **make)) == 1


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:1", "127.0.0.1:1"),
        ("nonsense", "illegal"),
        ("no/such/folder/x.db", "no/such/folder"),
    ],
)
def test_a_wrong_address_is_said(uri: str, reason: str) -> None:
    need_lite()
    with pytest.raises(StoreError, match=reason):
        connect(uri, timeout_s=0.5)


@pytest.mark.parametrize(
    ("missing", "uri", "extra"),
    [("pymilvus", "http://127.0.0.1:1", "milvus"), ("milvus_lite", "a.db", "milvus-lite")],
)
def test_what_is_not_installed_is_said_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, missing: str, uri: str, extra: str
) -> None:
    need_lite()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(StoreError, match=rf"{missing} is not installed: .*\[{extra}\]"):
        connect(uri, timeout_s=0.5)


def test_a_lost_server_is_an_error_of_ours(tmp_path: Path) -> None:
    with opened(tmp_path / "lite.db") as client:
        lost = fresh(client)
        lost._timeout_s = 1
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(str(tmp_path / "lite.db"))
        with pytest.raises(StoreError, match="searching"):
            lost.search(unit("q")[None], k=1)
        with pytest.raises(StoreError, match="reading"):
            put(lost, upsert("a", 1))
        node = Node(store=lost)  # type: ignore[arg-type]
        query = {"query": {"values": unit("q").tolist(), "space": SPACE}}
        with serving(node) as (url, _), httpx.Client(base_url=url) as http:
            for answer in (
                http.post("/v1/search", json=query),
                http.post("/v1/search", json={"id": "a"}),
                http.get("/v1/records/a"),
                http.get("/v1/status"),
            ):
                assert answer.status_code == 503
                assert answer.json()["error"]["field"] == "store"
                assert answer.headers["retry-after"] == "1"
                assert "127.0.0.1" not in answer.text
            assert http.get("/healthz").status_code == 200


@pytest.mark.slow
def test_a_server_by_address_that_is_killed_has_all_that_it_answered_for(tmp_path: Path) -> None:
    """Lite's own server, over gRPC: the calls are those that a Milvus cluster gets."""
    need_lite()
    lite = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(tmp_path / "data")]
    child, port = start_server(
        "milvus",
        lambda port: [*lite, "--host", "127.0.0.1", "--port", str(port)],
        log=tmp_path / "log",
    )
    oracle = Oracle()
    try:
        client = connect(f"http://127.0.0.1:{port}", token="someone:secret")
        store = fresh(client, "server_")
        MilvusGenerations(client, prefix="server_").flip(store.collection)
        batch: list[Upsert | Delete] = [upsert(id_, 1) for id_ in IDS]
        oracle.apply(batch)
        store.apply(batch, positions={0: 20}, progress={0: 2})
        child.send(signal.SIGKILL)
        child.wait(10)
        with pytest.raises(StoreError):
            MilvusStore(client, store.collection, timeout_s=1)
        client.close()
        child, _ = start_server(
            "milvus",
            lambda port: [*lite, "--host", "127.0.0.1", "--port", str(port)],
            log=tmp_path / "log",
            port=port,
        )
        client = connect(f"http://127.0.0.1:{port}", token="someone:secret")
        store = fresh(client, "server_")
        assert store.positions == {0: 20}
        assert MilvusGenerations(client, prefix="server_").serving() == store.collection
        assert_same(store, oracle)
        client.close()
    finally:
        child.stop(grace=0)
