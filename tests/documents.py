"""The README and the pages of `docs/`, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    language: str
    code: str


def pages() -> list[Path]:
    """The README and every page below `docs/`."""
    return [README, *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in its order."""
    return [Block(language, code) for language, code in _FENCE.findall(page.read_text())]


def block(page: str, language: str, start: str) -> str:
    """The one block of a page in `docs/` whose code begins with `start`."""
    (code,) = [
        block.code
        for block in blocks(DOCS / page)
        if block.language == language and block.code.startswith(start)
    ]
    return code


def commands(code: str) -> Iterator[str]:
    """The commands of a shell block; one whose quotes are open at the line's end goes on."""
    command = ""
    for line in code.splitlines():
        command += line
        if command.endswith("\\") or _quote_is_open(command):
            command += "\n"
        elif command.strip() and not command.startswith("#"):
            yield command.replace("\\\n", " ")
            command = ""
    assert not command.strip(), f"the block ends within {command!r}"


def links(page: Path) -> list[str]:
    """The targets of a page's links, outside of code blocks."""
    return _LINK.findall(_FENCE.sub("", page.read_text()))


def _quote_is_open(text: str) -> bool:
    quote = ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#":
            break
    return bool(quote)
