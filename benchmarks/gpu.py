"""Encoders against what a GPU's own products allow, and the stream against the encoders.

    python -m benchmarks.gpu [--only text-base] [--records 2000] [--rounds 3] [--json]
    python -m benchmarks.gpu --device cpu --records 4 --rounds 1 --layers 1    # to see that it runs

One encoder at a time, bf16 on a GPU: MiniLM (the preset `demo`'s), BERT-base on texts of 3 to 200
words, ViT-B/16 from JPEG bytes, AST on sounds of 1 to 4 s; the last three with random weights, on
which speed does not depend. Rounds alternate; figures are medians:

    encode     records a second from prepared inputs
    offline    records a second of `Embedder.embed`, from bytes and strings
    stream     records a second of a worker that reads Apache Kafka and publishes in transactions
               (the broker that KAFKA_BOOTSTRAP names, else the embedded one)
    / floor    operations a second of real tokens (`benchmarks.throughput.operations`), divided by
               those of a large product in the same precision and round
    busy       share of the time from the first kernel to the last in which one ran, while
               streaming, by torch.profiler; on a CPU, of all cores' time in encoders
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from braid.encoders import Sample, TrainConfig, load, preset
from braid.encoders.backbones.sub_batches import encode_all
from braid.encoders.config import EncoderConfig
from braid.encoders.model.checkpoint import make_net, save
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.timings import SubBatch, watchers
from braid.stream.errors import EmbeddedError
from braid.stream.liveness.interpreter import tune_interpreter
from braid.stream.local.fleet import services
from braid.stream.media.thumbnails import isolated_decoding
from braid.stream.settings import Settings

from .base_preset import checkpoints, timed
from .common import arguments, finish
from .throughput import embedder, operations, samples_of, worker
from .vectors import machine

ENCODERS = {"text-mini": "text", "text-base": "text", "image": "image", "audio": "audio"}
"""Name of a part to its modality."""
CHUNK = 256  # records of one call of `encode`
PRODUCTS = 20
SIDES = {"cuda": 8192, "cpu": 1024}

Intervals = Sequence[tuple[float, float]]


def config(part: str, folders: Mapping[str, Path]) -> TrainConfig:
    """A version of this encoder alone."""
    modality = ENCODERS[part]
    base = preset("base")
    encoder: EncoderConfig = preset("demo").model.encoders["text"]
    if part != "text-mini":
        encoder = replace(base.model.encoders[modality], source=str(folders[modality]))
    return replace(base, model=replace(base.model, encoders={modality: encoder}), precision="bf16")


def version(part: str, folders: Mapping[str, Path], folder: Path, device: str) -> TorchModel:
    given = config(part, folders)
    save(make_net(given, {}), folder, config=given, name=f"{part}-0001", version_number=1)
    model = load(folder, device=device)
    assert isinstance(model, TorchModel)
    return model


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of products of square matrices, on all cores of a CPU."""
    side = SIDES[device.type]
    left, right = torch.rand(2, side, side, device=device, dtype=dtype).unbind()

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)

    multiply()
    return PRODUCTS * 2.0 * side**3 / timed(multiply, device)


def needed(model: TorchModel, prepared: Sequence[Any]) -> int:
    """Operations of real tokens of all records."""
    (modality,) = model.modalities
    encoder = model.net.encoder(modality)
    inputs = [one.inputs[modality] for one in prepared]
    if modality == "text":
        lengths = [encoder.size(ids_T) for ids_T in inputs]
    else:  # pictures and frames of a tower are as many tokens each
        length = encode_all(encoder, inputs[:1], model.device, tokens=True).length
        lengths = [length] * len(inputs)
    return operations(encoder.trainable_blocks(), encoder.token_width, lengths)


def encode(model: TorchModel, prepared: Sequence[Any]) -> float:
    """Seconds to encode prepared records, in chunks."""

    def run() -> None:
        for begin in range(0, len(prepared), CHUNK):
            model.encode(prepared[begin : begin + CHUNK])

    return timed(run, model.device)


def covered(intervals: Intervals) -> float:
    """Length of the union, divided by the time from the first beginning to the last end."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(intervals):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total / (reached - min(began for began, _ in intervals))


@contextmanager
def watched(device: torch.device) -> Iterator[Callable[[], float]]:
    """Afterwards the function that it gives says how busy the device was."""
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            yield lambda: covered(
                [
                    (event.time_range.start, event.time_range.end)
                    for event in profiler.events() or ()
                    if event.device_type.name == "CUDA"
                ]
            )
        return
    parts: list[SubBatch] = []
    watchers.append(parts.append)
    try:
        yield (
            lambda: (
                sum(part.ended - part.began for part in parts)
                / (max(part.ended for part in parts) - min(part.began for part in parts))
                / len(os.sched_getaffinity(0))
            )
        )
    finally:
        watchers.remove(parts.append)


def measure(
    model: TorchModel, samples: Sequence[Sample], settings: Settings | None, rounds: int
) -> dict[str, Any]:
    """One row; without settings nothing is streamed."""
    device, dtype = model.device, torch.bfloat16 if model.bf16 else torch.float32
    prepared = [model.prepare(sample) for sample in samples]
    operations_each = needed(model, prepared) / len(samples)
    rates: dict[str, list[float]] = {}

    def note(name: str, value: float) -> float:
        rates.setdefault(name, []).append(value)
        return value

    for turn in range(rounds + 1):
        if turn == 0:  # warms up
            encode(model, prepared[:CHUNK])
            embedder(model, samples[:CHUNK])
            if settings is not None:
                worker(settings, model, samples[:CHUNK])
            continue
        limit = note("product, TFLOP a second", product_rate(device, dtype) / 1e12)
        encoded = note("encode, records a second", len(samples) / encode(model, prepared))
        offline = note("offline, records a second", len(samples) / embedder(model, samples))
        for name, rate in (("encode", encoded), ("offline", offline)):
            note(f"{name} / floor", rate * operations_each / 1e12 / limit)
        if settings is not None:
            took_s = worker(settings, model, samples)
            note("stream, records a second", len(samples) / took_s)
            note("stream / offline", len(samples) / took_s / offline)
    row = {name: round(statistics.median(values), 3) for name, values in rates.items()}
    if settings is not None:  # apart, since watching takes time
        with watched(device) as busy:
            worker(settings, model, samples)
        row["busy while streaming"] = round(busy(), 3)
    return {"precision": str(dtype).removeprefix("torch."), **row}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--only", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--records", type=int, default=2000, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12, help="of the encoders of the size base")
    given = parser.parse_args(argv)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA GPU here: --device cpu shows that it runs, not how fast")
    began = time.monotonic()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folders = checkpoints(Path(place), layers=given.layers)
        try:
            with (
                services(Settings(home=Path(place)), Path(place) / "services") as settings,
                isolated_decoding(settings),
            ):
                tune_interpreter()  # as `braid embed` does
                rows = _rows(given, folders, Path(place), settings)
        except EmbeddedError as error:  # a machine that can get no broker
            rows = _rows(given, folders, Path(place), None)
            rows["stream"] = {"error": str(error)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report = {
        "benchmark": "gpu",
        "device": name,
        "machine": machine(),
        "torch": torch.__version__,
        "records": given.records,
        "rounds": given.rounds,
        "seconds": round(time.monotonic() - began),
        "rows": rows,
    }
    return finish(report, given.json)


def _rows(
    given: Any, folders: Mapping[str, Path], place: Path, settings: Settings | None
) -> dict[str, Any]:
    rows = {}
    for part in given.only:
        model = version(part, folders, place / "versions" / part, given.device)
        samples = samples_of(ENCODERS[part], given.records)
        rows[part] = measure(model, samples, settings, given.rounds)
        del model
    return rows


if __name__ == "__main__":
    main()
