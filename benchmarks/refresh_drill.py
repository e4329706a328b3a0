"""The refresh drill: version 1 on half the data, version 2 on all; what to do about the space?

    python -m benchmarks.refresh_drill --json
    python -m benchmarks.refresh_drill --part stamps --start cold --seeds 1

Parts: `stamps`, captions and pictures under the demo preset without its sound (encoders frozen, so
their features are computed once and remembered), and `digits`, handwritten and spoken digits with
the digit's name, the tiny preset's encoders trained. Version 2 starts `warm` from version 1, or
`cold`. All figures are of the judge split, which no training sees.

Rows, each way with the same version 2 but for the compatibility loss, which needs a training:

    nothing done        version 2 asks an index of version 1's and its own vectors, half and half
    compatibility loss  the same after training with `compatible=1`
    adapter ...         the same, version 2's vectors mapped into version 1's space
    new generation      everything is embedded again, in a space of its own
    automatic           what `examiner` chose under its default limits

`accuracy` is the decision's (digits: without the name), `gain` against version 1; `recall` is at 10
over all served directions; `ratio` is R. `re-embedded` counts vectors, `seconds` is what the way
took beyond the training of version 2: the loss (the difference of the two trainings), fitting the
adapter, or embedding every record again (measured on up to 128 of them, without what is
remembered).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import braid.encoders.training.data
import braid.encoders.training.embeddings
from benchmarks.common import arguments, finish, spread
from benchmarks.data_digits import TASK, default_folder, known_split, load, paired
from braid.encoders import Embedder, Manifest, Sample, TrainConfig, preset, train
from braid.encoders.backbones.base import Array, Encoder, Features
from braid.encoders.backbones.sub_batches import encode_all as encode_anew
from braid.encoders.evaluation.examine import Compatibility, Gates, examiner
from braid.encoders.training.embeddings import ALL
from braid.stream.datasets.sources import default_cache, stamps

PARTS = ("stamps", "digits")
STARTS = ("warm", "cold")
EPOCHS = {"stamps": 30, "digits": 6}
RECORDS = 2000  # digits
AGAIN = 128
OPEN = Gates(
    accuracy=1.0,
    error=1e6,
    recall=1.0,
    calibration=1.0,
    rank=0.0,
    latency=1e6,
    min_records=20,
    rounds=1,
)
"""The drill asks about spaces: no version is refused."""
EVERY = Compatibility(ratio=2.0)
"""Never reached, so that every choice is tried and told."""


class Remembered:
    """`encode_all` with what a frozen encoder gave before, by the input's bytes."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, bytes], Tensor] = {}
        self.frozen: set[str] = set()

    def __call__(
        self,
        encoder: Encoder,
        inputs: Sequence[Array],
        device: torch.device,
        *,
        tokens: bool = False,
    ) -> Features:
        if tokens or encoder.modality not in self.frozen:
            return encode_anew(encoder, inputs, device, tokens=tokens)
        keys = [(encoder.modality, sha256(value.tobytes()).digest()) for value in inputs]
        new = [place for place, key in enumerate(keys) if key not in self.known]
        if new:
            features = encode_anew(encoder, [inputs[place] for place in new], device)
            for place, row in zip(new, features.pooled_BF.clone(), strict=True):
                self.known[keys[place]] = row
        return Features(pooled_BF=torch.stack([self.known[key] for key in keys]))


def half(samples: Sequence[Sample]) -> list[Sample]:
    """Half of them, by their ids; the splits are of other digits of the hash."""
    return [s for s in samples if sha256(s.id.encode()).digest()[-1] % 2]


def drill(
    samples: Sequence[Sample], config: TrainConfig, seed: int, warm: bool, subset: str
) -> dict[str, dict[str, float]]:
    """Way to its figures; accuracy is measured with the modalities of `subset`."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)

        def fit(
            name: str, known: Sequence[Sample], config: TrainConfig, **more: Any
        ) -> tuple[Manifest, float]:
            """The version, and the seconds of its optimiser's steps."""
            told: dict[str, float] = {}

            def tell(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
                told[f"{stage} {done > 0}"] = time.perf_counter()

            made = train(
                known,
                config,
                out=root / name,
                name=name,
                version=1,
                seed=seed,
                progress=tell,
                **more,
            )
            note(f"  {name}: {told['write True'] - told['read True']:.0f} s")
            return made, told["evaluate False"] - told["read True"]

        fit("v1", half(samples), config)
        parent = {"parent": root / "v1"} if warm else {}
        look = examiner(root / "v1", gates=OPEN, compatibility=EVERY, seed=seed)
        plain, plain_s = fit("v2", samples, config, examine=look, **parent)
        pulled, pulled_s = fit(
            "v2-pulled",
            samples,
            replace(config, compatible=1.0),
            examine=look,
            champion=root / "v1",
            **parent,
        )
        chosen = examiner(root / "v1", gates=OPEN, seed=seed)(root / "v2", list(samples))
        again = embed_seconds(root / "v2", samples)
    rows = ways(plain, "nothing done", len(samples), again, subset)
    without = ways(pulled, "compatibility loss", len(samples), 0.0, subset)["compatibility loss"]
    rows["compatibility loss"] = {**without, "seconds": pulled_s - plain_s}
    name = row_of(chosen.compatibility)
    rows["automatic"] = dict(rows[name])
    note(f"  automatic: {name} ({chosen.compatibility['reason']})")
    best = {key: max(row[key] for row in rows.values()) for key in ("recall", "accuracy")}
    rows["automatic"] |= {
        f"{key} below the best": best[key] - rows["automatic"][key] for key in best
    }
    return rows


def row_of(story: Mapping[str, Any]) -> str:
    """The row of the way that was chosen."""
    named = {"same space": "nothing done", "new space": "new generation"}
    if story["choice"] in named:
        return named[story["choice"]]
    return f"adapter {story['adapter']['kind']}"


def ways(
    manifest: Manifest, raw: str, records: int, again: float, subset: str
) -> dict[str, dict[str, float]]:
    """The rows that one version's manifest tells of."""
    gates = {gate["metric"]: gate for gate in manifest.verdict["gates"]}
    judged = next(gate for name, gate in gates.items() if name.endswith(f": {subset}"))
    common = {"accuracy": judged["challenger"], "gain": judged["difference"]}
    rows: dict[str, dict[str, float]] = {}
    for entry in manifest.compatibility["tried"]:
        if entry.get("maps") == "stored vectors":
            continue
        name = {"same space": raw, "new space": "new generation"}.get(
            entry["choice"], f"adapter {entry.get('kind')}"
        )
        whole = entry["choice"] == "new space"
        rows[name] = {
            **common,
            "recall": entry["recall"],
            "ratio": entry.get("ratio", entry["recall"] / manifest.compatibility["old_to_old"]),
            "share of old": entry.get("share", 0.0),
            "re-embedded": float(records if whole else 0),
            "seconds": again if whole else entry.get("seconds", 0.0),
        }
    return rows


def embed_seconds(version: Path, samples: Sequence[Sample]) -> float:
    """Embedding all of `samples`, from the time that some of them take."""
    few = list(samples)[:AGAIN]
    with Embedder.load(version) as embedder:
        embedder.embed(few[:8])
        begun = time.perf_counter()
        embedder.embed(few)
        return (time.perf_counter() - begun) * len(samples) / len(few)


def stamps_data(cache: Path) -> tuple[list[Sample], TrainConfig]:
    samples = [
        Sample(id=i.id, text=i.text, image=i.content("image"), labels=i.labels)
        for i in stamps(cache)
    ]
    demo = preset("demo")
    seen = {name: encoder for name, encoder in demo.model.encoders.items() if name != "audio"}
    return samples, replace(demo, model=replace(demo.model, encoders=seen))


def digits_data(folder: Path, records: int) -> tuple[list[Sample], TrainConfig]:
    """Recordings of known speakers with a picture and the digit's name, so that any record of a
    digit is right for it."""
    digits = load(folder)
    train_R, _ = known_split(digits)
    some_R = np.random.default_rng(0).permutation(train_R)[:records]
    every_N = np.ones(len(digits.images_NHW), dtype=bool)
    made = paired(digits, digits.images_NHW, some_R, every_N, seed=0)
    named = [replace(s, text=str(s.labels[TASK])) for s in made]
    tiny = preset("tiny")
    image = replace(
        tiny.model.encoders["image"],
        options={"side": 28, "channels": 16, "grid": 3, "mirror": False, "shift": 0.08},
    )
    seen = {**tiny.model.encoders, "image": image}
    return named, replace(tiny, model=replace(tiny.model, encoders=seen), refit=False)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, parts=PARTS)
    parser.set_defaults(seeds=1)
    parser.add_argument("--start", choices=STARTS, help="only this one")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--epochs", type=int, help=f"instead of {EPOCHS}")
    parser.add_argument("--records", type=int, default=RECORDS, help="of the digits")
    parser.add_argument("--data", type=Path, default=default_folder(), help="of the digits")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="of the stamps")
    options = parser.parse_args(argv)
    remembered = Remembered()
    for module in (braid.encoders.training.data, braid.encoders.training.embeddings):
        vars(module)["encode_all"] = remembered
    read: dict[str, Callable[[], tuple[list[Sample], TrainConfig]]] = {
        "stamps": lambda: stamps_data(options.cache),
        "digits": lambda: digits_data(options.data, options.records),
    }
    subsets = {"stamps": ALL, "digits": "image+audio"}  # the digit's name would tell everything
    table: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for part in PARTS if options.part is None else (options.part,):
        samples, config = read[part]()
        counts[part] = len(samples)
        remembered.frozen = {n for n, encoder in config.model.encoders.items() if encoder.frozen}
        config = replace(config, epochs=options.epochs or EPOCHS[part])
        for start in STARTS if options.start is None else (options.start,):
            runs = []
            for seed in range(options.first, options.first + options.seeds):
                note(f"{part}, {start}, seed {seed}")
                runs.append(drill(samples, config, seed, start == "warm", subsets[part]))
            kept = [row for row in runs[0] if all(row in run for run in runs)]
            for row in kept:
                table[f"{part}, {start}: {row}"] = spread([run[row] for run in runs])
    report = {
        "benchmark": "refresh drill",
        "seeds": options.seeds,
        "records": counts,
        "epochs": {part: options.epochs or EPOCHS[part] for part in counts},
        "threads": torch.get_num_threads(),
        "rows": table,
    }
    return finish(report, options.json)


if __name__ == "__main__":
    main()
