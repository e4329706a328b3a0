"""Starts an index node: it listens before it imports, loads or connects to anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from braid.index.home_lock import home_lock
from braid.index.service.server import NodeServer

from ..errors import StreamError
from ..liveness.ending import STOP_WITHIN_S
from ..settings import Settings
from ..tracing import tracing_of

STOP_S = 6.0  # for what is cancelled


def run(settings: Settings) -> None:
    """The process. Raises HomeLocked, ConfigError, StreamError, and the error that ended it."""
    with home_lock(settings.index_home):
        asyncio.run(_main(settings))


async def _main(settings: Settings) -> None:
    # What is wrong ends the process now, not when a model has come.
    settings.keys()
    tracing_of(settings, "braid-index")
    server = NodeServer(
        host=settings.http.host,
        port=settings.http.port,
        hosts=settings.hosts(),
        limits=settings.limits().connection,
    )
    served = server.start()
    node = asyncio.create_task(_node(settings, server), name="node")
    try:
        await asyncio.wait({served, node}, return_when=asyncio.FIRST_COMPLETED)
        if server.should_exit:  # a node that ends stops the server first
            await asyncio.wait({node}, timeout=STOP_WITHIN_S)
            if not node.done():
                raise StreamError(f"the index node did not end within {STOP_WITHIN_S:g} s")
        for task in (node, served):
            if task.done():
                task.result()
    finally:
        node.cancel()
        server.should_exit = True
        await asyncio.wait({served, node}, timeout=STOP_S)


async def _node(settings: Settings, server: NodeServer) -> None:
    run_node = await asyncio.to_thread(_imported)
    await run_node(settings, server)


def _imported() -> Callable[[Settings, NodeServer], Awaitable[None]]:
    from .node import run_node  # takes seconds

    return run_node
