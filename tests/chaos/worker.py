"""A `braid embed` whose null model fails on marked records, in prepare and in encode."""

from __future__ import annotations

import sys
from pathlib import Path

from braid.encoders.errors import BadInput
from braid.encoders.model.null import NullModel
from braid.encoders.types import Model, Prepared, Sample
from braid.stream.cli.main import main
from braid.stream.worker import app, supervisor
from tests.stream.poison_worker import PoisonModel

PNG = b"\x89PNG\r\n\x1a\n"


class ChaosModel(PoisonModel):
    """Refuses pictures that do not begin as a png does, as one that decodes them would."""

    def prepare(self, sample: Sample) -> Prepared:
        if sample.image is not None and not sample.image.startswith(PNG):
            raise BadInput("image", "is not a picture")
        return super().prepare(sample)


def load(path: str | Path, **options: object) -> Model:
    return ChaosModel(NullModel.parse(str(path)).dim)


if __name__ == "__main__":
    app.load = supervisor.load = load  # type: ignore[attr-defined]
    sys.argv[0] = "braid"
    main()
