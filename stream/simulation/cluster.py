"""A cluster of workers, brokers and index nodes as a discrete-event model of micro-batches.

A worker takes a batch from one of its partitions and has DEPTH of them in flight: its own thread
(under the interpreter's lock, on a core of its machine), the device, a broker, the end of the
transaction, and the index node, which reads all vectors. Each is a queue. Texts, sizes and the
balance of keys are not modelled: every record costs the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .events import Call, Events, Server

DEPTH = 3  # batches of a worker: one each in its thread, on the device and in a transaction
MOST_BATCHES = 20_000  # of a simulation; larger clusters and topics are played in larger batches


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds of each step.

    Attributes:
        worker_s: of a core for a record, on the worker's own thread.
        encode_s: of the device for a record; 0: it is in worker_s.
        broker_s: of a core of a broker for a record.
        transaction_s: between a batch's last message and its commit, in which nothing is at work.
        index_s: of an index node for a vector; 0: not modelled.
        batch: records of a micro-batch.
    """

    # benchmarks/RESULTS.md, "The null worker": 20,102 records a second, and below it 22.5 µs of the
    # broker's CPU a record with lz4. transaction_s is assumed; it matters for the latency alone.
    worker_s: float = 1 / 20_102
    encode_s: float = 0.0
    broker_s: float = 22.5e-6
    transaction_s: float = 0.01
    index_s: float = 0.0
    batch: int = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What is simulated.

    Attributes:
        cores: of a worker's machine, shared by the workers on it.
        per_machine: workers on a machine.
        brokers: each on a machine with `cores`; 0: one on the workers' machines.
        rate: records that arrive a second; 0: all wait in Kafka from the beginning.
        rebuild: records that a second generation embeds anew on the same machines.
        rebuild_share: of the time, while live records wait (`refresh.backfill_duty_cycle`).
        lost_at_s: when a broker is lost; its partitions have no leader for failover_s.

    Raises:
        ConfigError: no worker, record, partition or core; a lost broker that is the only one.
    """

    workers: int
    records: int
    partitions: int = 64
    cores: int = 2
    per_machine: int = 1
    brokers: int = 3
    rate: float = 0.0
    rebuild: int = 0
    rebuild_share: float = 0.5
    lost_at_s: float | None = None
    failover_s: float = 10.0

    def __post_init__(self) -> None:
        if min(self.workers, self.records, self.partitions, self.cores, self.per_machine) < 1:
            raise ConfigError("workers, records, partitions and cores must be at least 1")
        if self.lost_at_s is not None and self.brokers < 2:
            raise ConfigError("a broker can be lost only where there is another one")


class _Stream:
    """The records of one generation: how many of each partition are taken and done."""

    def __init__(self, records: int, partitions: int, rate: float) -> None:
        self._each = [records // partitions + (n < records % partitions) for n in range(partitions)]
        self.taken, self.left, self.done = [0] * partitions, records, 0
        self._rate = rate / partitions
        self.ended_s, self.most_behind = 0.0, 0

    def take(self, partition: int, most: int, now: float) -> int:
        came = self._each[partition]
        if self._rate:
            came = min(came, int(self._rate * now) + 1)
        count = min(most, came - self.taken[partition])
        self.taken[partition] += count
        self.left -= count
        return count

    def exhausted(self, partition: int) -> bool:
        return self.taken[partition] == self._each[partition]

    def end(self, count: int, now: float) -> None:
        self.done, self.ended_s = self.done + count, now
        total = sum(self._each)
        came = min(total, self._rate * len(self._each) * now) if self._rate else total
        self.most_behind = max(self.most_behind, int(came) - self.done)


class _Simulation:
    def __init__(self, cluster: Cluster, costs: Costs) -> None:
        self.cluster, self.costs, self.events = cluster, costs, Events()
        machines = math.ceil(cluster.workers / cluster.per_machine)
        self.machines = [Server(self.events, cluster.cores) for _ in range(machines)]
        own = [Server(self.events, cluster.cores) for _ in range(cluster.brokers)]
        self.brokers = own or self.machines
        self.index = Server(self.events)
        self.live = _Stream(cluster.records, cluster.partitions, cluster.rate)
        self.rebuilt = _Stream(cluster.rebuild, cluster.partitions, 0.0)
        fewest = math.ceil((cluster.records + cluster.rebuild) / MOST_BATCHES)
        self.batch = max(costs.batch, fewest)
        self.workers = [
            _Worker(self, number, stream, rests=stream is self.rebuilt)
            for stream in ((self.live, self.rebuilt) if cluster.rebuild else (self.live,))
            for number in range(cluster.workers)
        ]

    def publish(self, partition: int, seconds: float, then: Call) -> None:
        """On the partition's leader, which may be lost."""
        lost_s, count = self.cluster.lost_at_s, len(self.brokers)
        leader = partition % count
        if lost_s is not None and self.events.now >= lost_s and leader == count - 1:
            wait_s = lost_s + self.cluster.failover_s - self.events.now
            if wait_s > 0:
                self.events.after(wait_s, lambda: self.publish(partition, seconds, then))
                return
            leader = partition // count % (count - 1)
        self.brokers[leader].run(seconds, then)

    def run(self) -> dict[str, Any]:
        for worker in self.workers:
            worker.look()
        self.events.run()
        cluster, took_s = self.cluster, self.live.ended_s
        busy = self._utilisation(self.events.now)
        report = {
            "workers": cluster.workers,
            "records a second": round(cluster.records / took_s, 1),
            "seconds": round(took_s, 1),
            "records behind, most": self.live.most_behind,
            "bottleneck": self._bottleneck(busy),
            "utilisation": {name: round(share, 2) for name, share in busy.items()},
        }
        if cluster.rebuild:
            report["rebuild, seconds"] = round(self.rebuilt.ended_s, 1)
        return report

    def _utilisation(self, seconds: float) -> dict[str, float]:
        def share(servers: list[Server]) -> float:
            return sum(one.busy_s for one in servers) / seconds / sum(o.capacity for o in servers)

        shares = {
            "workers' threads": share([worker.thread for worker in self.workers]),
            "workers' machines": share(self.machines),
        }
        if self.costs.encode_s:
            shares["devices"] = share([worker.device for worker in self.workers])
        if self.brokers is not self.machines:
            lost_s, whole = self.cluster.lost_at_s, share(self.brokers)
            gone = 0.0 if lost_s is None else max(0.0, 1 - lost_s / seconds) / len(self.brokers)
            shares["brokers"] = whole / (1 - gone)
        if self.costs.index_s:
            shares["index node"] = share([self.index])
        return shares

    def _bottleneck(self, busy: Mapping[str, float]) -> str:
        name = max(busy, key=lambda one: busy[one])
        if busy[name] >= 0.8:
            return name
        if self.cluster.workers > self.cluster.partitions:
            return "partitions"
        return "arrivals" if self.cluster.rate else "waiting for transactions"


class _Worker:
    def __init__(self, run: _Simulation, number: int, stream: _Stream, *, rests: bool) -> None:
        cluster = run.cluster
        self._run, self._stream, self._rests = run, stream, rests
        self._machine = run.machines[number // cluster.per_machine]
        self.thread, self.device = Server(run.events), Server(run.events)
        self._partitions = range(number, cluster.partitions, cluster.workers)
        self._next, self._open, self._busy, self._waits = 0, 0, False, False

    def look(self) -> None:
        """Take a batch, if the thread is free and few are in flight."""
        self._waits = False
        if self._busy or self._open == DEPTH or not self._partitions:
            return
        events, costs = self._run.events, self._run.costs
        for _ in self._partitions:
            partition = self._partitions[self._next % len(self._partitions)]
            self._next += 1
            if count := self._stream.take(partition, self._run.batch, events.now):
                break
        else:
            if not all(map(self._stream.exhausted, self._partitions)):
                self._later(0.05)
            return
        self._busy, self._open = True, self._open + 1
        work_s = costs.worker_s * count
        self.thread.busy_s += work_s
        self._machine.run(work_s, lambda: self._decoded(partition, count))

    def _later(self, seconds: float) -> None:
        if not self._waits:
            self._waits = True
            self._run.events.after(seconds, self.look)

    def _decoded(self, partition: int, count: int) -> None:
        run, costs = self._run, self._run.costs
        self._busy = False
        took_s = max(costs.worker_s, costs.encode_s) * count
        if self._rests and run.live.left:
            self._later(took_s * (1 / run.cluster.rebuild_share - 1))
        else:
            self.look()

        def encoded() -> None:
            run.publish(partition, costs.broker_s * count, published)

        def published() -> None:
            run.events.after(costs.transaction_s, committed)

        def committed() -> None:
            self._open -= 1
            self._stream.end(count, run.events.now)
            run.index.run(costs.index_s * count, lambda: None)
            if not self._waits:
                self.look()

        self.device.run(costs.encode_s * count, encoded)


def simulate(cluster: Cluster, costs: Costs) -> dict[str, Any]:
    """Throughput, lag and bottleneck of a cluster."""
    return _Simulation(cluster, costs).run()
