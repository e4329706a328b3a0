"""The faults: what they do to a process, a connection or a server, and their order by a seed."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `begin`, some seconds, `end`.

    Attributes:
        what: the name of a pair of methods below.
        targets: names of the processes; "broker" or "redis".
        lasts_s: between begin and end.
    """

    what: str
    targets: tuple[str, ...]
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.what} {'+'.join(self.targets)}"

    def begin(self, cluster: Cluster) -> None:
        for target in self.targets:
            if target in ("broker", "redis"):
                server = cluster.broker if target == "broker" else cluster.redis
                {"kill": server.stop, "stop": server.pause}[self.what]()
                continue
            child, proxy = cluster.children[target], cluster.proxies[target]
            if self.what == "kill":
                child.send(signal.SIGKILL)
            elif self.what == "stop":
                child.send(signal.SIGSTOP)
            elif self.what == "delay":
                proxy.delay(0.3)
            else:
                {
                    "cut off": proxy.refuse, "reset": proxy.reset, "half open": proxy.half_open,
                    "blackhole": proxy.blackhole,
                }[self.what]()  # fmt: skip

    def end(self, cluster: Cluster) -> None:
        for target in self.targets:
            if target in ("broker", "redis"):
                server = cluster.broker if target == "broker" else cluster.redis
                if self.what == "kill":
                    cluster.start_again(server)
                else:
                    server.resume()
            elif self.what == "stop":
                cluster.children[target].send(signal.SIGCONT)
            elif self.what != "kill":  # the supervisor starts it again
                cluster.proxies[target].forward()


WORKERS = ("one", "two")
ALL = (*WORKERS, "index")
DECK: list[tuple[str, tuple[str, ...], float, float]] = [
    ("kill", ("one",), 0, 0),
    ("kill", ("two",), 0, 0),
    ("kill", WORKERS, 0, 0),
    ("kill", ("index",), 0, 0),
    ("stop", ("one",), 5, 10),  # beyond the session of 3 s
    ("stop", WORKERS, 5, 8),
    ("stop", ("index",), 3, 8),
    ("cut off", ("two",), 3, 8),
    ("cut off", ALL, 3, 8),
    ("reset", ("one",), 0, 0),
    ("reset", ALL, 0, 0),
    ("half open", ("two",), 0, 0),
    ("half open", ("index",), 0, 0),
    ("blackhole", ("one",), 4, 10),
    ("blackhole", ALL, 4, 8),
    ("delay", ALL, 4, 8),
    ("kill", ("broker",), 0, 4),
    ("stop", ("broker",), 4, 8),
    ("kill", ("redis",), 0, 4),
    ("stop", ("redis",), 2, 6),
    ("kill", ("broker", "one"), 0, 2),
]


def schedule(seed: int) -> Iterator[tuple[float, Fault]]:
    """(seconds to wait, fault), without end: the deck shuffled again and again."""
    chance = random.Random(seed)
    while True:
        deck = list(DECK)
        chance.shuffle(deck)
        for what, targets, least, most in deck:
            yield chance.uniform(0.5, 3.0), Fault(what, targets, chance.uniform(least, most))
