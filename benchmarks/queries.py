"""Searches by text a second over HTTP, by how many clients ask at once: an index node on a broker.

    python -m benchmarks.queries [--seconds 5] [--rounds 3] [--records 500] [--json]

The node encodes each query with the demo preset's text encoder and searches the vectors that a
worker made of `--records` texts before. Each client has a connection of its own and sends the next
query, a text of five random words, once it has the answer to the last; all share the cores with the
node. Numbers of clients take turns; ratios are of the same round.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from braid.index.client import Client
from braid.stream.local.fleet import Fleet

from .common import arguments
from .poison import WORDS
from .start import READY_S, demo_stack
from .vectors import finish_here, percentiles

CLIENTS = (1, 8, 32)
HEADERS = {"content-type": "application/json"}


def by_text(chance: random.Random) -> dict[str, Any]:
    return {"text": " ".join(chance.choices(WORDS, k=5)), "k": 10}


def ask(
    port: int,
    seed: str,
    seconds: float,
    query: Callable[[random.Random], dict[str, Any]] = by_text,
) -> list[float]:
    """One client: the seconds that each of its queries took."""
    chance, taken = random.Random(seed), list[float]()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        body = json.dumps(query(chance))
        began = time.perf_counter()
        connection.request("POST", "/v1/search", body, HEADERS)
        with connection.getresponse() as response:
            answer = response.read()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {answer[:200]!r}")
        taken.append(time.perf_counter() - began)
    connection.close()
    return taken


def at_once(port: int, clients: int, seconds: float, turn: int) -> list[float]:
    """What the queries of so many clients took."""
    with ThreadPoolExecutor(clients) as threads:
        seeds = [f"{turn}-{clients}-{number}" for number in range(clients)]
        each = list(threads.map(lambda seed: ask(port, seed, seconds), seeds))
    return [took_s for taken in each for took_s in taken]


def measure(port: int, seconds: float, rounds: int) -> dict[str, Any]:
    taken: dict[int, list[list[float]]] = {clients: [] for clients in CLIENTS}
    for turn in range(rounds + 1):
        for clients in CLIENTS:
            one = at_once(port, clients, seconds if turn else 1.0, turn)
            if turn:
                taken[clients].append(one)
    rows: dict[str, Any] = {
        f"{clients} at once": {
            "queries a second": round(statistics.median(len(one) for one in runs) / seconds, 1),
            **percentiles([took_s for one in runs for took_s in one]),
        }
        for clients, runs in taken.items()
    }
    single, eight, many = (taken[clients] for clients in CLIENTS)
    rows["ratios"] = {
        "queries a second, 32 at once / 1": round(
            statistics.median(len(a) / len(b) for a, b in zip(many, single, strict=True)), 2
        ),
        "p99 of 8 at once / p50 of 1": round(
            statistics.median(
                percentiles(a)["p99_ms"] / percentiles(b)["p50_ms"]
                for a, b in zip(eight, single, strict=True)
            ),
            2,
        ),
    }
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=500, help="that are searched")
    given = parser.parse_args(argv)
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=12)) for _ in range(given.records)]
    with demo_stack(texts) as (run, home), Fleet(run, home / "logs") as fleet:
        worker = fleet.start("embed")
        fleet.start("index")
        with Client(f"http://127.0.0.1:{run.http.port}") as client:

            def searchable() -> int:
                return client.status().records

            fleet.wait("ready", lambda: int(client.ready()), 1, stalled=READY_S)
            fleet.wait("searchable", searchable, given.records, stalled=READY_S)
        fleet.children.remove(worker)
        worker.stop()
        rows = measure(run.http.port, given.seconds, given.rounds)
    return finish_here("queries", given, rows)


if __name__ == "__main__":
    main()
