"""One history: workers of two generations, index nodes and trainers, and what befalls them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import obstore
import pytest

from braid.encoders.types import Cost, Embedding, Prepared, Sample
from braid.index.segments.live_store import LiveStore
from braid.stream.errors import StreamError
from braid.stream.index_node.reader import translate
from braid.stream.kafka import hanging, sink, transactions
from braid.stream.kafka.client import Message
from braid.stream.kafka.packing import pack
from braid.stream.registry import log as registry_log
from braid.stream.registry import object_store
from braid.stream.registry.handover import Handovers, Ownership
from braid.stream.registry.log import EventLog
from braid.stream.registry.object_store import ObjectStore
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings
from braid.stream.worker import batcher, bounded_sink, preparation, shared, source, worker
from tests.simulation.broker import Broker, Entry, Place
from tests.simulation.clients import Admin, Network, kind_of, lone_consumer
from tests.simulation.kernel import Clock, Kernel, Pool, Process, Thread
from tests.simulation.oracle import Oracle
from tests.simulation.store import Bucket, Obstore

SESSION_S = 4.0
FAULTS_UNTIL_S, CALM_S, END_S = 14.0, 30.0, 240.0
GENERATIONS = ("g0001", "g0002")
SETTINGS = Settings(
    kafka={"session_timeout_s": SESSION_S, "transaction_timeout_s": 8.0},
    worker={"publish_timeout_s": 7.0, "inflight_records": 8, "prepare_threads": 1},
    batch={"records": 3},
)
RECORDS = SETTINGS.topic("records")


class Quiet:
    """Metrics and times of steps that nobody reads."""

    def of(self, _: str) -> Quiet:
        return self

    def took(self, *args: object, **named: object) -> None: ...

    def __getattr__(self, _: str) -> Callable[..., None]:
        return self.took


class Model:
    """Embeds every record alike, in no time."""

    name, space, dim, preprocessing, lanes, modalities = "m-1", "s-1", 2, "p-1", 1, ("text",)
    manifest: Any = None
    vector = np.array([0.6, 0.8], np.float32)

    def prepare(self, sample: Sample) -> Prepared:
        size = len(sample.text or "")
        return Prepared(id=sample.id, cost=Cost(tokens=size), inputs={}, preprocessing="p-1")

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        return [Embedding(id=one.id, fused=self.vector, by={}, tasks={}) for one in prepared]

    encode_queries = encode

    def check(self) -> None: ...


class Simulation:
    """Everything around the code under test, replaced once for any number of histories."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.network: Network | None = None
        self.lines: list[str] = []  # the log of the last history
        self.obstore = Obstore(self.clock)

    @contextmanager
    def installed(self) -> Iterator[Simulation]:
        def network() -> Network:
            assert self.network is not None
            return self.network

        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        threads = SimpleNamespace(Thread=Thread)
        Thread.clock = Pool.clock = self.clock
        with pytest.MonkeyPatch.context() as patch:
            for module in (sink, hanging, bounded_sink, source, batcher):
                patch.setattr(module, "time", self.clock)
            for module in (bounded_sink, source, batcher):
                patch.setattr(module, "wait", self.clock.wait)
            for module in (sink, bounded_sink, transactions):
                patch.setattr(module, "threading", threads)
            for module in (sink, transactions):
                patch.setattr(
                    module, "create", lambda kind, settings, own: kind_of(network(), kind, own)
                )
            patch.setattr(hanging, "Admin", lambda settings: Admin(network()))
            patch.setattr(
                hanging,
                "lone_consumer",
                lambda settings, **config: lone_consumer(network(), settings, **config),
            )
            patch.setattr(shared, "Steps", lambda metrics, trace: metrics)
            patch.setattr(batcher, "DeviceThreads", Pool)
            patch.setattr(preparation, "ThreadPoolExecutor", Pool)
            patch.setattr(object_store, "ThreadPoolExecutor", Pool)
            patch.setattr(object_store, "_client", lambda *args: None)
            patch.setattr(registry_log, "random", _Random(self.clock))
            for name in ("put", "get", "list"):
                patch.setattr(obstore, name, getattr(self.obstore, name))
            try:
                yield self
            finally:
                logging.disable(level)

    def play(self, seed: int, *, verbose: bool = False) -> list[str]:
        """Play one history; its log, if it is verbose.

        Raises:
            AssertionError: the oracle disagrees.
        """
        kernel = self.clock.kernel = Kernel(seed, verbose=verbose)
        world = World(seed, kernel, self.clock, self.obstore)
        self.network = world.network
        try:
            world.play()
        except AssertionError as error:
            error.add_note(f"python -m tests.simulation --seed {seed}")
            raise
        finally:
            world.end()
            self.lines = kernel.log or []
        return self.lines


class _Random:
    """The module `random` of the code under test."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def uniform(self, low: float, high: float) -> float:
        return self._clock.kernel.rng.uniform(low, high)


@dataclass(frozen=True, kw_only=True)
class Theme:
    """What a history is about.

    Attributes:
        workers: of each generation.
        faults: names of methods of World.
        do: what trainers do.
        every_s: the mean time between records, and between what trainers do.
    """

    workers: tuple[int, ...] = ()
    trainers: int = 0
    faults: tuple[str, ...] = ()
    do: tuple[str, ...] = ("claim", "promote")
    every_s: float = 1.0


THEMES = {
    "network": Theme(workers=(1,), faults=("bad_network", "bad_network", "kill", "stop")),
    "broker": Theme(
        workers=(1,), faults=("restart_broker", "restart_broker", "kill", "bad_network")
    ),
    "group": Theme(workers=(2,), faults=("stop", "stop", "kill", "restart_broker", "bad_network")),
    "slow handover": Theme(
        workers=(1, 1), trainers=1, do=("hand_over",), faults=("slow_store",), every_s=0.4
    ),
    "handover": Theme(
        workers=(1, 1), trainers=1, do=("hand_over",), faults=("kill", "bad_network", "stop")
    ),
    "registry": Theme(
        trainers=3, faults=("bad_store", "bad_store", "store_away", "kill"), every_s=0.3
    ),
    "all": Theme(
        workers=(2, 1),
        trainers=2,
        do=("claim", "promote", "hand_over"),
        faults=("kill", "stop", "restart_broker", "bad_network", "bad_store", "store_away"),
    ),
}


def seeds(theme: str, count: int) -> Iterator[int]:
    """The first seeds of histories of a theme."""
    first = [*THEMES].index(theme)
    yield from range(first, first + count * len(THEMES), len(THEMES))


class World:
    """The processes of one history."""

    def __init__(self, seed: int, kernel: Kernel, clock: Clock, store: Obstore) -> None:
        self.kernel, self.clock = kernel, clock
        rng = self.rng = kernel.rng
        self.theme = theme = [*THEMES.values()][seed % len(THEMES)]
        self.partitions = rng.choice((1, 1, 2, 3))
        self.broker = Broker(kernel, self.partitions, transaction_timeout_s=8.0)
        self.network = Network(kernel, self.broker)
        self.bucket = store.bucket = Bucket(kernel)
        self.oracle = Oracle(self.broker, self.bucket, SETTINGS)
        self.generations = GENERATIONS[: len(theme.workers)]
        self.programs: dict[str, Callable[[], None]] = {}
        for generation, workers in zip(self.generations, theme.workers, strict=True):
            for slot in range(workers):
                name = f"{generation}-{slot}"
                self.programs[name] = partial(self._worker, generation, name)
            self.programs[f"index-{generation}"] = partial(self._index, generation)
        for number in range(theme.trainers):
            self.programs[f"trainer-{number}"] = partial(self._trainer, number)
        self.processes: dict[str, Process] = {}

    def play(self) -> None:
        kernel, rng = self.kernel, self.rng
        self.producer = kernel.spawn(Process("producer"), self._produce)
        for name in self.programs:
            kernel.at(rng.uniform(0, 3), self._start, name)
        for _ in range(rng.randrange(5)):
            fault = getattr(self, f"_{rng.choice(self.theme.faults)}")
            kernel.at(rng.uniform(1, FAULTS_UNTIL_S), fault)
        kernel.at(CALM_S, self._calm)
        kernel.at(CALM_S + 8, self.broker.show_hidden)
        until = CALM_S + 10.0
        kernel.run(until)
        while not kernel.failures and not self.oracle.complete(self.generations):
            until += 2.0
            assert until < END_S, f"not done: {self.oracle.missing(self.generations)}"
            kernel.run(until)
        if kernel.failures:
            raise kernel.failures[0]
        self.oracle.check(self.generations)

    def end(self) -> None:
        for process in list(self.processes.values()):
            self.kernel.kill(process)
        self.kernel.kill(self.producer.process)

    # What befalls them.

    def _start(self, name: str) -> None:
        self.kernel.note(f"{name} starts")
        process = self.processes[name] = Process(name)
        self.kernel.spawn(process, self.programs[name])

    def _kill(self, name: str | None = None) -> None:
        if not self.processes:
            return
        name = name or self.rng.choice(sorted(self.processes))
        process = self.processes[name]
        if not process.alive:
            return
        self.kernel.note(f"{name} is killed")
        self.kernel.kill(process)
        self._expire(process)
        self.kernel.after(self.rng.uniform(0.2, 2 * SESSION_S), self._start, name)

    def _stop(self) -> None:
        if not self.processes:
            return
        name = self.rng.choice(sorted(self.processes))
        seconds = self.rng.uniform(0.5, 3 * SESSION_S)
        self.kernel.note(f"{name} is stopped for {seconds:.1f} s")
        self.kernel.stop(self.processes[name], seconds)
        if seconds > SESSION_S:
            self._expire(self.processes[name])

    def _expire(self, process: Process) -> None:
        for group, member in process.members:
            self.kernel.after(SESSION_S, self.broker.leave, group, member)

    def _restart_broker(self) -> None:
        if not (self.broker.up and self.broker.leads):
            return
        rng, groups = self.rng, list(self.broker.groups)
        places: list[Place | str] = [*self.broker.logs]
        some = [place for place in places if rng.random() < 0.7]
        lost = rng.choice(([], places, [*places, *groups], groups, some, [*some, *groups]))
        down_s, leaderless_s = rng.uniform(0.2, 6), rng.uniform(0.1, 3)
        self.kernel.note(
            f"broker is killed, for {down_s:.1f} s; no leaders for {leaderless_s:.1f} s"
        )
        self.broker.restart(down_s, leaderless_s, lost)

    def _bad_network(self) -> None:
        self.network.bad = self.rng.choice((0.2, 0.5))
        self.kernel.note(f"{self.network.bad:.0%} of requests fail")
        self.kernel.after(self.rng.uniform(2, 12), setattr, self.network, "bad", 0.0)

    def _store_away(self) -> None:
        self.kernel.note("the object store is away")
        self.bucket.away = True
        self.kernel.after(self.rng.uniform(1, 8), setattr, self.bucket, "away", False)

    def _bad_store(self) -> None:
        self.bucket.bad = 0.4
        self.kernel.after(self.rng.uniform(1, 10), setattr, self.bucket, "bad", 0.0)

    def _slow_store(self) -> None:
        self.kernel.note("puts into the object store are slow")
        self.bucket.slow = True
        self.kernel.after(self.rng.uniform(3, 10), setattr, self.bucket, "slow", False)

    def _calm(self) -> None:
        """No more faults."""
        self.network.bad, self.bucket.bad, self.bucket.slow, self.bucket.away = (
            0.0,
            0.0,
            False,
            False,
        )
        self.kernel.note("calm")

    # The programs.

    def _log(self) -> EventLog:
        kernel = self.kernel
        store = ObjectStore(
            "s3://b", resolve_s=10.0, clock=self.clock.monotonic, sleep=kernel.sleep
        )
        return EventLog(store, wall=kernel.wall, sleep=kernel.sleep)

    def _handovers(self) -> Handovers:
        kernel = self.kernel
        return Handovers(self._log(), clock=self.clock.monotonic, sleep=kernel.sleep)

    def _produce(self) -> None:
        """Upserts, deletions and garbage; some in transactions, of which some are aborted."""
        kernel, rng = self.kernel, self.rng
        kernel.pause(rng.uniform(0, 3))
        for number in range(rng.choice((6, 12, 18)) if self.theme.workers else 0):
            self._record(number)
            if rng.random() < 0.6:
                kernel.pause(rng.expovariate(1 / self.theme.every_s))
        kernel.pause(CALM_S + 4 - kernel.now)
        for partition in range(self.partitions if self.theme.workers else 0):  # a last one in each
            self._record(partition, plain=True)

    def _record(self, number: int, *, plain: bool = False) -> None:
        rng, kernel = self.rng, self.kernel
        id_ = number if plain else rng.randrange(5)
        key, log = b"r%d" % id_, self.broker.log(RECORDS, id_ % self.partitions)
        kind = 1.0 if plain else rng.random()
        value: bytes | None = pack(
            {"v": 1, "id": key.decode(), "ts": 1, "text": "t" * rng.randrange(9)}
        )
        if kind < 0.15:
            value = None
        elif kind < 0.25:
            value = b"garbage"
        entry = Entry(key, value, ts=int(1000 * kernel.wall()))
        if not plain and rng.random() < 0.3:
            entry.pid = -1
            log.append(entry)
            kernel.pause(rng.expovariate(10))
            log.mark(-1, rng.random() < 0.7)
        else:
            log.append(entry)
        self.broker.changed(RECORDS)

    def _worker(self, generation: str, name: str) -> None:
        """`braid embed`, started again after an error by its supervisor."""
        kernel = self.kernel
        while True:
            ownership = Ownership(self._handovers(), generation=generation, first=GENERATIONS[0])
            program = worker.Worker(
                SETTINGS,
                Model(),
                generation=generation,
                transactional_id=name,
                metrics=Quiet(),  # type: ignore[arg-type]
                ownership=ownership,
                clock=self.clock.monotonic,
                wall=kernel.wall,
            )
            try:
                program.run()
            except StreamError as error:
                kernel.note(f"{name} ends: {error}")
            kernel.pause(kernel.rng.uniform(0.5, 2))

    def _index(self, generation: str) -> None:
        """An index node: restored from an older snapshot, or from nothing, after each restart."""
        kernel, rng = self.kernel, self.kernel.rng
        topic = SETTINGS.vectors_topic(generation)
        store = LiveStore(space=Model.space, dim=Model.dim, block=16)
        while True:
            self.broker.news([topic], kernel.waker())
            for number in range(self.partitions):
                at = store.positions.get(number, 0)
                if at and rng.random() < 0.1:
                    at = rng.randrange(at)  # read again
                messages = self._read(topic, number, at, rng.choice((1, 3, 50)))
                if messages:
                    applied = translate(messages, space=Model.space, dim=Model.dim)
                    store.apply(
                        applied.writes, positions=applied.positions, progress=applied.progress
                    )
                    self.oracle.applied(generation, store)
            kernel.pause(5.0)

    def _read(self, topic: str, number: int, at: int, limit: int) -> list[Message]:
        log = self.broker.log(topic, number)
        shown = [(n, log.entries[n]) for n in range(at, log.stable) if log.entries[n].shown]
        return [
            Message(topic, number, n, one.key, one.value, one.ts, one.headers)
            for n, one in shown[:limit]
        ]

    def _trainer(self, number: int) -> None:
        """Claims numbers, promotes, and hands predictions over."""
        kernel, rng, name = self.kernel, self.kernel.rng, self.kernel.process.name
        registry = BareRegistry(Path("unused"), store=self._log().store)  # type: ignore[arg-type]
        registry.log = self._log()
        for turn in range(4):
            kernel.pause(rng.expovariate(1 / self.theme.every_s))
            do = rng.choice(self.theme.do)
            try:
                if do == "claim":
                    run = f"{name}-{kernel.now}-{turn}"
                    self.oracle.began(run)
                    self.oracle.claimed(run, registry.claim(run)[1])
                elif do == "promote":
                    champion = registry.promote(f"{name}-{turn}", generation=GENERATIONS[0])
                    self.oracle.promoted(champion)
                elif number == 0:  # trainers that hand over have a lock
                    self._hand_over()
                self.oracle.saw(registry.history())
            except StreamError as error:
                kernel.note(f"{name}: {do}: {error}")

    def _hand_over(self) -> None:
        handovers, admin = self._handovers(), Admin(self.network)
        confirmed = handovers.confirmed()
        before = confirmed[-1].after if confirmed else GENERATIONS[0]
        after = GENERATIONS[1 - GENERATIONS.index(before)]

        def ends() -> Mapping[int, int]:
            return {n: end for n, (_, end) in admin.ends(RECORDS).items()}

        proposal = handovers.hand_over(before, after, ends)
        self.kernel.note(f"handed over to {after} at {dict(proposal.offsets)}")


class BareRegistry(Registry):
    """A registry whose versions are there and fit."""

    def admit(self, name: str, **_: object) -> Any:
        return SimpleNamespace(version=1, space=Model.space, dim=Model.dim)

    def names(self) -> list[str]:
        return []
