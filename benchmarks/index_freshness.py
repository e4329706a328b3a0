"""How long from producing a record until a search finds it: a worker and an index node on a broker.

    python -m benchmarks.index_freshness [--seconds 30] [--rounds 3] [--model null:16|demo] [--json]

The broker is the one that KAFKA_BOOTSTRAP names, else the embedded one. A round is three parts, so
that each figure is compared with those of the same half minute. First `--burst` records at once:
until the last is searchable, that is full load; PROBES searches a second use the same cores
meanwhile, as they do at half load. Then records at half that rate for `--seconds`, among them
PROBES a second that are looked for: a probe is sent, its partition and offset come back, and a
search over HTTP for its own vector waits with `min_offsets` until they are reflected; the time is
from before sending to the answer, which must hold the record. Last a full micro-batch, that is
`batch.records` of these records encoded while nothing else is at work: the median of three. Rows
are medians over rounds. The model null:16 hashes instead of computing, so that this is the time of
the pipeline and not of an encoder; `demo` has the demo preset's encoders, without a cache.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from braid.encoders import Model, Prepared, Sample, load
from braid.index.client import AsyncClient, Client
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.topics import ensure
from braid.stream.local.child import free_port
from braid.stream.local.fleet import Fleet, services
from braid.stream.settings import Settings

from .common import arguments, finish
from .throughput import demo_model
from .vectors import machine, percentiles

PROBES = 10  # a second
READY_S = 180.0
STALLED_S = 60.0


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--burst", type=int, default=20_000, help="records that measure full load")
    parser.add_argument("--seconds", type=float, default=30.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="null:16", help="null:16, demo, or a version")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        spec = given.model
        if spec == "demo":
            demo_model(home / "version")
            spec = str(home / "version")
        settings = Settings(
            home=home,
            model={"spec": spec},
            cache={"local_bytes": 0},
            prefix=f"f{uuid.uuid4().hex[:8]}-",
            http={"port": free_port()},
        )
        with services(settings, home / "services") as run:
            ensure(run, run.generation)
            with Fleet(run, home / "logs") as fleet:
                report = _measured(fleet, run, given)
    return finish(report, given.json)


def _measured(fleet: Fleet, settings: Settings, given: Any) -> dict[str, Any]:
    url = f"http://127.0.0.1:{settings.http.port}"
    fleet.start("embed")
    fleet.start("index")
    with Client(url) as client:
        fleet.wait("ready", lambda: int(client.ready()), 1, stalled=READY_S)

        def searchable() -> int:
            return client.status().records

        # Once before it counts: the group forms, connections open, code is imported.
        asyncio.run(_burst(settings, "warm", 500))
        fleet.wait("warm", searchable, 500, stalled=STALLED_S)
        model, prepared = _full_batch(settings)
        rounds = []
        for number in range(given.rounds):
            began, before = time.perf_counter(), searchable()
            with _searches(url):
                asyncio.run(_burst(settings, f"burst{number}", given.burst))
                sent_s = time.perf_counter() - began
                fleet.wait("burst", searchable, before + given.burst, stalled=STALLED_S)
            full = given.burst / (time.perf_counter() - began)
            half = asyncio.run(_half(settings, url, full / 2, given.seconds, number))
            sent = before + given.burst + half["records"]
            fleet.wait("half", searchable, sent, stalled=STALLED_S)
            encoded_ms = 1000 * _encoded_s(model, prepared)
            fleet.check()
            rounds.append(
                {
                    "full load": {
                        "records": given.burst,
                        "records_per_s": round(full),
                        "produced_per_s": round(given.burst / sent_s),
                    },
                    "half load": half,
                    "full micro-batch": {
                        "records": len(prepared),
                        "ms": round(encoded_ms, 1),
                        "p99 / full micro-batch": round(half["p99_ms"] / encoded_ms, 2),
                    },
                }
            )
    return {
        "machine": machine(),
        "model": given.model,
        "rounds": rounds,
        "seconds": given.seconds,
        "rows": {
            name: {
                key: round(statistics.median(one[name][key] for one in rounds), 2) for key in row
            }
            for name, row in rounds[0].items()
        },
    }


def _full_batch(settings: Settings) -> tuple[Model, list[Prepared]]:
    assert settings.model.spec is not None
    model = load(settings.model.spec, device="cpu")
    samples = [Sample(id=str(n), text=f"half-0-{n}") for n in range(settings.batch.records)]
    return model, [model.prepare(sample) for sample in samples]


def _encoded_s(model: Model, prepared: Sequence[Prepared]) -> float:
    """Median seconds of three, after one that does not count."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        model.encode(prepared)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


@contextmanager
def _searches(url: str) -> Iterator[None]:
    """PROBES searches a second by text, on a thread."""
    ended = threading.Event()

    def search() -> None:
        with Client(url) as client:
            number = 0
            while not ended.wait(1 / PROBES):
                client.search(text=f"probe-{number}", k=1)
                number += 1

    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(search)
        try:
            yield
        finally:
            ended.set()
        searching.result()


async def _burst(settings: Settings, name: str, count: int) -> None:
    async with Producer(settings) as producer:
        for number in range(count):
            # Texts as at half load, of as many tokens: a word, two dashes and the numbers.
            id_ = f"{name}-0-{number}"
            await producer.send(id=id_, text=id_, wait=False)


async def _half(
    settings: Settings, url: str, per_s: float, seconds: float, number: int
) -> dict[str, Any]:
    """Times of the probes from sending to found, how many, and how many records went out."""
    taken: list[float] = []
    probes: set[asyncio.Task[None]] = set()
    sent = 0
    async with Producer(settings) as producer, AsyncClient(url) as client:

        async def probe(id: str) -> None:
            began = time.perf_counter()
            where = await producer.send(id=id, text=id)
            assert where is not None
            partition, offset = where
            answer = await client.search(
                text=id, k=1, min_offsets={partition: offset + 1}, timeout_ms=10_000
            )
            taken.append(time.perf_counter() - began)
            if answer.hits[0].id != id:
                raise AssertionError(f"searched for {id}, found {answer.hits[0].id}")

        began = time.perf_counter()
        next_probe = 0.0
        while (now := time.perf_counter() - began) < seconds:
            while sent < now * per_s:
                id_ = f"half-{number}-{sent}"
                await producer.send(id=id_, text=id_, wait=False)
                sent += 1
            if now >= next_probe:
                task = asyncio.create_task(probe(f"probe-{number}-{len(taken)}-{sent}"))
                probes.add(task)
                next_probe += 1 / PROBES
            await asyncio.sleep(0.002)
        spent = time.perf_counter() - began
        await asyncio.gather(*probes)
    return {
        **percentiles(taken),
        "probes": len(probes),
        "records": sent + len(probes),
        "records_per_s": round((sent + len(probes)) / spent, 1),
    }


if __name__ == "__main__":
    main()
