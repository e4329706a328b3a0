"""Searches a second of one and of two index nodes on the same machine, by text and by vector.

    python -m benchmarks.replicas [--seconds 5] [--rounds 3] [--records 500] [--clients 16] [--json]

Both nodes run all the time and hold the same records. The clients, each with a connection of its
own, ask the first node only, or half of them each. A query by text is encoded by the node, one by
vector is not. Kinds and numbers of nodes take turns; ratios are of the same round. Nodes and
clients share the cores of one machine: it shows what a second process gains, not a second machine.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from braid.index.client import Client
from braid.stream.local.child import free_port
from braid.stream.local.fleet import Fleet

from .common import arguments
from .poison import WORDS
from .queries import ask, by_text
from .start import READY_S, cpu_s, demo_stack
from .vectors import finish_here, percentiles

Query = Callable[[random.Random], dict[str, Any]]


def by_vector(space: str, dim: int) -> Query:
    def query(chance: random.Random) -> dict[str, Any]:
        values = [chance.gauss(0, 1) for _ in range(dim)]
        return {"query": {"values": values, "space": space}, "k": 10}

    return query


def at_once(
    ports: Sequence[int], clients: int, seconds: float, turn: int, query: Query
) -> list[float]:
    """What the queries of so many clients took, spread over the nodes."""

    def one(number: int) -> list[float]:
        return ask(ports[number % len(ports)], f"{turn}-{number}", seconds, query)

    with ThreadPoolExecutor(clients) as threads:
        return [took_s for taken in threads.map(one, range(clients)) for took_s in taken]


def measure(
    ports: Sequence[int],
    queries: dict[str, Query],
    cpu: Callable[[], float],
    *,
    clients: int,
    seconds: float,
    rounds: int,
) -> dict[str, Any]:
    ways = [(kind, nodes) for kind in queries for nodes in (1, 2)]
    taken: dict[tuple[str, int], list[list[float]]] = {way: [] for way in ways}
    used_ms: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for kind, nodes in ways:
            before = cpu()
            one = at_once(ports[:nodes], clients, seconds if turn else 1.0, turn, queries[kind])
            if turn:
                taken[kind, nodes].append(one)
                used_ms[kind, nodes].append(1000 * (cpu() - before) / len(one))
    rows: dict[str, Any] = {
        f"by {kind}, {nodes} nodes": {
            "queries a second": round(statistics.median(len(one) for one in runs) / seconds, 1),
            "CPU ms of the nodes a query": round(statistics.median(used_ms[kind, nodes]), 2),
            **percentiles([took_s for one in runs for took_s in one]),
        }
        for (kind, nodes), runs in taken.items()
    }
    rows["ratios"] = {
        f"by {kind}, two nodes / one": round(
            statistics.median(
                len(two) / len(one) for one, two in zip(taken[kind, 1], taken[kind, 2], strict=True)
            ),
            2,
        )
        for kind in queries
    }
    return rows


def wait_for_node(fleet: Fleet, port: int, records: int) -> dict[str, Any]:
    """Wait until a node has all records; its status."""
    with Client(f"http://127.0.0.1:{port}") as client:

        def searchable() -> int:
            return client.status().records

        fleet.wait("ready", lambda: int(client.ready()), 1, stalled=READY_S)
        fleet.wait("searchable", searchable, records, stalled=READY_S)
        return client.status().model_dump()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=500, help="that are searched")
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args(argv)
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=12)) for _ in range(given.records)]
    with demo_stack(texts) as (run, home), Fleet(run, home / "logs") as fleet:
        ports = [run.http.port, free_port()]
        worker = fleet.start("embed")
        for number, port in enumerate(ports):
            fleet.start("index", "--port", str(port), "--folder", str(home / f"node-{number}"))
        for port in ports:
            status = wait_for_node(fleet, port, given.records)
        fleet.children.remove(worker)
        worker.stop()
        queries = {"text": by_text, "vector": by_vector(status["space"], status["dim"])}
        rows = measure(
            ports,
            queries,
            lambda: sum(cpu_s(child.pid) for child in fleet.children),
            clients=given.clients,
            seconds=given.seconds,
            rounds=given.rounds,
        )
    return finish_here("replicas", given, rows)


if __name__ == "__main__":
    main()
