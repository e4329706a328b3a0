"""The notebooks in `examples/`, run on a query service; tests/test_docs.py has a deployment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from braid.index.service.limits.auth import ApiKeys
from tests.documents import ROOT
from tests.index.conftest import IDS, Node, serving
from tests.index.oracle import DIM, unit
from tests.index.test_typed_answers import Shown
from tests.notebooks import cells, executed, shown

EXAMPLES = sorted((ROOT / "examples").glob("*.ipynb"))
KEY = "a-key-of-the-test-0123456789"


@pytest.fixture
def locked() -> Iterator[tuple[str, Node]]:
    """A node with pictures that wants a key."""
    node = Node()
    node.reset()
    fake: Any = Shown()
    with serving(node, payloads=fake, media_cache=fake, keys=ApiKeys([KEY])) as (url, _):
        yield url, node


def test_notebooks_are_kept_without_outputs() -> None:
    assert EXAMPLES
    for path in EXAMPLES:
        assert [cell["outputs"] for cell in cells(path) if cell["outputs"]] == []
        assert {cell["execution_count"] for cell in cells(path)} == {None}


@pytest.mark.slow
def test_the_search_notebook_runs(locked: tuple[str, Node], tmp_path: Path) -> None:
    url, node = locked
    env = {"BRAID_URL": url, "BRAID_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    status, words, table, alike, vectors = executed(ROOT / "examples/search.ipynb", tmp_path, env)
    assert f"{len(IDS)} records" in shown(status, "text")
    best = node.expected(unit("a red square", None, None), k=5)
    html = shown(words, "text/html")
    assert html.count("<tr>") == 6
    assert "data:image/webp;base64," in html
    assert "<script>" not in html
    assert all(id_ in shown(table, "text/plain") for id_ in best)
    assert "scores.text" in shown(alike, "text/plain")
    assert f"(2, {DIM})" in shown(vectors, "text")
