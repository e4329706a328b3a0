"""The fuzz run: a poison corpus through a real deployment, every outcome accounted for.

    python -m tests.fuzz.run --seed 1 --seconds 600

It starts Apache Kafka, Valkey, an embed worker with a small model that decodes everything, and an
index node; sends mutated messages, media files and odd texts to `records`, and hostile requests to
the index node. Right is: each message becomes an output, a deletion or a dead letter with a reason,
the healthy ones outputs; each request gets an answer that it allows; both processes live on, with
the same pid and within WORKER_MIB and INDEX_MIB of memory; no record takes over CPU_S. Whatever is
wrong is written to `--keep` and the status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
from confluent_kafka import Producer as RawProducer

from braid.encoders.presets import preset
from braid.encoders.training import train
from braid.encoders.types import Sample
from braid.index.client import Client
from braid.stream.errors import BadRecord
from braid.stream.kafka.client import Message, replay
from braid.stream.kafka.schemas import MIB, check_deletion, decode_record
from braid.stream.local.child import Child
from tests.fuzz.accounts import Accounts
from tests.fuzz.costs import Cost, Meter, resident_mib
from tests.fuzz.media import MediaCase, corpus
from tests.fuzz.messages import MessageCase, messages
from tests.fuzz.requests import requests, send
from tests.fuzz.texts import texts
from tests.services import KafkaBroker, Valkey
from tests.stream.conftest import coloured
from tests.stream.harness import Deployment, topic_of, wait_for

CPU_S = 5.0  # of one record
# The worker has 650 when idle; a picture at the limit of pixels adds up to 370 in each of the two
# threads that prepare and the one that makes thumbnails, and malloc keeps as much again.
WORKER_MIB = 3072.0
INDEX_MIB = 2048.0
SAMPLE_EVERY_S = 0.1
MOST_SAVED = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of each kind, from which seed, within how many seconds."""

    seed: int = 1
    seconds: float = 600.0
    messages: int = 100_000
    media: int = 400
    texts: int = 100
    requests: int = 2000


@dataclass(kw_only=True)
class Finding:
    """What came of a run; `problems` is empty if all went well."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    largest: list[tuple[float, str]] = field(default_factory=list)
    peaks_mib: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Watch:
    """Samples the memory of processes and notes when one has ended. A context manager."""

    def __init__(self, limits: dict[Child, float]) -> None:
        self.peaks = dict.fromkeys(limits, 0.0)
        self.ended: list[Child] = []
        self._limits = limits
        self._pids = {child: child.pid for child in limits}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def problems(self) -> Iterator[tuple[str, str]]:
        for child, limit in self._limits.items():
            if not child.running:
                tail = child.tail(15)
                yield child.name, f"ended with status {child.status}: {tail}"
            if child.pid != self._pids[child]:
                yield child.name, "is another process now"
            if self.peaks[child] > limit:
                yield child.name, f"took {self.peaks[child]:.0f} MiB, the bound is {limit:.0f}"

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            for child in self._limits:
                self.peaks[child] = max(self.peaks[child], resident_mib(child.pid))
                if not child.running and child not in self.ended:
                    self.ended.append(child)


def fuzz(plan: Plan, bootstrap: str, redis_url: str, home: Path, keep: Path) -> Finding:
    """Run the plan against a deployment of its own on these services.

    Args:
        home: an empty folder for models, snapshots and logs.
        keep: where a failing case, and the logs then, are written.
    """
    began = time.monotonic()
    model = home / "tiny-0001"
    train(
        [coloured(n) for n in range(60)],
        preset("tiny"),
        out=model,
        name="tiny-0001",
        version=1,
        seed=0,
    )
    settings = {
        "redis": {"url": redis_url},
        "links": {"timeout_s": 1.0},
        "worker": {"poison_share": 1.0},
    }
    with Deployment(bootstrap, home, **settings) as deployment:
        worker = deployment.worker("worker", model=str(model))
        index = deployment.index(model=str(model))
        run = Run(plan, deployment, model, home)
        with Client(deployment.url) as client, ThreadPoolExecutor(2) as beside:
            wait_for("the index node is ready", client.ready, timeout=120)
            with Watch({worker: WORKER_MIB, index: INDEX_MIB}) as watch:
                costs = beside.submit(run.measure)
                asked = beside.submit(run.ask, deployment)
                run.send()
                left = plan.seconds - (time.monotonic() - began)
                run.wait(watch, left, lambda: deployment.lag() == 0)
                costs.result()
                asked.result()
                run.account()
                run.check_index(watch, client)
            run.finding.problems += watch.problems()
            run.finding.peaks_mib = {child.name: peak for child, peak in watch.peaks.items()}
    run.finding.seconds = time.monotonic() - began
    run.save(keep)
    return run.finding


class Run:
    """The steps of one run."""

    def __init__(self, plan: Plan, deployment: Deployment, model: Path, home: Path) -> None:
        self.finding = Finding()
        self._plan, self._deployment = plan, deployment
        self._model, self._home = model, home
        self._accounts = Accounts()
        self._contents: dict[str, bytes] = {}  # of media, texts and requests, to be saved
        self._expensive = self._make_expensive()

    def _make_expensive(self) -> list[tuple[str, Sample]]:
        """Media files and texts, a share of each where the plan is smaller than the corpus."""
        rng = random.Random(self._plan.seed)
        files = list(corpus(self._plan.seed))
        if self._plan.media < len(files):
            files = rng.sample(files, self._plan.media)
        words = [(name, text) for name, text in texts() if _is_utf8(text)]
        words = rng.sample(words, min(self._plan.texts, len(words)))
        made = [
            (f"media {case.name}", _of_file(f"media-{n}", case)) for n, case in enumerate(files)
        ]
        return made + [
            (f"text {name}", Sample(id=f"text-{n}", text=text.decode()))
            for n, (name, text) in enumerate(words)
        ]

    def cases(self) -> Iterator[MessageCase]:
        """All messages, the expensive ones spread evenly among the others."""
        odd = [(f"text {name}", text) for name, text in texts() if not _is_utf8(text)]
        others = [_of_sample(name, sample) for name, sample in self._expensive]
        others += [_of_bytes(name, text) for name, text in odd]
        every = max(1, self._plan.messages // max(1, len(others)))
        for number, case in enumerate(messages(self._plan.seed, self._plan.messages)):
            yield case
            if number % every == every - 1 and others:
                yield others.pop()
        yield from others

    def send(self) -> None:
        """Everything to `records`; decoding is measured on the way."""
        producer = RawProducer(
            {
                "bootstrap.servers": self._deployment.settings.kafka.bootstrap,
                "message.max.bytes": 20 * MIB,
                "partitioner": "murmur2_random",
                "linger.ms": 20,
                "queue.buffering.max.kbytes": 128 * 1024,
            }
        )
        topic = self._deployment.settings.topic("records")
        for case in self.cases():
            began = time.thread_time()
            try:
                if case.value is None:
                    check_deletion(case.key)
                else:
                    decode_record(case.key, case.value)
            except BadRecord:
                pass
            except Exception as error:  # noqa: BLE001 (that is the finding)
                self._problem(case.name, f"decoding raises {type(error).__name__}")
            self._took(time.thread_time() - began, f"decode {case.name}")
            while True:
                try:
                    producer.produce(
                        topic, key=case.key, value=case.value, on_delivery=self._delivered(case)
                    )
                    break
                except BufferError:
                    producer.poll(0.2)
            producer.poll(0)
        if left := producer.flush(60):
            self._problem("producer", f"{left} messages were not delivered")

    def measure(self) -> None:
        """What `prepare` takes for each media file and text."""
        with Meter(self._model) as meter:
            for name, sample in self._expensive:
                cost: Cost = meter.measure(sample)
                self._took(cost.cpu_s, f"prepare {name}")
                self.finding.largest = sorted([*self.finding.largest, (cost.peak_mib, name)])[-5:]
                if cost.error:
                    self._problem(name, f"prepare: {cost.error}")

    def ask(self, deployment: Deployment) -> None:
        """Hostile requests to the index node, eight at a time."""
        host, port = "127.0.0.1", deployment.settings.http.port
        asked = list(requests(self._plan.seed, self._plan.requests))
        with ThreadPoolExecutor(8) as pool:
            outcomes = pool.map(lambda request: send(request, host, port), asked)
            for request, outcome in zip(asked, outcomes, strict=True):
                self.finding.answers[str(outcome.status)] += 1
                if not request.allows(outcome):
                    self._contents[request.name] = repr(request).encode()
                    self._problem(request.name, f"the answer is {outcome!r:.300}")

    def wait(self, watch: Watch, seconds: float, ready: Callable[[], bool]) -> bool:
        """Until `ready`, or a process has ended, or the time is over (both are problems)."""
        deadline = time.monotonic() + seconds
        while not ready():
            if watch.ended:
                return False
            if time.monotonic() > deadline:
                self._problem("time", f"{self._deployment.lag()} messages are left over")
                return False
            time.sleep(0.5)
        return True

    def account(self) -> None:
        self._accounts.read_predictions(self._read("predictions"))
        self._accounts.read_dead_letters(self._read("dead-letters"))
        self._accounts.read_vectors(self._read("vectors"))
        self._accounts.check()
        self.finding.problems += self._accounts.problems
        self.finding.outcomes = self._accounts.counts()
        self.finding.kinds = self._accounts.kinds

    def check_index(self, watch: Watch, client: Client) -> None:
        """The index node has come to hold what was published, and answers."""
        expected = len(self._accounts.live_ids())
        if self.finding.problems or watch.ended:
            return
        if not self.wait(watch, 60, lambda: client.status().records == expected):
            self._problem("index", f"holds {client.status().records}, expected {expected}")
        elif not client.search(text="a red square", k=5).hits:
            self._problem("index", "finds nothing")

    def save(self, keep: Path) -> None:
        """The failing cases and the logs, where there is a problem."""
        if not self.finding.problems:
            return
        keep.mkdir(parents=True, exist_ok=True)
        wrong = dict(reversed(self.finding.problems))
        chosen = set(list(wrong)[:MOST_SAVED])
        for case in self.cases():
            if case.name in chosen:
                self._contents[case.name] = case.value or b""
        for name, content in self._contents.items():
            if name in wrong:
                (keep / f"{_plain(name)}.bin").write_bytes(content)
        (keep / "problems.json").write_text(json.dumps(self.finding.problems, indent=1))
        for log in self._home.glob("*.log"):
            (keep / log.name).write_bytes(log.read_bytes()[-5_000_000:])

    def _read(self, name: str) -> Iterator[Message]:
        topic = topic_of(self._deployment.settings, name)
        return replay(self._deployment.settings, topic, stop_at=self._deployment.ends(name))

    def _delivered(self, case: MessageCase) -> Callable[..., None]:
        def note(error: object, message: object) -> None:
            if error is not None:
                self._problem(case.name, f"the broker refuses it: {error}")
            else:
                place = (message.partition(), message.offset())  # type: ignore[attr-defined]
                self._accounts.send(case, place)

        return note

    def _took(self, cpu_s: float, name: str) -> None:
        slowest = self.finding.slowest
        if len(slowest) < 5 or cpu_s > slowest[0][0]:
            self.finding.slowest = sorted([*slowest, (cpu_s, name)])[-5:]
        if cpu_s > CPU_S:
            self._problem(name.partition(" ")[2], f"took {cpu_s:.1f} s of CPU to {name[:7]}")

    def _problem(self, name: str, problem: str) -> None:
        self.finding.problems.append((name, problem))


def _of_file(id_: str, case: MediaCase) -> Sample:
    if case.kind == "image":
        return Sample(id=id_, image=case.data)
    return Sample(id=id_, audio=case.data)


def _of_sample(name: str, sample: Sample) -> MessageCase:
    value: dict[str, object] = {"v": 1, "id": sample.id, "ts": 1}
    if sample.text is not None:
        value["text"] = sample.text
    for kind in ("image", "audio"):
        if (data := getattr(sample, kind)) is not None:
            value[kind] = {"data": data}
    return MessageCase(name=name, key=sample.id.encode(), value=msgpack.packb(value))


def _of_bytes(name: str, text: bytes) -> MessageCase:
    """A record whose text is no UTF-8."""
    head = msgpack.packb({"v": 1, "id": "odd", "ts": 1})
    text_field = msgpack.packb("text") + b"\xdb" + len(text).to_bytes(4, "big") + text
    return MessageCase(name=name, key=b"odd", value=bytes([head[0] + 1]) + head[1:] + text_field)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name)[:100]


def report(finding: Finding) -> str:
    """The finding as lines of text."""
    lines = [f"outcomes  {dict(finding.outcomes.most_common())}"]
    lines.append(f"dead      {dict(finding.kinds.most_common())}")
    lines.append(f"answers   {dict(finding.answers.most_common())}")
    slowest = ", ".join(f"{cpu_s:.2f} s {name}" for cpu_s, name in reversed(finding.slowest))
    largest = ", ".join(f"{mib:.0f} MiB {name}" for mib, name in reversed(finding.largest))
    peaks = ", ".join(f"{name} {peak:.0f} MiB" for name, peak in finding.peaks_mib.items())
    lines += [f"slowest   {slowest}", f"largest   {largest}", f"peaks     {peaks}"]
    lines += [f"PROBLEM   {name}: {problem[:500]}" for name, problem in finding.problems[:30]]
    sound = "all accounted for" if not finding.problems else f"{len(finding.problems)} problems"
    return "\n".join([*lines, f"{sound}, {finding.seconds:.0f} s"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    for name, default in vars(Plan()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--keep", type=Path, default=Path(".braid/fuzz"))
    options = vars(parser.parse_args())
    keep = options.pop("keep")
    plan = Plan(**options)
    # As under pytest: `tests.prepared` forks a process, which may have one thread only.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="braid-fuzz-")))
        broker = stack.enter_context(KafkaBroker(folder / "kafka"))
        bootstrap = os.environ.get("KAFKA_BOOTSTRAP") or broker.start()
        valkey = stack.enter_context(Valkey(folder / "valkey"))
        finding = fuzz(plan, bootstrap, valkey.start(), folder / "home", keep / f"seed-{plan.seed}")
    print(report(finding))
    return 1 if finding.problems else 0


if __name__ == "__main__":
    sys.exit(main())
