"""Inputs a second of the demo's picture and text encoder on each engine, against torch.

    python -m benchmarks.engines [--part image|text] [--inputs 96] [--rounds 5] [--json]

An engine encodes as in a worker: sub-batches of similar size, one for each core, texts without
padding. Engines take turns; a ratio is the median over the rounds. Each must pass the gate that a
worker puts it through. `cosine` is the smallest between an input's vectors of the engine and of
torch, in the shared space; recall@10 is that of finding a text, among RECALL, by a third of its
words.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from braid.encoders import Sample
from braid.encoders.backbones.base import Encoder
from braid.encoders.backbones.sub_batches import encode_all
from braid.encoders.engines.gate import Gate
from braid.encoders.engines.packages import PACKAGES, missing
from braid.encoders.engines.runtimes import made, supported
from braid.encoders.engines.serve import PLAIN, source_of
from braid.encoders.errors import EngineError
from braid.encoders.model.torch_model import TorchModel

from .common import arguments
from .throughput import demo_model, samples_of
from .vectors import finish_here

PARTS = ("image", "text")
RECALL = 2000
SHORTER = 3  # a query has so many times fewer words than its text
CPU = torch.device("cpu")


def encoders_of(model: TorchModel, folder: Path, part: str) -> dict[tuple[str, str], Encoder]:
    """The encoder of a modality on each engine that is installed, by engine and precision."""
    plain = model.net.encoder(part)
    source = source_of(model, part, folder)
    names = ["torch", *(name for name in PACKAGES if missing(name) is None)]
    return {PLAIN: plain} | {
        (name, precision): made(name, precision, source)
        for name in names
        for precision in supported(name, plain)
        if (name, precision) != PLAIN
    }


def vectors(model: TorchModel, part: str, encoder: Encoder, samples: Sequence[Sample]) -> Any:
    """float32[B, D]: of each sample, with its encoder on an engine."""
    model.net.encoders[part] = encoder
    made_ = model.encode_queries([model.prepare(sample) for sample in samples])
    return np.stack([one.by[part] for one in made_])


def queries_of(samples: Sequence[Sample]) -> list[Sample]:
    """For each text one with some of its words."""
    chance = random.Random(1)
    some = [(one.text or "").split() for one in samples]
    return [
        Sample(id=f"q{n}", text=" ".join(chance.sample(words, -(-len(words) // SHORTER))))
        for n, words in enumerate(some)
    ]


def recall(asked_BD: Any, stored_BD: Any) -> float:
    score_BB = asked_BD @ stored_BD.T
    return float(((score_BB > np.diagonal(score_BB)[:, None]).sum(1) < 10).mean())


def measure(model: TorchModel, folder: Path, part: str, given: Any) -> dict[str, Any]:
    gate = Gate(model, folder)
    engines = encoders_of(model, folder, part)
    samples = samples_of(part, given.inputs)
    stored = samples_of(part, RECALL) if part == "text" else []
    queries = queries_of(stored)
    inputs: list[Any] = [model.prepare(sample).inputs[part] for sample in samples]
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in engines}
    for turn in range(given.rounds + 1):
        for name, encoder in engines.items():
            began = time.perf_counter()
            encode_all(encoder, inputs, CPU)
            if turn > 0:
                seconds[name].append(time.perf_counter() - began)
    row: dict[str, Any] = {}
    want_BD = vectors(model, part, engines[PLAIN], stored or samples)
    for name, encoder in engines.items():
        title = " ".join(name)
        row[f"{title}, inputs a second"] = round(len(inputs) / statistics.median(seconds[name]), 1)
        got_BD = vectors(model, part, encoder, stored or samples)
        if queries:
            asked_BD = vectors(model, part, encoder, queries)
            row[f"{title}, recall@10"] = round(recall(asked_BD, got_BD), 4)
            row[f"{title}, recall@10 in torch's vectors"] = round(recall(asked_BD, want_BD), 4)
        if name == PLAIN:
            continue
        ratios = [a / b for a, b in zip(seconds[PLAIN], seconds[name], strict=True)]
        row[f"{title} / torch"] = round(statistics.median(ratios), 3)
        row[f"{title}, cosine"] = round(float((want_BD * got_BD).sum(1).min()), 5)
        try:
            gate.check(model, part, name[1])
            row[f"{title}, gate"] = "passed"
        except EngineError as error:
            row[f"{title}, gate"] = str(error)
    for precision in ("float32", "bf16", "int8"):
        passed = [
            row[f"{engine} {precision} / torch"]
            for engine, of in engines
            if of == precision and row.get(f"{engine} {precision}, gate") == "passed"
        ]
        if passed:
            row[f"best in {precision} / torch"] = max(passed)
    model.net.encoders[part] = engines[PLAIN]
    return row


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, PARTS, seeds=False)
    parser.add_argument("--inputs", type=int, default=96, help="pictures or texts of one run")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "version"
        model = demo_model(folder)
        parts = (given.part,) if given.part else PARTS
        rows = {part: measure(model, folder, part, given) for part in parts}
    return finish_here("engines", given, rows)


if __name__ == "__main__":
    main()
