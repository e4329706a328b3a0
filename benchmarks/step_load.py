"""A worker with a latency target under a load that steps up and down: produced to published.

    python -m benchmarks.step_load [--target 1000] [--seconds 30] [--burst 600] [--json]

A `braid embed` with the demo preset's encoders, texts of 3 to 200 words, and `batch.latency_ms` at
`--target`. First `--burst` texts at once: the rate at which their vectors are committed is the
maximum. Then 10 %, 100 % and 10 % of it, for `--seconds` each, at random (Poisson) times. A record
is published when a read_committed consumer has its vector; times are from before sending it. Beside
them, whether and why the worker says that it misses the target, which is one from poll to
publication: what it cannot carry waits in Kafka.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from confluent_kafka import Consumer

from braid.stream.kafka.producer import Producer
from braid.stream.kafka.schemas import PROGRESS_KEY
from braid.stream.kafka.topics import ensure
from braid.stream.local.fleet import Fleet, services
from braid.stream.monitoring.heartbeat import workers
from braid.stream.settings import Settings

from .common import arguments
from .throughput import demo_model, samples_of
from .vectors import finish_here, percentiles

LOADS = (10, 100, 10)  # per cent of the maximum
DRAIN_S = 120.0
WARM = 64
CALM_S = 3.0  # between two phases


class Published:
    """When each record's vector was committed, by id, as a consumer on a thread sees it."""

    def __init__(self, settings: Settings) -> None:
        self.at: dict[str, float] = {}
        self._ending = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.kafka.bootstrap,
                "group.id": f"step-{uuid.uuid4().hex}",
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
            }
        )
        self._consumer.subscribe([settings.vectors_topic(settings.generation)])
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def wait(self, ids: Sequence[str]) -> None:
        """Until all have been published."""
        until = time.monotonic() + DRAIN_S
        while not all(id_ in self.at for id_ in ids):
            if time.monotonic() > until:
                raise RuntimeError("records were not published in time")
            time.sleep(0.02)

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._ending.is_set():
            messages = self._consumer.consume(500, timeout=0.02)
            now = time.perf_counter()
            for message in messages:
                if message.error() is None and message.key() != PROGRESS_KEY:
                    self.at.setdefault((message.key() or b"").decode(), now)


class Load:
    """Sends texts; notes when."""

    def __init__(self, settings: Settings, published: Published) -> None:
        self._settings, self._published = settings, published
        self._texts = [sample.text or "" for sample in samples_of("text", 2000)]
        self.sent: dict[str, float] = {}

    def burst(self, name: str, count: int) -> float:
        """So many at once; seconds until the last is published."""
        began = time.perf_counter()
        ids = asyncio.run(self._send(name, [0.0] * count))
        self._published.wait(ids)
        return max(self._published.at[id_] for id_ in ids) - began

    def at_rate(self, name: str, rate: float, seconds: float) -> list[float]:
        """The seconds that each record of a phase took."""
        chance, now = random.Random(name), 0.0
        times = []
        while (now := now + chance.expovariate(rate)) < seconds:
            times.append(now)
        ids = asyncio.run(self._send(name, times))
        self._published.wait(ids)
        return [self._published.at[id_] - self.sent[id_] for id_ in ids]

    async def _send(self, name: str, times: Sequence[float]) -> list[str]:
        ids = [f"{name}-{number}" for number in range(len(times))]
        async with Producer(self._settings) as producer:
            began = time.perf_counter()
            for number, (id_, at) in enumerate(zip(ids, times, strict=True)):
                if (ahead := began + at - time.perf_counter()) > 0:
                    await asyncio.sleep(ahead)
                self.sent[id_] = time.perf_counter()
                text = f"{number} {self._texts[number % len(self._texts)]}"
                await producer.send(id=id_, text=text, wait=False)
        return ids


@contextmanager
def said(settings: Settings) -> Iterator[list[str]]:
    """What the worker says of its target while the block runs."""
    reasons: list[str] = []
    ending = threading.Event()

    def listen() -> None:
        while not ending.wait(1.0):
            for worker in (workers(settings) or {}).values():
                if why := (worker.get("latency") or {}).get("missed"):
                    reasons.append(why)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield reasons
    finally:
        ending.set()
        thread.join()


def measure(settings: Settings, fleet: Fleet, given: Any) -> dict[str, Any]:
    published = Published(settings)
    load = Load(settings, published)
    try:
        fleet.start("embed")
        load.burst("warm", WARM)
        rate = given.burst / load.burst("burst", given.burst)
        rows: dict[str, Any] = {"maximum": {"records a second": round(rate, 1)}}
        for number, per_cent in enumerate(LOADS, start=1):
            time.sleep(CALM_S)
            with said(settings) as reasons:
                taken = load.at_rate(f"phase{number}", per_cent / 100 * rate, given.seconds)
            fleet.check()
            figures = percentiles(taken)
            rows[f"phase {number}, {per_cent} %"] = {
                "records": len(taken),
                **figures,
                "p99 / target": round(figures["p99_ms"] / given.target, 3),
                "said": reasons[-1] if reasons else None,
                "kept or said": int(figures["p99_ms"] <= given.target or bool(reasons)),
            }
        return rows
    finally:
        published.close()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--target", type=float, default=1000.0, help="batch.latency_ms")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a phase")
    parser.add_argument("--burst", type=int, default=600, help="texts that measure the maximum")
    given = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        home = Path(folder)
        demo_model(home / "version")
        settings = Settings(
            home=home,
            model={"spec": str(home / "version")},
            prefix=f"s{uuid.uuid4().hex[:8]}-",
            batch={"latency_ms": given.target},
            cache={"local_bytes": 0},
        )
        with services(settings, home / "services") as run:
            ensure(run, run.generation)
            with Fleet(run, home / "logs") as fleet:
                rows = measure(run, fleet, given)
    return finish_here("step_load", given, rows)


if __name__ == "__main__":
    main()
