"""`braid demo`: produce, train, embed, index and measure once, with real processes.

    1  get the data set
    2  start Apache Kafka and Valkey, make the topics; start the embed worker and the index node
    3  produce four fifths with their labels; train version 1 from Kafka
    4  produce the held-out fifth without labels; worker and index node take the version
    5  wait until all are searchable; read `predictions`; measure; report

Messages and progress go to standard error, the report to standard output; its last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from braid.index.client import Client
from braid.index.errors import BraidIndexError
from braid.index.redact import redacted
from braid.index.responses import SearchAnswer
from braid.modalities import MEDIA

from ..datasets.sources import DatasetError, Item, default_cache, digits, folder, held_out, stamps
from ..errors import StreamError
from ..kafka.admin import Admin
from ..kafka.client import Message, replay
from ..kafka.producer import Producer
from ..kafka.schemas import Blob, decode_map
from ..kafka.topics import ensure
from ..local.child import free_port, port_answers
from ..local.fleet import Fleet, bar, services
from ..monitoring.heartbeat import workers
from ..settings import Settings
from .common import bar as staged_bar
from .common import service_url
from .demo_figures import (
    TASK,
    accuracy,
    example_lines,
    mismatches,
    recall,
    report_lines,
    throughput,
)

STALLED_S = 120.0  # a wait fails after so long without progress
READY_S = 180.0  # importing torch and loading a model, on a slow machine
TRAIN_S = 1200.0
SPLIT = "split"  # the field of meta that is "train" or "held-out"

# Example queries; no caption has the same words.
EXAMPLES = (
    "a bird that cannot fly",
    "something sweet to eat",
    "a vehicle for emergencies",
    "a planet with rings",
    "music",
)


class DemoError(StreamError):
    """A step of the demo failed; the message names what it waited for."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The demo's data set. `told`: captions contain the label."""

    name: str
    items: Sequence[Item]
    captions_name_label: bool = False


def run_demo(
    settings: Settings,
    *,
    data: Path | None = None,
    keep: bool = False,
    preset: str = "demo",
    seed: int = 0,
) -> int:
    """Run the main job; returns the exit status.

    A broker that the settings name (KAFKA_BOOTSTRAP) is used, under topics of the demo's own that
    are deleted at the end; without one a broker is started.

    Args:
        settings: the run's folder is below `home`, and is removed after a success.
        data: a folder of the user instead of the stamps.
        keep: answer queries at the end until Ctrl-C.
        preset: of the trainer.
        seed: of the training.

    Raises:
        StreamError: a process ended (with the end of its log) or a wait had no progress.
    """
    began = time.monotonic()
    dataset = choose(data)
    settings.home.mkdir(parents=True, exist_ok=True)
    with _sigterm_as_interrupt(), _folder(settings.home) as home:
        with _isolated(settings, home) as own, services(own, home / "services") as run:
            say(f"Kafka at {run.kafka.bootstrap}, Redis at {redacted(run.redis.url)}")
            with Fleet(run, home) as fleet:
                figures = main_job(fleet, dataset, preset=preset, seed=seed)
                figures |= {"dataset": dataset.name, "seconds": round(time.monotonic() - began, 1)}
                print("\n".join(report_lines(figures)))
                print(json.dumps(figures), flush=True)
                wrong = mismatches(figures, ids=len({item.id for item in dataset.items}))
                for line in wrong:
                    say(f"WRONG: {line}")
                if keep:
                    _serve_queries(fleet)
        if wrong:
            raise DemoError("the figures do not add up")
    return 0


def main_job(fleet: Fleet, dataset: Dataset, *, preset: str, seed: int) -> dict[str, Any]:
    """Run steps 2 to 5 of the module's docstring; returns the figures."""
    settings = fleet.settings
    known = [item for item in dataset.items if not held_out(item.id)]
    unseen = [item for item in dataset.items if held_out(item.id)]
    say(f"{dataset.name}: {len(known)} labelled records, {len(unseen)} held out")

    partitions = ensure(settings, settings.generation)
    fleet.start("embed")  # they import what they need while the first version is trained
    fleet.start("index", "--port", str(settings.http.port))
    produce(settings, known, split="train", labelled=True)
    say("training version 1 from what is on Kafka")
    fleet.run("retrain", "--preset", preset, "--seed", str(seed), timeout=TRAIN_S)
    produce(  # after the training, which must not see them
        settings,
        unseen,
        split="held-out",
        labelled=False,
        captions_name_label=dataset.captions_name_label,
    )
    with Client(service_url(settings), api_key=settings.client_key()) as client:

        def searchable() -> int:
            return client.status().records

        begun = until_ready(fleet, client)
        fleet.wait("searchable", searchable, len(dataset.items), stalled=STALLED_S)
        predictions = until_predicted(fleet, partitions, len(dataset.items))
        dead = read(settings, "dead-letters", partitions)
        for message in dead[:5]:
            say(f"dead letter: {dict(message.headers or [])}")
        return {
            "records_in": len(dataset.items),
            "vectors_indexed": searchable(),
            "predictions_out": len(predictions),
            "dead_letters": len(dead),
            "records_per_s": throughput([message.ts for message in predictions], begun=begun),
            "model": client.status().model,
            "accuracy": held_out_accuracy(predictions, dataset, unseen),
            "recall": held_out_recall(client, dataset, unseen),
        }


def choose(data: Path | None) -> Dataset:
    """The user's folder, else the stamps, or digits if the stamps cannot be fetched."""
    if data is not None:
        return Dataset(name=Path(os.path.abspath(data)).name, items=folder(data))
    with staged_bar("stamps", quiet=False) as progress:

        def megabytes(what: str, done: int, total: int) -> None:
            progress(f"{what} (MB)", done // 10**6, total // 10**6, {})

        try:
            return Dataset(name="stamps", items=stamps(default_cache(), megabytes))
        except DatasetError as error:
            say(f"{error}")
    say("falling back to scikit-learn's digits, whose captions name the label:")
    say("no recall and no text accuracy are measured on them")
    return Dataset(name="digits", items=digits(), captions_name_label=True)


def produce(
    settings: Settings,
    items: Sequence[Item],
    *,
    split: str,
    labelled: bool,
    captions_name_label: bool = False,
) -> None:
    """Send items as an application would; without labels, no caption that contains the label."""

    async def send() -> None:
        async with Producer(settings) as producer:
            for item in bar(f"producing ({split})", items):
                media: dict[str, Any] = {
                    name: _blob(item.content(name), item.types.get(name)) for name in MEDIA
                }
                await producer.send(
                    id=item.id,
                    text=None if captions_name_label and not labelled else item.text,
                    **media,
                    labels={TASK: item.category} if labelled and item.category else {},
                    meta={SPLIT: split},
                    wait=False,
                )

    asyncio.run(send())


def until_ready(fleet: Fleet, client: Client) -> int:
    """Wait for the worker's assignment and the index node; returns the assignment's time."""
    begun = 0

    def steps() -> int:
        nonlocal begun
        alive = workers(fleet.settings) or {}
        if not begun and any(worker.get("partitions") for worker in alive.values()):
            begun = _now_ms()
        return bool(begun) + bool(client.ready())

    fleet.wait("starting worker and index", steps, 2, stalled=READY_S)
    return begun


def until_predicted(fleet: Fleet, partitions: int, count: int) -> list[Message]:
    """Wait for `count` predictions and return them."""
    predictions: list[Message] = []

    def arrived() -> int:
        predictions[:] = read(fleet.settings, "predictions", partitions)
        return len(predictions)

    fleet.wait("predictions", arrived, count, stalled=STALLED_S)
    return predictions


def read(settings: Settings, topic: str, partitions: int) -> list[Message]:
    """All messages on a topic now, read committed."""
    name = settings.topic(topic)
    ends = Admin(settings).ends(name, partitions)
    stop_at = {number: end for number, (start, end) in ends.items() if end > start}
    return list(replay(settings, name, stop_at=stop_at))


def held_out_accuracy(
    predictions: Sequence[Message], dataset: Dataset, unseen: Sequence[Item]
) -> dict[str, float | None]:
    """The accuracy of the predictions for the records without a label."""
    truth = {item.id: item.category for item in unseen if item.category}
    measured = accuracy([decode_map(message.value or b"") for message in predictions], truth)
    return measured | {"text": None} if dataset.captions_name_label else measured


def held_out_recall(
    client: Client, dataset: Dataset, unseen: Sequence[Item]
) -> dict[str, dict[str, float | None]]:
    """Recall of the query service among the held-out records; prints the examples, too."""

    def search(queries: Sequence[Mapping[str, Any]]) -> list[Sequence[Mapping[str, Any]]]:
        return [hits_of(answer) for answer in client.search_many(queries)]  # type: ignore[arg-type]

    both = (
        []
        if dataset.captions_name_label
        else [item for item in unseen if item.text and "image" in item.sources]
    )
    among = {"filter": {SPLIT: "held-out"}}
    ways: dict[str, Callable[[Item], dict[str, Any]]] = {
        "text->image": lambda item: {"text": item.text, "vector": "image"},
        "image->text": lambda item: {"image": item.content("image"), "vector": "text"},
    }
    measured = {}
    for way, query in ways.items():
        measured[way] = recall(search, [(item.id, query(item) | among) for item in both])
    own = [item.text for item in dataset.items if item.text][:5]
    words = EXAMPLES if dataset.name == "stamps" else own
    asked = [(f"{text!r}", {"text": text, "vector": "image"}) for text in words]
    print("\n".join(["words -> pictures, the three best hits:", *example_lines(search, asked)]))
    return measured


def hits_of(answer: SearchAnswer | BraidIndexError) -> Sequence[Mapping[str, Any]]:
    """The hits of one answer. Raises the error of its query."""
    if isinstance(answer, BraidIndexError):
        raise answer
    return [hit.model_dump() for hit in answer.hits]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _serve_queries(fleet: Fleet) -> None:
    """Answer queries until Ctrl-C or SIGTERM."""
    say(f"the query service answers at {service_url(fleet.settings)}; Ctrl-C ends it")
    with suppress(KeyboardInterrupt):
        while True:
            fleet.check()
            time.sleep(0.5)


def _blob(data: bytes | None, media_type: str | None) -> Blob | None:
    return None if data is None else Blob(data=data, media_type=media_type)


def _now_ms() -> int:
    return int(time.time() * 1000)


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A folder of this run: removed at the end, but kept for its logs after a failure."""
    home = Path(tempfile.mkdtemp(prefix="demo-", dir=parent))
    try:
        yield home
    except Exception:
        say(f"the logs are in {home}")
        raise
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _isolated(settings: Settings, home: Path) -> Iterator[Settings]:
    """Settings that isolate this run: its folder, a free port, on a named broker its topics."""
    own: dict[str, Any] = {"home": home, "model": {"spec": None}}
    if "port" not in settings.http.model_fields_set and port_answers(settings.http.port):
        own["http"] = {"port": free_port()}
    if "bootstrap" not in settings.kafka.model_fields_set:
        yield settings.replace(**own)
        return
    run = settings.replace(**own, prefix=f"demo-{uuid.uuid4().hex[:8]}-")
    try:
        yield run
    finally:
        admin = Admin(run)
        admin.delete([name for name in admin.partition_counts() if name.startswith(run.prefix)])


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that it cleans up."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
