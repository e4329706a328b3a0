"""Runs a notebook in a kernel of its own, as Jupyter does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of code of a notebook."""
    notebook = json.loads(path.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def executed(path: Path, folder: Path, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """The cells of code with their outputs; a cell that fails fails the test.

    Args:
        folder: empty; the notebook runs in it, and Jupyter keeps its files there.
    """
    result = folder / path.name
    own = {
        name: str(folder) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")
    }
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(result)],
        cwd=folder,
        env={**os.environ, **own, **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return cells(result)


def shown(cell: Mapping[str, Any], kind: str) -> str:
    """What a cell displays in a media type, or prints (`text`)."""
    texts = [
        output.get("text") if kind == "text" else output.get("data", {}).get(kind)
        for output in cell["outputs"]
    ]
    return "".join(line for text in texts if text is not None for line in text)
