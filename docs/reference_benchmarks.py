"""The reference of the benchmarks, from the docstrings of the modules in `benchmarks/`."""

from __future__ import annotations

import ast
from pathlib import Path

from reference_markdown import code, page

FOLDER = Path(__file__).parent.parent / "benchmarks"


def benchmarks_page() -> str:
    parts = [
        "What each benchmark measures, on what, and what its rows and figures mean. They come with "
        "the source, not with the installed package, and are run from its folder. What they gave "
        "is in [benchmarks](../benchmarks.md)."
    ]
    for path in (*sorted(FOLDER.glob("*.py")), FOLDER / "peers" / "compare.py"):
        module = ast.parse(path.read_text())
        names = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        if "main" in names:
            inner = path.relative_to(FOLDER.parent).with_suffix("")
            name = inner.parent if inner.name == "__main__" else inner
            parts += [f"## {code('.'.join(name.parts))}", ast.get_docstring(module) or ""]
    return page("Benchmarks", *parts)
