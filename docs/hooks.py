"""Hooks of MkDocs: pages that include a file of the repository, and links out of `docs/`.

A page includes a file by a line `<!-- include: PATH -->`, its path relative to the page. Relative
links work on disk and where the repository is browsed. On the site, a link to a file outside
`docs/` goes to the page that shows this file, or becomes its text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

INCLUDE = re.compile(r"^<!-- include: (\S+) -->$", re.M)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")
FENCE = re.compile(r"(^ *```.*?^ *```)", re.M | re.S)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page's text with included files, and with links that resolve on the site.

    Raises FileNotFoundError if an included file does not exist.
    """
    docs = Path(config["docs_dir"])
    folder = posixpath.dirname(page.file.src_uri)
    shown = _shown_files(docs)

    def include(match: re.Match[str]) -> str:
        file = (docs / folder / match[1]).resolve()
        text = re.sub(r"\A# .*\n", "", file.read_text())  # the page has a title of its own
        return _rewritten(text, file.parent, docs, folder, shown)

    return INCLUDE.sub(include, _rewritten(markdown, docs / folder, docs, folder, shown))


def _shown_files(docs: Path) -> dict[Path, str]:
    """Files outside `docs/` -> the page that shows each."""
    shown = {(docs.parent / "README.md").resolve(): "index.md"}
    for page in docs.rglob("*.md"):
        for path in INCLUDE.findall(page.read_text()):
            shown[(page.parent / path).resolve()] = page.relative_to(docs).as_posix()
    return shown


def _rewritten(text: str, base: Path, docs: Path, folder: str, shown: dict[Path, str]) -> str:
    """`text` with its links, relative to `base`, made relative to the page's `folder`."""

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = Path(os.path.normpath(base / target)).resolve()
        uri = shown.get(path)
        if uri is None and path.is_relative_to(docs.resolve()):
            uri = path.relative_to(docs.resolve()).as_posix()
        if uri is None:
            return label
        return f"[{label}]({posixpath.relpath(uri, folder or '.')}{anchor})"

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)
