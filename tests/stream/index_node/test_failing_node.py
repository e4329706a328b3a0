"""An index node that fails: its orderly end is waited for, and its error ends the command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from braid.index.client import Client
from braid.index.service.server import NodeServer
from braid.stream.errors import StreamError
from braid.stream.index_node import start
from braid.stream.local.child import free_port
from braid.stream.settings import Settings
from tests.stream.harness import Deployment, wait_for

Node = Callable[[Settings, NodeServer], Awaitable[None]]


@pytest.mark.kafka
def test_a_reader_that_fails_ends_the_process_with_its_reason(deployment: Deployment) -> None:
    index = deployment.index(env={"BRAID_FAILPOINT": "after-apply:raise:1"})
    with Client(deployment.url) as client:
        wait_for("it is ready", client.ready, timeout=60)
    deployment.worker("one")
    deployment.produce([{"id": "a", "text": "a"}])
    assert index.wait(60) == 1
    reason = "the reader of g0001 failed: RuntimeError: failpoint after-apply"
    assert reason in index.tail(100)
    folder = deployment.settings.index_dir(deployment.settings.generation)
    assert any(folder.glob("0*")), "what it had read is kept"


def run_with(node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_imported", lambda: node)
    start.run(Settings(home=folder, http={"port": free_port()}))


async def stopped(server: NodeServer) -> None:
    """Stop the server first, as the node does."""
    while not server.started:
        await asyncio.sleep(0.01)
    server.should_exit = True
    await asyncio.wait({server.served})
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_end_of_a_node_is_waited_for_and_its_error_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    async def node(settings: Settings, server: NodeServer) -> None:
        try:
            await stopped(server)
            steps.append("ended")
            raise StreamError("the disk is full")
        finally:
            steps.append("closed")

    with pytest.raises(StreamError, match="the disk is full"):
        run_with(node, tmp_path, monkeypatch)
    assert steps == ["ended", "closed"]


def test_a_node_that_does_not_end_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "STOP_WITHIN_S", 0.2)

    async def node(settings: Settings, server: NodeServer) -> None:
        await stopped(server)
        await asyncio.Event().wait()

    with pytest.raises(StreamError, match="did not end within"):
        run_with(node, tmp_path, monkeypatch)
