"""The join on Apache Kafka: restarts, rebalances, kills, large parts, deletions, its bounds."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from confluent_kafka import Producer as RawProducer

from braid.encoders.embedder import load
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import MAX_RECORD_BYTES, MIB, decode_map
from braid.stream.local.child import Child
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.worker.join.loop import JoinLoop, JoinThread
from braid.stream.worker.join.state import unpack_state
from tests.stream.harness import Deployment, wait_for
from tests.stream.running import running

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]

EXPECTS = ["text", "image", "audio"]


class Parts:
    """Sends parts; what came last of each id and field is what its record must hold."""

    def __init__(self, deployment: Deployment) -> None:
        self._topic = deployment.settings.topic("parts")
        self._producer = RawProducer(
            {
                "bootstrap.servers": deployment.settings.kafka.bootstrap,
                "partitioner": "murmur2_random",
                "message.max.bytes": 17 * MIB,
                "log_level": 0,
            }
        )
        self.sent = 0

    def send(self, id_: str, *, flush: bool = True, **fields: Any) -> None:
        """One part; its `ts` is later than that of the part before."""
        self.sent += 1
        value = {"v": 1, "id": id_, "ts": self.sent, **fields}
        self._producer.produce(self._topic, key=id_.encode(), value=msgpack.packb(value))
        if flush:
            self.flush()

    def null(self, id_: str) -> None:
        self._producer.produce(self._topic, key=id_.encode(), value=None)
        self.flush()

    def flush(self) -> None:
        assert self._producer.flush(60) == 0


@contextmanager
def joining(settings: Settings, slot: str = "test") -> Iterator[JoinLoop]:
    """A member of the join inside the test's process, until the block ends; it must not fail.

    Its transactions may take long: the machine may be under load.
    """
    settings = settings.replace(
        kafka={"transaction_timeout_s": 30.0}, worker={"publish_timeout_s": 45.0}
    )
    errors: list[BaseException] = []
    loop = JoinLoop(
        settings,
        transactional_id=f"{settings.prefix}braid-join-{slot}",
        metrics=WorkerMetrics().join,
    )

    def run() -> None:
        try:
            loop.run()
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        thread.join(30)
        assert not thread.is_alive()
    assert errors == []


def lag(deployment: Deployment) -> int:
    settings = deployment.settings
    topic = settings.topic("parts")
    ends = deployment.ends("parts")
    group = f"{settings.prefix}braid-join"
    committed = Admin(settings).committed(group, topic, settings.kafka.partitions)
    return sum(end - committed.get(number, 0) for number, end in ends.items())


def all_read(deployment: Deployment) -> None:
    wait_for("all parts are taken", lambda: lag(deployment) == 0, timeout=90)


def records(deployment: Deployment) -> dict[str, list[dict[str, Any] | None]]:
    """Id -> the values on `records`, in their order; None for a deletion."""
    by_id: dict[str, list[dict[str, Any] | None]] = defaultdict(list)
    for message in deployment.read("records"):
        value = None if message.value is None else decode_map(message.value)
        by_id[(message.key or b"").decode()].append(value)
    return by_id


def kept(deployment: Deployment) -> dict[bytes, bytes]:
    """The changelog, compacted."""
    states: dict[bytes, bytes] = {}
    for message in deployment.read("parts-seen"):
        states.pop(message.key or b"", None)
        if message.value is not None:
            states[message.key or b""] = message.value
    return states


def text(header: bytes | None) -> str:
    return (header or b"").decode()


def letters(deployment: Deployment) -> list[tuple[Message, str, str]]:
    """Each dead letter, with its field and reason."""
    rejected = []
    for message in deployment.read("dead-letters"):
        headers = dict(message.headers)
        rejected.append((message, text(headers["field"]), text(headers["reason"])))
    return rejected


def test_bad_parts_are_dead_letters_and_large_ones_are_joined(kafka: str, tmp_path: Path) -> None:
    half = random.Random(0).randbytes(MAX_RECORD_BYTES // 2)
    with Deployment(kafka, tmp_path) as deployment, joining(deployment.settings):
        parts = Parts(deployment)
        parts.send("nested", text="x", expects=[["text"]])
        parts.send("number", text="x", expects=[[1]])
        parts.send("labels", text="x", labels={"a": "1"}, expects=["text", "audio"])
        parts.send("labels", audio={"data": b"w"}, labels=None, meta=None)
        parts.send("mega", image={"data": half[:1_200_000]}, expects=["image", "text"])
        parts.send("mega", text="x")
        parts.send("most", image={"data": half}, expects=["image", "audio"])
        parts.send("most", audio={"data": half[:-1000]})
        parts.send("over", image={"data": half}, expects=["image", "audio"])
        parts.send("over", audio={"data": half})
        all_read(deployment)
        by_id = records(deployment)
        assert set(by_id) == {"labels", "mega", "most"}
        (labels,), (mega,), (most,) = by_id["labels"], by_id["mega"], by_id["most"]
        assert labels is not None and mega is not None and most is not None  # noqa: PT018
        assert (labels["labels"], labels["audio"]) == ({"a": "1"}, {"data": b"w"})
        assert mega["image"] == {"data": half[:1_200_000]}
        assert (most["image"], most["audio"]) == ({"data": half}, {"data": half[:-1000]})
        dead = {
            (message.key or b"").decode(): (field, r) for message, field, r in letters(deployment)
        }
        assert set(dead) == {"nested", "number", "over"}
        assert (
            dead["nested"]
            == dead["number"]
            == ("expects", "must be a list of text, image, audio, video")
        )
        assert dead["over"][0] == "value"
        assert f"the limit is {MAX_RECORD_BYTES}" in dead["over"][1]


def test_a_restart_reads_the_table_back_and_counts_its_time_on(kafka: str, tmp_path: Path) -> None:
    with Deployment(kafka, tmp_path, join={"quiet_s": 15.0}) as deployment:
        parts = Parts(deployment)
        with joining(deployment.settings):
            for number in range(20):
                parts.send(f"r{number}", text=f"text {number}", expects=["text", "audio"])
            all_read(deployment)
            began = time.time()
        assert records(deployment) == {}
        with joining(deployment.settings):
            for number in range(10):
                parts.send(f"r{number}", audio={"uri": f"u{number}"})
            all_read(deployment)
            wait_for("the others go on", lambda: len(records(deployment)) == 20, timeout=60)
            waited = time.time() - began
        for number, values in ((n, records(deployment)[f"r{n}"]) for n in range(20)):
            (value,) = values
            assert value is not None
            assert value["text"] == f"text {number}"
            assert ("audio" in value) == (number < 10)
        assert waited > 10  # not at once


def test_a_backlog_is_read_before_anything_is_released(kafka: str, tmp_path: Path) -> None:
    with Deployment(kafka, tmp_path, join={"quiet_s": 2.0, "late_s": 4.0}) as deployment:
        parts = Parts(deployment)
        patient = deployment.settings.replace(join={"quiet_s": 600.0, "late_s": 600.0})
        with joining(patient):  # on a busy machine 2 s may pass before it ends
            parts.send("a", text="x", expects=["text", "audio"])
            all_read(deployment)
        parts.send("a", audio={"uri": "u"})
        time.sleep(5)  # longer than both, while there is no join
        with joining(deployment.settings):
            all_read(deployment)
            wait_for("it is forgotten", lambda: kept(deployment) == {}, timeout=30)
        (value,) = records(deployment)["a"]
        assert value is not None
        assert (value["text"], value["audio"]) == ("x", {"uri": "u"})


def test_the_table_stays_within_its_bound(kafka: str, tmp_path: Path) -> None:
    with Deployment(
        kafka, tmp_path, join={"bytes": 16 * MIB, "incomplete": "dead-letter"}
    ) as deployed:
        parts = Parts(deployed)
        with joining(deployed.settings) as loop:
            most = 0
            for number in range(150):
                parts.send(f"r{number}", image={"data": bytes(400_000)}, expects=["image", "text"])
                most = max(most, loop._table.nbytes)
            all_read(deployed)
            count = len(loop._table)
            assert most <= 16 * MIB + 500_000
            assert loop._table.nbytes <= 16 * MIB
        assert len(letters(deployed)) == 150 - count > 100
        assert "join.bytes" in letters(deployed)[0][2]
        assert len(kept(deployed)) == count


def test_a_deletion_on_records_is_not_undone_by_a_later_part(kafka: str, tmp_path: Path) -> None:
    def forgotten() -> bool:
        states = kept(deployment)
        return b"b" not in states and not unpack_state(states[b"a"]).fields

    with Deployment(kafka, tmp_path) as deployment:
        settings = deployment.settings
        parts = Parts(deployment)
        with joining(settings), running(settings, load("null:16")):
            for id_ in ("a", "b"):
                parts.send(id_, text="deleted", image={"data": b"png"})
            wait_for("both are embedded", lambda: len(deployment.vectors()) == 2, timeout=60)
            deployment.delete("a")
            parts.null("b")
            wait_for("both are forgotten", forgotten, timeout=60)
            all_read(deployment)  # the mark behind the worker's null is stepped over
            for id_ in ("a", "b"):
                parts.send(id_, audio={"data": b"w"})
            wait_for("both are embedded again", lambda: len(deployment.vectors()) == 5, timeout=60)
            wait_for("marks are stepped over", lambda: deployment.lag() == 0, timeout=30)
        for id_, values in records(deployment).items():
            last = values[-1]
            assert last is not None
            assert set(last) == {"v", "id", "ts", "audio"}
            assert (None in values) == (id_ == "a")


def test_what_ends_the_join_does_not_end_the_process(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAID_FAILPOINT", "join-before-publish:raise")
    with Deployment(kafka, tmp_path) as deployment:
        join = JoinThread(deployment.settings, slot="test", metrics=WorkerMetrics().join)
        join.start()
        try:
            Parts(deployment).send("a", text="x")
            wait_for("the failure is shown", lambda: "join" in join.problems, timeout=30)
            assert join.problems["join"].startswith("failpoint join-before-publish")
            monkeypatch.delenv("BRAID_FAILPOINT")
            wait_for("it works again", lambda: join.problems == {}, timeout=60)
            all_read(deployment)
        finally:
            join.close()
        assert len(records(deployment)["a"]) == 1


# ---- killed, and moved about


def flow(parts: Parts, ids: Sequence[str], seed: int, hurry: threading.Event) -> None:
    """Three parts of each id, mixed, with others in between; slowly until there is `hurry`."""
    plan = [(id_, name) for id_ in ids for name in EXPECTS]
    random.Random(seed).shuffle(plan)
    for number, (id_, name) in enumerate(plan):
        value = f"{name} of {id_}"
        plain = value if name == "text" else {"data": value.encode()}
        parts.send(id_, expects=EXPECTS, flush=False, **{name: plain})
        if number % 5 == 0 and not hurry.is_set():
            parts.flush()
            time.sleep(0.2)
    parts.flush()


def assert_joined_exactly_once(deployment: Deployment, ids: Sequence[str]) -> None:
    by_id = records(deployment)
    assert set(by_id) == set(ids)
    assert {id_: len(values) for id_, values in by_id.items() if len(values) != 1} == {}
    for id_, (value,) in by_id.items():
        assert value is not None
        assert value["text"] == f"text of {id_}"
        assert value["image"] == {"data": f"image of {id_}".encode()}
        assert value["audio"] == {"data": f"audio of {id_}".encode()}
    assert letters(deployment) == []


def test_members_that_come_and_go_lose_and_double_nothing(kafka: str, tmp_path: Path) -> None:
    ids = [f"r{number}" for number in range(400)]
    with Deployment(kafka, tmp_path, join={"quiet_s": 300.0}) as deployment:
        hurry = threading.Event()
        flowing = threading.Thread(target=flow, args=(Parts(deployment), ids, 1, hurry))
        flowing.start()
        with joining(deployment.settings, "one"):
            wait_for("some are joined", lambda: len(records(deployment)) > 5, timeout=60)
            for _ in range(3):
                with joining(deployment.settings, "two") as two:
                    wait_for("two has partitions", lambda: two._restored, timeout=60)
            hurry.set()
            flowing.join()
            with joining(deployment.settings, "two"):
                all_read(deployment)
        assert_joined_exactly_once(deployment, ids)


def test_kills_within_transactions_lose_and_double_nothing(kafka: str, tmp_path: Path) -> None:
    ids = [f"r{number}" for number in range(400)]
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    points = ["join-in-transaction", "join-before-publish", "join-after-publish"]

    def armed(name: str, number: int) -> Child:
        spec = f"{points[number % 3]}:kill:{moments.randrange(2, 7)}"
        return deployment.child(
            f"{name}{number}", ["-m", "tests.stream.join_process", name], {"BRAID_FAILPOINT": spec}
        )

    with Deployment(kafka, tmp_path, join={"quiet_s": 300.0}) as deployment:
        hurry = threading.Event()
        victims = [armed("one", 0), armed("two", 1)]
        flowing = threading.Thread(target=flow, args=(Parts(deployment), ids, seed, hurry))
        flowing.start()
        kills = 0
        while kills < 8 and flowing.is_alive():
            for place, victim in enumerate(victims):
                if not victim.running:
                    assert victim.status == -signal.SIGKILL, victim.tail()
                    kills += 1
                    victims[place] = armed("one" if place == 0 else "two", kills + 1)
            time.sleep(0.1)
        hurry.set()
        flowing.join()
        for victim in victims:
            victim.stop(grace=0)
        deployment.child("last", ["-m", "tests.stream.join_process", "one"])
        all_read(deployment)
        assert kills >= 3
        assert_joined_exactly_once(deployment, ids)
