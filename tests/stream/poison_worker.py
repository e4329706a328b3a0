"""A `braid embed` whose null model fails on records that are marked in their ids."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from braid.encoders.model.null import NullModel
from braid.encoders.types import Embedding, Model, Prepared
from braid.stream.cli.main import main
from braid.stream.worker import app, supervisor


def _raise(prepared: Sequence[Prepared]) -> None:
    raise FloatingPointError("a record on which encode raises")


def _memory(prepared: Sequence[Prepared]) -> None:
    raise MemoryError("a record that does not fit")


FAULTS: dict[str, Callable[[Sequence[Prepared]], None]] = {"raise": _raise, "memory": _memory}


class PoisonModel(NullModel):
    """Fails on ids that begin with a name of `FAULTS`; those of "nan" get such a vector."""

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        made = super().encode(prepared)  # the fault comes last: all of the work is lost
        for item, embedding in zip(prepared, made, strict=True):
            name = item.id.partition("-")[0]
            if name in FAULTS:
                FAULTS[name](prepared)
            if name == "nan":
                embedding.fused[:] = np.nan
        return made


def load(path: str | Path, **options: object) -> Model:
    return PoisonModel(NullModel.parse(str(path)).dim)


if __name__ == "__main__":
    app.load = supervisor.load = load  # type: ignore[attr-defined]
    sys.argv[0] = "braid"
    main()
