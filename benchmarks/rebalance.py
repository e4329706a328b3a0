"""What partitions that stay where they are notice of workers that come and go.

    python -m benchmarks.rebalance [--rounds 5] [--rate 240] [--encode 1.0] [--json]

Three workers share twelve partitions, with the null model and a device that takes `--encode`
seconds for each micro-batch. Records come at `--rate` a second. In each round a fourth worker joins
and leaves again, by the classic protocol (eager, round robin) and by that of KIP-848
(`kafka.group_protocol = consumer`), in turns. A gap is the time between two outputs of a partition
as a read_committed consumer of `vectors` gets them. Of each round the longest one is taken: of the
partitions that one worker owns from before the change to after it, of those that move, and, before
the change, of any. The workers are threads of one process, so that the start of one takes no CPU
from the others.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer

from braid.encoders.model.null import NullModel
from braid.encoders.types import Embedding, Prepared
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.client import PARTITIONER
from braid.stream.kafka.schemas import PROGRESS_KEY, Record, encode_record
from braid.stream.kafka.topics import ensure
from braid.stream.local.fleet import services
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.worker.worker import Worker

from .common import arguments
from .vectors import finish_here

PROTOCOLS = ("classic", "consumer")
WORKERS, PARTITIONS = 3, 12
CALM_S, AFTER_S = 5.0, 8.0  # before a change, and after it: what is looked at
TIMEOUT_S = 120.0


class SlowModel(NullModel):
    """The null model on a device that takes a while."""

    def __init__(self, encode_s: float) -> None:
        super().__init__(16)
        self._encode_s = encode_s

    def encode(self, samples: Sequence[Prepared]) -> list[Embedding]:
        time.sleep(self._encode_s)
        return super().encode(samples)


class Member:
    """A worker on a thread."""

    def __init__(self, settings: Settings, slot: int, encode_s: float) -> None:
        self.worker = Worker(
            settings,
            SlowModel(encode_s),
            generation=settings.generation,
            transactional_id=f"{settings.group(settings.generation)}-{slot}",
            metrics=WorkerMetrics(),
        )
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()

    def stop(self) -> None:
        self.worker.stop()
        self.thread.join()


class Outputs:
    """When outputs were committed, by partition, and how often each record's vector was."""

    def __init__(self, settings: Settings) -> None:
        self.at: dict[int, list[float]] = defaultdict(list)
        self.times: Counter[bytes] = Counter()
        self._ending = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.kafka.bootstrap,
                "group.id": f"rebalance-{uuid.uuid4().hex}",
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
            }
        )
        self._consumer.subscribe([settings.vectors_topic(settings.generation)])
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def longest(self, partitions: Sequence[int], since: float, until: float) -> float:
        """The longest gap of any of these, in seconds."""
        gaps = [0.0]
        for number in partitions:
            times = [since, *(at for at in self.at[number] if since <= at <= until), until]
            gaps += [later - earlier for earlier, later in pairwise(times)]
        return max(gaps)

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._ending.is_set():
            messages = self._consumer.consume(500, timeout=0.01)
            now = time.perf_counter()
            for message in messages:
                if message.error() is None and message.key() != PROGRESS_KEY:
                    self.at[message.partition() or 0].append(now)
                    self.times[message.key() or b""] += 1


class Load:
    """Sends records at a rate, on a thread."""

    def __init__(self, settings: Settings, rate: float) -> None:
        self._settings, self._rate = settings, rate
        self.sent = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self._settings.kafka.bootstrap,
                "partitioner": PARTITIONER,
                "linger.ms": 5,
            }
        )
        began = time.perf_counter()
        while not self._ending.is_set():
            due = int((time.perf_counter() - began) * self._rate)
            for number in range(self.sent, due):
                record = Record(id=f"r{number}", ts=number, text=f"record {number}")
                producer.produce(
                    self._settings.topic("records"),
                    key=record.id.encode(),
                    value=encode_record(record),
                    partition=number % PARTITIONS,
                )
            self.sent = max(self.sent, due)
            producer.poll(0)
            time.sleep(0.01)
        producer.flush()


def owners(members: Mapping[int, Member]) -> dict[int, int]:
    """Partition to the worker that owns it."""
    return {number: slot for slot, each in members.items() for number in each.worker.owned}


def settled(members: Mapping[int, Member]) -> dict[int, int]:
    """The owners, once each worker has some and all partitions are owned."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        now = owners(members)
        if len(now) == PARTITIONS and set(now.values()) == set(members):
            return now
        if time.monotonic() > until or not all(m.thread.is_alive() for m in members.values()):
            raise RuntimeError(f"the partitions were not shared: {now}")
        time.sleep(0.02)


@contextmanager
def running(settings: Settings, rate: float, encode_s: float) -> Iterator[Any]:
    """The workers, a load and its outputs; at the end each record must have one vector."""
    members = {slot: Member(settings, slot, encode_s) for slot in range(WORKERS)}
    outputs, load = Outputs(settings), None
    try:
        settled(members)
        load = Load(settings, rate)
        yield members, outputs
        load.close()
        until = time.monotonic() + TIMEOUT_S
        while len(outputs.times) < load.sent and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.0)  # for what came twice
        if len(outputs.times) != load.sent or set(outputs.times.values()) != {1}:
            twice = sum(times > 1 for times in outputs.times.values())
            raise RuntimeError(
                f"{load.sent} sent, {len(outputs.times)} came, {twice} of them twice"
            )
    finally:
        if load is not None:
            load.close()
        outputs.close()
        for member in members.values():
            member.stop()


def round_of(settings: Settings, rate: float, encode_s: float) -> dict[str, float]:
    """The longest gaps while a worker joins and while it leaves."""
    figures: dict[str, float] = {}
    with running(settings, rate, encode_s) as (members, outputs):
        time.sleep(CALM_S)
        for change in ("join", "leave"):
            time.sleep(CALM_S)
            before, since = settled(members), time.perf_counter()
            calm = outputs.longest(range(PARTITIONS), since - CALM_S, since)
            figures["calm"] = max(calm, figures.get("calm", 0.0))
            if change == "join":
                members[WORKERS] = Member(settings, WORKERS, encode_s)
            else:
                members.pop(WORKERS).stop()
            after = settled(members)
            figures[f"{change}, settled"] = time.perf_counter() - since
            time.sleep(AFTER_S)
            if settled(members) != after:
                raise RuntimeError("the partitions moved once more")
            until = time.perf_counter()
            stay = [number for number in before if before[number] == after[number]]
            move = [number for number in before if before[number] != after[number]]
            figures[f"{change}, unmoved"] = outputs.longest(stay, since, until)
            figures[f"{change}, moved"] = outputs.longest(move, since, until)
            figures[f"{change}, partitions moved"] = len(move)
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--rounds", type=int, default=5, help="of each protocol, in turns")
    parser.add_argument("--rate", type=float, default=240.0, help="records a second")
    parser.add_argument("--encode", type=float, default=1.0, help="seconds of a micro-batch")
    parser.add_argument("--session", type=float, default=3.0, help="kafka.session_timeout_s")
    given = parser.parse_args(argv)
    rounds: dict[str, list[dict[str, float]]] = {protocol: [] for protocol in PROTOCOLS}
    with (
        tempfile.TemporaryDirectory() as folder,
        services(Settings(home=Path(folder)), Path(folder) / "services") as settings,
    ):
        for _ in range(given.rounds):
            for protocol in PROTOCOLS:
                run = settings.replace(
                    prefix=f"b{uuid.uuid4().hex[:8]}-",
                    kafka={
                        "partitions": PARTITIONS,
                        "group_protocol": protocol,
                        "session_timeout_s": given.session,
                    },
                )
                ensure(run, run.generation)
                Admin(run).set_group_timeouts(run.group(run.generation), given.session)
                rounds[protocol].append(round_of(run, given.rate, given.encode))
                admin = Admin(run)
                admin.delete(
                    [one for one in admin.partition_counts() if one.startswith(run.prefix)]
                )
    rows: dict[str, Any] = {
        protocol: {
            name: {
                "median": round(statistics.median(one[name] for one in of), 3),
                "max": round(max(one[name] for one in of), 3),
            }
            for name in of[0]
        }
        for protocol, of in rounds.items()
    }
    return finish_here("rebalance", given, rows)


if __name__ == "__main__":
    main()
