"""Milvus Lite for tests: the same client and calls as a server, in a folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from braid.index.milvus.client import connect
from braid.index.milvus.collections import MilvusGenerations
from braid.index.milvus.store import MilvusStore
from braid.index.store import Delete, Upsert
from tests.index.oracle import DIM, NAMES, SPACE


def need_lite() -> None:
    """Skip where it is not installed, but not in CI: a GPU's environment has no room for it."""
    if "CI" not in os.environ:
        pytest.importorskip("milvus_lite")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A client of the Lite in a folder `*.db`; its server ends with the block."""
    need_lite()
    from milvus_lite.server_manager import server_manager_instance

    client = connect(str(path))
    try:
        yield client
    finally:
        client.close()
        server_manager_instance.release_server(str(path))


def fresh(client: Any, prefix: str | None = None) -> MilvusStore:
    """An empty store of a deployment of its own."""
    prefix = f"t{uuid.uuid4().hex[:12]}_" if prefix is None else prefix
    return MilvusGenerations(client, prefix=prefix).open(
        "g0001", space=SPACE, dim=DIM, names=NAMES[1:]
    )


def put(store: MilvusStore, *writes: Upsert | Delete) -> None:
    store.apply(writes, positions={}, progress={})
