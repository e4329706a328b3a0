"""Real trainers without Kafka: the window comes from made records, announcements go to a file.

python -m tests.stream.trainers HOME        forks trainers and kills them, see `main`
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis
import torch

from braid.encoders.manifest import verify
from braid.encoders.types import Sample
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import Blob, Record, encode_record
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings
from braid.stream.trainer.job import Outcome
from braid.stream.trainer.options import Options
from braid.stream.trainer.retrain import retrain
from braid.stream.trainer.runs import Runs
from braid.stream.trainer.window import Progress, Window, write_window
from tests.stream.conftest import coloured

KEY = "braid:trainer:braid"
COUNT = 48
PARTITIONS = 3
# Any fall is within these margins, for so few records show nothing less; a busy machine is no
# slower model.
GATES = {
    "min_records": 2,
    "accuracy": 1.0,
    "recall": 1.0,
    "resamples": 100,
    "rounds": 1,
    "latency": 1000.0,
}
# So few records that each is among the first ten: only the very first counts.
SPACES = {"k": 1, "adapters": []}


def message(sample: Sample, offset: int, *, partition: int = 0, ts: int = 0) -> Message:
    """A message of `records`."""
    record = Record(
        id=sample.id,
        ts=ts,
        text=sample.text,
        image=None if sample.image is None else Blob(data=sample.image),
        audio=None if sample.audio is None else Blob(data=sample.audio),
        labels=sample.labels,
    )
    return Message(
        topic="records",
        partition=partition,
        offset=offset,
        key=sample.id.encode(),
        value=encode_record(record),
        ts=ts,
    )


def messages(count: int = COUNT) -> Iterator[Message]:
    """Coloured records over a few partitions, text and picture only: quick to train on."""
    for number in range(count):
        whole = coloured(number)
        sample = Sample(id=whole.id, text=whole.text, image=whole.image, labels=whole.labels)
        yield message(sample, number // PARTITIONS, partition=number % PARTITIONS)


def read(settings: Settings, folder: Path, progress: Progress | None) -> Window:
    """Stands for the replay of Kafka."""
    offsets = dict.fromkeys(range(PARTITIONS), (0, COUNT // PARTITIONS))
    return write_window(
        messages(), folder, topic="records", offsets=offsets, progress=progress, shard_bytes=20_000
    )


def tell(settings: Settings, key: str, value: Mapping[str, Any]) -> None:
    """Stands for the topic `models`."""
    with (settings.home / "told.jsonl").open("a") as file:
        file.write(json.dumps({"key": key, **value}) + "\n")


def told(home: Path) -> list[dict[str, Any]]:
    path = home / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(
    home: Path, progress: Progress | None = None, redis_url: str | None = None, **options: Any
) -> Outcome:
    """One training on the made records, in this process."""
    settings = Settings(
        home=home,
        redis={"url": redis_url},
        refresh={"gates": GATES, "compatibility": SPACES},
        model={"device": "cpu"},
    )
    asked = Options(**{"preset": "tiny", **options})
    return retrain(settings, asked, progress=progress, read=read, tell=tell)


def kill_some(home: Path, kills: int, seed: int) -> None:
    """Heads are trained again and again, undisturbed and killed at random moments."""
    rng = random.Random(seed)
    tidy, killed = home / "undisturbed", home / "killed"
    shutil.copytree(tidy, killed)
    took = ended(forked(tidy))
    say("undisturbed", tidy, took)
    done = 0
    while done < kills:
        child = forked(killed)
        time.sleep(rng.uniform(0.0, 1.5 * took["seconds"]))  # some of them run to their end
        os.kill(child.pid, signal.SIGKILL)
        outcome = ended(child)
        done += outcome["status"] == -signal.SIGKILL
        say("killed", killed, outcome)
    say("last", killed, ended(forked(killed)))
    while len(state(tidy)["versions"]) < len(state(killed)["versions"]):
        say("undisturbed", tidy, ended(forked(tidy)))


def two_at_once(home: Path, redis_url: str) -> None:
    """Both ask for the lock while both are there."""
    place = home / "two"
    shutil.copytree(home / "undisturbed", place)
    for child in [forked(place, redis_url=redis_url) for _ in range(2)]:
        say("two", place, ended(child))


def one_paused(home: Path, redis_url: str) -> None:
    """One stops in the middle, Redis forgets all, another trains and is promoted; it goes on."""
    place = home / "paused"
    shutil.copytree(home / "undisturbed", place)

    def stop(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if (stage, done) == ("train", 3):
            os.kill(os.getpid(), signal.SIGSTOP)

    paused = forked(place, stop, redis_url=redis_url)
    os.waitpid(paused.pid, os.WUNTRACED)
    with redis.Redis.from_url(redis_url) as client:
        say(
            "holder", place, {"holder": json.loads(cast(bytes, client.get(KEY)).partition(b" ")[2])}
        )
        client.flushdb()
    say("other", place, ended(forked(place, redis_url=redis_url)))
    os.kill(paused.pid, signal.SIGCONT)
    say("paused", place, ended(paused))


@dataclass(frozen=True)
class Forked:
    pid: int
    errors_fd: int
    began: float


def forked(home: Path, progress: Progress | None = None, redis_url: str | None = None) -> Forked:
    """A trainer of heads as a fork of this process.

    A new interpreter for each would take longer than its training. This one computes on one thread,
    so that no pool of threads is lost in a fork.
    """
    began, (read_end, write_end) = time.monotonic(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run(home, progress, redis_url, promote=True, force=True, heads_only=True)
            status = 0
        except BaseException as error:  # noqa: BLE001 (the test reads it)
            os.write(write_end, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)
    os.close(write_end)
    return Forked(pid, read_end, began)


def ended(child: Forked) -> dict[str, Any]:
    """How it ended, once it does."""
    with os.fdopen(child.errors_fd, "rb") as errors:
        error = errors.read().decode()
    _, status = os.waitpid(child.pid, 0)
    took = time.monotonic() - child.began
    return {
        "pid": child.pid,
        "status": os.waitstatus_to_exitcode(status),
        "error": error,
        "seconds": took,
    }


def state(home: Path) -> dict[str, Any]:
    """What every process would read, and check, of the registry."""
    registry = Registry(home / "models")
    champion = registry.champion()
    for name in registry.names():
        verify(registry.path(name))
    return {
        "versions": registry.names(),
        "champion": champion.name if champion else None,
        "runs": [[run.name, run.state] for run in Runs(home / "training").all()],
        "epochs": sorted(p.name for p in (home / "training").glob("*/state/*/*/epoch-*")),
    }


def say(what: str, home: Path, outcome: Mapping[str, Any]) -> None:
    print(json.dumps({"what": what, **outcome, **state(home)}), flush=True)


def main(what: str, home: Path, *rest: str) -> None:
    torch.set_num_threads(1)
    if what == "one":
        run(home)
        return
    run(home / "undisturbed")  # here: what it imports and warms up, all forks have
    kill_some(home, kills=20, seed=7)
    two_at_once(home, rest[0])
    one_paused(home, rest[0])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
