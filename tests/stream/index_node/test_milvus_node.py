"""The index node on Milvus: your own writes, deletions, and a restart from the offsets there."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from braid.encoders.model.null import NullModel
from braid.index.client import Client
from braid.stream.errors import ConfigError
from braid.stream.index_node.milvus_store import MilvusBackedStore
from braid.stream.settings import Settings
from tests.index.lite import need_lite
from tests.stream.harness import Deployment, wait_for
from tests.stream.index_node.test_index_node import searchable, send
from tests.stream.oracle import check_index


@pytest.mark.kafka
def test_a_node_that_is_killed_reads_on_from_the_offsets_in_milvus(
    kafka: str, tmp_path: Path
) -> None:
    need_lite()
    uri = str(tmp_path / "milvus.db")
    sent = {f"r{number}": f"text {number}" for number in range(150)}
    with Deployment(kafka, tmp_path, index={"store": "milvus"}, milvus={"uri": uri}) as deployment:
        deployment.worker("one")
        index = deployment.index()
        deployment.produce([{"id": id_, "text": text} for id_, text in sent.items()])
        with Client(deployment.url) as client:
            wait_for("all are searchable", lambda: searchable(client) == 150, timeout=60)
            partition, offset = asyncio.run(
                send(deployment, id="mine", text="my own words", meta={"lang": "en"})
            )
            answer = client.search(
                text="my own words",
                k=5,
                filter={"lang": "en"},
                min_offsets={partition: offset + 1},
                timeout_ms=10_000,
            )
            assert [hit.id for hit in answer.hits] == ["mine"]
            gone = client.delete("mine")
            wait = {gone.partition: gone.offset + 1}
            answer = client.search(text="my own words", k=5, min_offsets=wait, timeout_ms=10_000)
            assert "mine" not in {hit.id for hit in answer.hits}
            before = client.status()
            assert before.dead == 1

            index.send(signal.SIGKILL)
            index.wait(10)
            index.start()
            wait_for("it is back", lambda: searchable(client) == 150, timeout=60)
            after = client.status()
            assert after.positions == before.positions
            # Had it read anything again, those writes would have lost against themselves.
            assert after.ignored == 0
            assert after.rebuilt is None
            assert "holds 150 records; reading on from {" in index.tail(50)
            assert not deployment.settings.index_dir(
                deployment.settings.generation
            ).exists()  # no snapshot of ours

            deployment.produce([{"id": "late", "text": "a late one"}])
            sent["late"] = "a late one"
            wait_for("it reads on", lambda: searchable(client) == 151, timeout=60)
            assert check_index(client, sent, ["text 7", "something else"], k=10) == 20


def test_milvus_without_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"milvus\.uri"):
        MilvusBackedStore(
            Settings(home=tmp_path, index={"store": "milvus"}), "g0001", NullModel(16)
        )


def test_the_token_is_not_shown(tmp_path: Path) -> None:
    assert "hunter2" not in repr(Settings(home=tmp_path, milvus={"token": "someone:hunter2"}))
