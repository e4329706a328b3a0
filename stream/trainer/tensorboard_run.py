"""A training run as TensorBoard's event files, by `torch.utils.tensorboard`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from .tracker import About, Result


class TensorBoardRun:
    """One run, in a sub-folder named after the version and the run; a resumed run adds a file."""

    def __init__(self, folder: Path, about: About) -> None:
        self._writer = SummaryWriter(str(folder / f"{about.version} {about.run}"))
        parameters = json.dumps(about.parameters, indent=1, default=str)
        self._writer.add_text("configuration", f"```json\n{parameters}\n```")
        self._writer.flush()

    def figures(self, at_ms: int, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step, at_ms / 1000)
        self._writer.flush()

    def end(self, result: Result) -> None:
        for name, value in result.figures.items():
            self._writer.add_scalar(name, value, 0)
        for name, text in result.tags.items():
            self._writer.add_text(name, text)
        if result.card:
            self._writer.add_text("model card", result.card)
        self._writer.add_text("state", result.state)
        self._writer.close()
