"""An index node, whose records have texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from braid.index.client import Client
from braid.index.payloads import Payload
from tests.index.conftest import IDS, Node, _served  # noqa: F401


class Texts:
    """Payloads without Redis: the text of record r3 is "text of r3"; r0 has none."""

    available = True

    def get_many(self, ids: Sequence[str]) -> dict[str, Payload]:
        return {
            id: Payload(text=f"text of {id}", labels={"kind": "bird"}, predicted={"kind": "frog"})
            for id in ids
            if id != IDS[0]
        }


@pytest.fixture
def node(_served: Node) -> Node:  # noqa: F811
    _served.reset()
    payloads: Any = Texts()
    _served.payloads = payloads
    return _served


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    with Client(node.url) as client:
        yield client
