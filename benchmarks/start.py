"""Seconds from the start of a process until it is ready: a worker and an index node.

    python -m benchmarks.start [--rounds 3] [--records 500] [--json]

With the demo preset's encoders. A worker is ready when the vector of a record that waits for it is
published; the index node when `/readyz` says so, with `--records` vectors to read: then it also
embeds texts. The time of `import torch` in a process of its own is measured in the same rounds, for
comparison. CPU seconds are the process's own until it was ready (Linux).
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from braid.index.client import Client
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.topics import ensure
from braid.stream.local.child import free_port
from braid.stream.local.fleet import Fleet, services
from braid.stream.settings import Settings

from .common import arguments
from .poison import send
from .throughput import demo_model
from .vectors import finish_here

READY_S = 180.0


@contextmanager
def demo_stack(texts: Sequence[str]) -> Iterator[tuple[Settings, Path]]:
    """A broker with the texts on `records`, for processes that serve the demo preset's encoders."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        demo_model(home / "version")
        settings = Settings(
            home=home,
            model={"spec": str(home / "version")},
            prefix=f"d{uuid.uuid4().hex[:8]}-",
            http={"port": free_port()},
        )
        with services(settings, home / "services") as run:
            ensure(run, run.generation)
            send(run, [{"id": f"r{number}", "text": text} for number, text in enumerate(texts)])
            yield run, home


def vectors(settings: Settings) -> int:
    """Messages of the vectors topic, with the markers of transactions."""
    ends = Admin(settings).ends(settings.vectors_topic(settings.generation))
    return sum(high for _, high in ends.values())


def until(fleet: Fleet, done: Callable[[], bool]) -> tuple[float, float]:
    """Seconds until it is so, and CPU seconds of the process."""
    began = time.perf_counter()
    while not done():
        fleet.check()
        if time.perf_counter() - began > READY_S:
            raise RuntimeError(f"not ready within {READY_S:g} s")
        time.sleep(0.02)
    return time.perf_counter() - began, cpu_s(fleet.children[0].pid)


def cpu_s(pid: int) -> float:
    """CPU seconds of a running process; NaN where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def worker(settings: Settings, logs: Path, turn: int) -> tuple[float, float]:
    before = vectors(settings)
    send(settings, [{"id": f"one-{turn}", "text": "a record that waits"}])
    with Fleet(settings, logs) as fleet:
        fleet.start("embed")
        return until(fleet, lambda: vectors(settings) > before)


def index_node(settings: Settings, logs: Path) -> tuple[float, float]:
    with Fleet(settings, logs) as fleet, Client(f"http://127.0.0.1:{settings.http.port}") as client:
        fleet.start("index")
        return until(fleet, client.ready)


def imports() -> tuple[float, float]:
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    after = os.times()
    return time.perf_counter() - began, (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__, seeds=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=500, help="that the index node reads")
    given = parser.parse_args(argv)
    texts = [f"record {number}" for number in range(given.records)]
    with demo_stack(texts) as (run, home):
        ways: dict[str, Callable[[int], tuple[float, float]]] = {
            "worker": lambda turn: worker(run, home / f"embed-{turn}", turn),
            "index node": lambda turn: index_node(run, home / f"index-{turn}"),
            "import torch": lambda _: imports(),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(given.rounds + 1):
            for name, way in ways.items():
                took = way(turn)
                if turn:  # the first has compiled the modules
                    times[name].append(took)
    rows = {}
    for name, both in times.items():
        walls_s, cpus_s = zip(*both, strict=True)
        rows[name] = {
            "median s": round(statistics.median(walls_s), 2),
            "longest s": round(max(walls_s), 2),
            "CPU s": round(statistics.median(cpus_s), 2),
        }
    return finish_here("start", given, rows)


if __name__ == "__main__":
    main()
