"""What the stream costs without an encoder: the worker with the null model, against a bare loop.

    python -m benchmarks.null_worker [--records 20000] [--rounds 3] [--json]

The bare loop consumes, builds two messages of the same sizes for each record and commits
transactions, with the same clients (confluent-kafka) and the same pipelining: the next batch is
consumed while one commits. It decodes and checks nothing. All records are sent before a run starts,
runs take turns, each in a group and on output topics of its own. CPU time is of the whole process
but for what its producer of records used.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from braid.encoders.model.null import NullModel
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.topics import ensure
from braid.stream.liveness.interpreter import tune_interpreter
from braid.stream.local.fleet import services
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.worker.worker import Worker

from .common import arguments
from .poison import send
from .vectors import finish_here

TIMEOUT_S = 600.0
TRANSACTION = 1024  # records, as many as a worker has in flight
VALUES = (b"v" * 420, b"p" * 380)  # sizes of the null worker's vectors and predictions


def worker(settings: Settings, count: int) -> tuple[float, float]:
    """Seconds and CPU seconds of a worker, from its assignment to the commit of the last record."""
    metrics = WorkerMetrics()
    member = Worker(
        settings,
        NullModel(64),
        generation=settings.generation,
        transactional_id=f"{settings.group(settings.generation)}-bench",
        metrics=metrics,
    )
    counts = metrics.of(settings.generation)
    thread = threading.Thread(target=member.run)
    thread.start()
    try:
        while not member.owned:
            time.sleep(0.001)
        began, cpu_s = time.perf_counter(), time.process_time()
        deadline = time.monotonic() + TIMEOUT_S
        while counts.snapshot()["records"] != count:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the worker ended, or takes too long")
            time.sleep(0.005)
        return time.perf_counter() - began, time.process_time() - cpu_s
    finally:
        member.stop()
        thread.join()


def bare(settings: Settings, count: int) -> tuple[float, float]:
    """The same of the bare loop."""
    common = {"bootstrap.servers": settings.kafka.bootstrap}
    consumer = Consumer(
        common
        | {
            "group.id": f"bare-{uuid.uuid4().hex}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 50,
        }
    )
    producer = Producer(common | {"transactional.id": f"bare-{uuid.uuid4().hex}", "linger.ms": 1})
    producer.init_transactions()
    assigned = threading.Event()
    consumer.subscribe([settings.topic("records")], on_assign=lambda *_: assigned.set())
    read: list[Any] = []
    while not assigned.is_set():
        read += consumer.consume(1, timeout=0.01)
    began, cpu_s = time.perf_counter(), time.process_time()
    committing: threading.Thread | None = None
    total = 0
    while total < count:
        while len(read) < TRANSACTION and total + len(read) < count:
            read += [one for one in consumer.consume(512, timeout=0.05) if one.error() is None]
            if committing is None or not committing.is_alive():
                break
        if committing is not None:
            committing.join()
        if read:
            batch, read, total = read, [], total + len(read)
            committing = threading.Thread(
                target=_commit, args=(settings, consumer, producer, batch)
            )
            committing.start()
    assert committing is not None
    committing.join()
    took = time.perf_counter() - began, time.process_time() - cpu_s
    consumer.close()
    return took


def _commit(settings: Settings, consumer: Consumer, producer: Producer, batch: list[Any]) -> None:
    topics = (settings.vectors_topic(settings.generation), settings.topic("predictions"))
    producer.begin_transaction()
    offsets: dict[int, int] = {}
    for message in batch:
        for topic, value in zip(topics, VALUES, strict=True):
            producer.produce(topic, key=message.key(), value=value, partition=message.partition())
        offsets[message.partition()] = message.offset() + 1
    producer.flush()
    positions = [TopicPartition(batch[0].topic(), part, at) for part, at in offsets.items()]
    producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
    producer.commit_transaction()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--records", type=int, default=20_000, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    tune_interpreter()  # as `braid embed` does
    ways = {"bare loop": bare, "worker": worker}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    sent = [{"id": f"r{n}", "text": f"a record number {n}"} for n in range(given.records)]
    with (
        tempfile.TemporaryDirectory() as folder,
        services(Settings(home=Path(folder)), Path(folder) / "services") as settings,
    ):
        for _ in range(given.rounds):
            for name, way in ways.items():
                run = settings.replace(prefix=f"n{uuid.uuid4().hex[:8]}-")
                ensure(run, run.generation)
                send(run, sent)
                seconds[name].append(way(run, given.records))
                admin = Admin(run)
                admin.delete(
                    [one for one in admin.partition_counts() if one.startswith(run.prefix)]
                )
    rows: dict[str, Any] = {
        name: {
            "records a second": round(given.records / statistics.median(s for s, _ in times)),
            "CPU ms a record": round(
                1000 * statistics.median(cpu_s for _, cpu_s in times) / given.records, 4
            ),
        }
        for name, times in seconds.items()
    }
    pairs = zip(seconds["bare loop"], seconds["worker"], strict=True)
    ratios = [plain[0] / ours[0] for plain, ours in pairs]
    rows["worker / bare loop"] = {"median": round(statistics.median(ratios), 3)}
    return finish_here("null_worker", given, rows)


if __name__ == "__main__":
    main()
