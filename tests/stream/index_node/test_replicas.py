"""Index nodes as replicas: each reads `vectors` by itself; `min_offsets` hold on any of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from braid.index.client import Client
from braid.index.errors import BadQuery
from braid.stream.kafka.producer import Producer
from braid.stream.local.child import Child, free_port
from tests.kafka_proxy import KafkaProxy
from tests.stream.harness import MODEL, Deployment, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

WAIT_MS = 20_000
RECORDS = 40


class Replicas:
    """Two nodes of one deployment, each with a folder, a port and a connection of its own."""

    def __init__(self, deployment: Deployment, folder: Path, stack: ExitStack) -> None:
        self._deployment, self._folder = deployment, folder
        self.proxies = [
            stack.enter_context(KafkaProxy(deployment.settings.kafka.bootstrap)) for _ in range(2)
        ]
        for proxy in self.proxies:
            stack.callback(proxy.forward)  # or a failed test would not end
        self.ports = [free_port(), free_port()]
        self.clients = [
            stack.enter_context(Client(f"http://127.0.0.1:{port}")) for port in self.ports
        ]
        self.nodes = [self.start(0), self.start(1)]

    def start(self, number: int) -> Child:
        env = {
            "KAFKA_BOOTSTRAP": self.proxies[number].address,
            "BRAID_HTTP__PORT": str(self.ports[number]),
            "BRAID_INDEX__FOLDER": str(self._folder / f"node-{number}"),
        }
        command = ["-m", "braid", "index", "--model", MODEL]
        return self._deployment.child(f"index-{number}", command, env)

    def wait_until_ready(self) -> None:
        for number, client in enumerate(self.clients):
            wait_for(f"node {number} is ready", client.ready, timeout=60)


@pytest.fixture
def replicas(deployment: Deployment, tmp_path: Path) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(deployment, tmp_path, stack)


async def write(deployment: Deployment, id_: str, text: str | None) -> dict[int, int]:
    """Send a record, or its deletion; the `min_offsets` that reflect it."""
    async with Producer(deployment.settings) as producer:
        sent = await (producer.delete(id_) if text is None else producer.send(id=id_, text=text))
    assert sent is not None
    partition, offset = sent
    return {partition: offset + 1}


def found(client: Client, text: str, offsets: dict[int, int]) -> dict[str, float]:
    answer = client.search(text=text, k=3, min_offsets=offsets, timeout_ms=WAIT_MS)
    return {hit.id: hit.score for hit in answer.hits}


def test_what_was_written_is_read_from_any_node(deployment: Deployment, replicas: Replicas) -> None:
    deployment.worker("one")
    replicas.wait_until_ready()
    chance = random.Random(0)
    for number in range(RECORDS):
        id_ = f"r{chance.randrange(10)}"
        text = None if number % 4 == 3 else f"text {number}"
        offsets = asyncio.run(write(deployment, id_, text))
        client = chance.choice(replicas.clients)
        if text is not None:
            assert found(client, text, offsets)[id_] == pytest.approx(1.0, abs=1e-5)
            continue
        with pytest.raises(BadQuery) as refused:
            client.get(id_, min_offsets=offsets, timeout_ms=WAIT_MS)
        assert refused.value.status == 404

    # A deletion asked of one node is seen on the other.
    offsets = asyncio.run(write(deployment, "last", "the last"))
    one, other = replicas.clients
    gone = one.delete("last", min_offsets=offsets, timeout_ms=WAIT_MS)
    after = {gone.partition: gone.offset + 1}
    assert "last" not in found(other, "the last", after)
    answer = one.search(text="text 1", k=3)
    seen = {int(partition): offset for partition, offset in answer.as_of.items()}
    later = other.search(text="text 1", k=3, min_offsets=seen, timeout_ms=WAIT_MS)
    assert all(later.as_of[str(partition)] >= offset for partition, offset in seen.items())
    states = [client.status() for client in replicas.clients]
    assert states[0].positions.keys() == states[1].positions.keys()


def test_a_node_that_is_behind_refuses_and_a_killed_one_catches_up(
    deployment: Deployment, replicas: Replicas
) -> None:
    deployment.worker("one")
    replicas.wait_until_ready()
    one, other = replicas.clients
    replicas.proxies[1].blackhole()
    offsets = asyncio.run(write(deployment, "new", "something new"))
    assert "new" in found(one, "something new", offsets)
    with pytest.raises(BadQuery) as refused:
        other.search(text="something new", k=3, min_offsets=offsets, timeout_ms=200)
    assert refused.value.status == 412
    assert refused.value.field == "min_offsets"
    assert "new" not in {hit.id for hit in other.search(text="something new", k=3).hits}

    replicas.nodes[1].stop(grace=0)
    replicas.proxies[1].forward()
    assert "new" in found(one, "something new", offsets)  # one node answers meanwhile
    offsets |= asyncio.run(write(deployment, "newer", "something newer"))
    replicas.nodes[1] = replicas.start(1)
    wait_for("the node is ready again", other.ready, timeout=60)
    for text in ("something new", "something newer"):
        assert found(one, text, offsets) == pytest.approx(found(other, text, offsets))
