"""Whether the stream scales: more workers, more records, longer texts; with the null model.

    python -m benchmarks.scaling [--records 80000] [--rounds 3] [--json]

Workers are processes of `braid embed` on 8 partitions of Apache Kafka (the broker that
KAFKA_BOOTSTRAP names, else the embedded one). All records of a run are in one transaction, spread
evenly: nobody sees one before its commit, where the time begins; it ends when the group has
committed all of them. Each round starts one worker, which takes a tenth of the records, all, and a
fortieth of them with texts of 1,000 and of 10,000 characters; then a second worker, and two more,
which take all again. Cores in use are those of the whole machine, the broker and other work
included.

While cores are left, n workers should do n times what one does; what one does and uses says where
the cores are full, and what is expected of n then.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from braid.stream.kafka.admin import Admin
from braid.stream.kafka.schemas import Record, encode_record
from braid.stream.kafka.topics import ensure
from braid.stream.local.fleet import Fleet, services
from braid.stream.settings import Settings

from .common import arguments
from .vectors import finish_here

WORKERS = (1, 2, 4)
PARTITIONS = 8
TEN, FORTY = 10, 40
SHORT, LONG = "word " * 200, "word " * 2000  # texts of 1,000 and 10,000 characters
WARM = 400  # records of the first run of a fleet, which is not counted
TIMEOUT_S = 180.0
CORES = len(os.sched_getaffinity(0))


class Run(NamedTuple):
    """What one run took: seconds, and cores in use on average."""

    seconds: float
    cores: float


class Stream:
    """Topics of one round, and the records that have gone through them.

    Args:
        settings: with a prefix that nobody else has.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topic("records")
        self._group = settings.group(settings.generation)
        self._admin = Admin(settings)
        self._groups = AdminClient({"bootstrap.servers": settings.kafka.bootstrap})
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka.bootstrap,
                "transactional.id": f"{settings.prefix}bench",
                "linger.ms": 20,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._producer.init_transactions()
        self._sent = 0
        self._ends = [0] * PARTITIONS  # behind the last record of each partition

    def wait_for(self, fleet: Fleet, workers: int) -> None:
        """Until so many workers share all partitions."""
        _until(fleet, lambda: self._shared_by() == workers)

    def _shared_by(self) -> int:
        group = self._groups.describe_consumer_groups([self._group])[self._group].result()
        owned = [len(member.assignment.topic_partitions) for member in group.members]
        return len(owned) if sum(owned) == PARTITIONS and 0 not in owned else 0

    def run(self, fleet: Fleet, count: int, text: str) -> Run:
        """Send so many records, and wait until they are done."""
        if self._sent:  # the transaction before has left a marker, which has an offset
            self._ends = [end + 1 for end in self._ends]
        self._producer.begin_transaction()
        for number in range(count):
            record = Record(id=f"r{self._sent + number}", ts=0, text=f"{number} {text}")
            self._producer.produce(
                self._topic,
                key=record.id,
                value=encode_record(record),
                partition=number % PARTITIONS,
            )
            self._producer.poll(0)
            self._ends[number % PARTITIONS] += 1
        self._producer.flush()
        self._sent += count
        before, began = _busy_s(), time.perf_counter()
        self._producer.commit_transaction()
        _until(fleet, self._all_done)
        seconds = time.perf_counter() - began
        return Run(seconds, (_busy_s() - before) / seconds)

    def _all_done(self) -> bool:
        committed = self._admin.committed(self._group, self._topic, PARTITIONS)
        return all(committed.get(number, 0) >= end for number, end in enumerate(self._ends))

    def close(self) -> None:
        """Delete the topics."""
        names = self._admin.partition_counts()
        self._admin.delete([name for name in names if name.startswith(self._settings.prefix)])


def _until(fleet: Fleet, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not done():
        fleet.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"not done within {TIMEOUT_S:g} s")
        time.sleep(0.01)


def _busy_s() -> float:
    """Seconds that the machine's cores have been at work, all of them together (Linux)."""
    user, nice, system, _, _, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def one_round(settings: Settings, logs: Path, count: int) -> dict[str, Run]:
    """The runs of one round by name."""
    ensure(settings, settings.generation)
    stream, runs = Stream(settings), {}
    with Fleet(settings, logs) as fleet:
        for workers in WORKERS:
            while len(fleet.children) < workers:
                fleet.start("embed")
            stream.wait_for(fleet, workers)
            stream.run(fleet, WARM, "warm")
            if workers == 1:
                runs["a tenth"] = stream.run(fleet, count // TEN, "")
                runs["short texts"] = stream.run(fleet, count // FORTY, SHORT)
                runs["long texts"] = stream.run(fleet, count // FORTY, LONG)
            runs[_name(workers)] = stream.run(fleet, count, "")
    stream.close()
    return runs


def _name(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}"


def summary(rounds: Sequence[Mapping[str, Run]], count: int) -> dict[str, Any]:
    """Rows: rates, cores in use, and what more workers, records and text change."""
    one, *_ = names = [_name(workers) for workers in WORKERS]
    rows: dict[str, Any] = {
        name: _of_workers([(runs[one], runs[name]) for runs in rounds], workers, count)
        for name, workers in zip(names, WORKERS, strict=True)
    }
    for title, before, after in (
        ("10 times the records", "a tenth", one),
        ("10 times the text", "short texts", "long texts"),
    ):
        ratios = [TEN * runs[before].seconds / runs[after].seconds for runs in rounds]
        rows[title] = {"rate / before": round(statistics.median(ratios), 3)}
    return rows


def _of_workers(pairs: Sequence[tuple[Run, Run]], workers: int, count: int) -> dict[str, float]:
    """The row of so many workers, from runs of one and of them in the same round."""
    times = [one.seconds / many.seconds for one, many in pairs]
    # As far as there are cores for them.
    expected = [min(workers, max(1.0, CORES / one.cores)) for one, _ in pairs]
    cores_ms = [1000 * many.cores * many.seconds / count for _, many in pairs]
    return {
        "records a second": round(count / statistics.median(many.seconds for _, many in pairs)),
        "cores in use": round(statistics.median(many.cores for _, many in pairs), 2),
        "core ms a record": round(statistics.median(cores_ms), 4),
        "times one worker": round(statistics.median(times), 3),
        "expected": round(statistics.median(expected), 3),
        "times one worker / expected": round(
            statistics.median(a / b for a, b in zip(times, expected, strict=True)), 3
        ),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--records", type=int, default=80_000, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = Settings(home=home, model={"spec": "null:64"}, kafka={"partitions": PARTITIONS})
        with services(settings, home / "services") as run:
            for number in range(given.rounds):
                own = run.replace(prefix=f"c{uuid.uuid4().hex[:8]}-")
                rounds.append(one_round(own, home / f"logs-{number}", given.records))
    rows = summary(rounds, given.records)
    return finish_here("scaling", given, rows)


if __name__ == "__main__":
    main()
