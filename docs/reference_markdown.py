"""Markdown for the generated pages of `docs/reference/`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

NOTE = "<!-- Written by docs/generate.py (make reference). Do not edit. -->"


def page(title: str, *parts: str) -> str:
    return "\n\n".join([NOTE, f"# {title}", *(part.strip("\n") for part in parts)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines
    )


def code(value: object) -> str:
    return f"`{value}`"


def prose(text: str | None) -> str:
    """A docstring's text as Markdown: without its sections of arguments and errors."""
    text = inspect.cleandoc(text or "")
    for section in ("Args:", "Attributes:", "Raises:", "Returns:"):
        text = text.split(f"\n{section}")[0]
    return text.strip()


def sentence(text: str | None) -> str:
    """One table cell that begins with a capital letter and ends with a full stop."""
    text = " ".join((text or "").split())
    first = text.split(" ")[0].rstrip(",;:")
    if first.islower() and first.isalpha():
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?")) or not text else f"{text}."


def write(folder: Path, files: Mapping[str, Callable[[], str]], *, check: bool) -> list[str]:
    """The names of the files that are out of date; written anew unless only checked."""
    stale = []
    for name, made in files.items():
        path, text = folder / name, made()
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    return stale
