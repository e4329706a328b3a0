"""The documentation as a web site: built strictly, whole, and loading nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import DOCS, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def test_each_page_is_on_the_site_and_nothing_else_of_docs(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS).with_suffix("")
        built = site / "index.html" if page.stem == "index" else site / place / "index.html"
        assert built.is_file(), page
    assert [path.name for path in site.rglob("*.py")] == []


def test_a_page_shows_the_file_that_it_includes(site: Path) -> None:
    text = (site / "benchmarks" / "index.html").read_text()
    heading = re.search(r"^## (.+)$", (ROOT / "benchmarks" / "RESULTS.md").read_text(), re.M)
    assert heading is not None
    assert f">{heading[1]}<" in text
    assert "include:" not in text


def test_links_to_sources_are_text_on_the_site(site: Path) -> None:
    text = (site / "architecture" / "index.html").read_text()
    assert "<code>stream/worker/worker.py</code>" in text
    assert 'href="../../stream' not in text


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(https?:|//)|<link[^>]+href=\"?(https?:|//)"
    )
    wrong = [str(page) for page in site.rglob("*.html") if loads.search(page.read_text())]
    assert wrong == []
