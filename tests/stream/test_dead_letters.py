"""Dead letters on Apache Kafka: listed, shown, sent again once and not if superseded, purged."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from typer.testing import CliRunner

from index.errors import BadQuery
from stream.broker import Message
from stream.cli import app
from stream.cli_dead_letters import selection_of, time_of
from stream.dead_letter_counts import DeadLetterCounts
from stream.dead_letter_replay import MARK, Replayer
from stream.dead_letters import Selection, letter_of, place_of, recent, replayed, view
from stream.errors import BadRecord, ConfigError, Fenced, Unreachable
from stream.outputs import OutputTopics
from stream.records import pack
from stream.settings import Settings
from tests.stream.harness import Deployment, wait_for

kafka = pytest.mark.kafka


@dataclass
class Topics:
    """Writes to the topics of a deployment as producers and workers do, and commits for them."""

    deployment: Deployment

    def __post_init__(self) -> None:
        self.settings = self.deployment.settings
        self.producer = Producer({"bootstrap.servers": self.settings.kafka_bootstrap})

    def put(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Any = None,
        partition: int = 0,
    ) -> int:  # fmt: skip
        """Produce one message; its offset."""
        offsets: list[int] = []
        self.producer.produce(
            self.settings.topic(topic), key=key, value=value, partition=partition,
            headers=headers, on_delivery=lambda _, sent: offsets.append(int(sent.offset() or 0)),
        )  # fmt: skip
        assert self.producer.flush(30) == 0
        return offsets[0]

    def bury(
        self, key: str, value: bytes | None = b"\x00", *, error: BadRecord | None = None,
        topic: str = "records", model: str | None = None,
    ) -> str:  # fmt: skip
        """A message and the dead letter that it becomes; the letter's id."""
        offset = self.put(topic, key.encode(), value)
        message = Message(
            topic=self.settings.topic(topic), partition=0, offset=offset, key=key.encode(),
            value=value, ts=int(1000 * time.time()),
        )  # fmt: skip
        why = error or BadRecord("text", "is too odd", stage="decode")
        (output,) = OutputTopics(self.settings).dead(message, why, model=model)
        return f"0:{self.put('dead-letters', key.encode(), value, list(output.headers))}"

    def commit(self) -> None:
        """The worker has processed all that is on `records`."""
        group = Consumer(
            {"bootstrap.servers": self.settings.kafka_bootstrap, "group.id": self.settings.group}
        )
        topic = self.settings.topic("records")
        group.commit(
            offsets=[
                TopicPartition(topic, number, end)
                for number, end in self.deployment.ends("records").items()
            ],
            asynchronous=False,
        )
        group.close()

    def replayer(self, **options: Any) -> Replayer:
        groups = {
            self.settings.topic("records"): self.settings.group,
            self.settings.topic("parts"): f"{self.settings.prefix}braid-join",
        }
        return Replayer(self.settings, **{"groups": groups, "wait_s": 0.0, **options})

    def texts(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        return [(message.key, message.value) for message in self.deployment.read(topic)]

    def braid(self, *line: str, status: int = 0) -> str:
        done = CliRunner().invoke(
            app, ["dead-letters", *line], env=self.settings.environment(), catch_exceptions=False
        )
        assert done.exit_code == status, done.output
        return done.output


@pytest.fixture
def topics(deployment: Deployment) -> Topics:
    return Topics(deployment)


ENCODE = BadRecord("image", "RuntimeError: shape", stage="encode", kind="RuntimeError")


@kafka
def test_list_counts_by_stage_and_kind_and_filters(topics: Topics) -> None:
    topics.bury("a")
    topics.bury("b", error=ENCODE, model="braid-0002")
    topics.bury("c", error=ENCODE, model="braid-0003")
    topics.bury("d", topic="parts", error=BadRecord("expects", "is no list", stage="join"))
    topics.put("dead-letters", b"odd", b"no headers", partition=1)

    def told(*line: str) -> Any:
        return json.loads(topics.braid("list", "--json", *line))

    def keys(*line: str) -> list[str]:
        return [row["key"] for row in told(*line)["last"]]

    found = told()
    assert (found["total"], found["replayed"]) == (5, 0)
    assert {(row["stage"], row["kind"]): row["count"] for row in found["by"]} == {
        ("encode", "RuntimeError"): 2,
        ("decode", "BadRecord"): 1,
        ("join", "BadRecord"): 1,
        ("", ""): 1,
    }
    assert keys()[0] == "odd"
    assert found["last"][2] == {
        "id": "0:2", "at_ms": found["last"][2]["at_ms"], "key": "c", "bytes": 1, "cut": False,
        "stage": "encode", "kind": "RuntimeError", "field": "image",
        "reason": "RuntimeError: shape", "model": "braid-0003",
        "topic": topics.settings.topic("records"), "partition": 0, "offset": 2, "replayed": False,
    }  # fmt: skip
    assert keys("--stage", "encode") == ["c", "b"]
    assert keys("--model", "braid-0002") == ["b"]
    for part in ("TOO odd", "Text"):
        assert keys("--reason", part) == ["a"]
    assert keys("--reason", "runtimeerror") == ["c", "b"]
    assert keys("--from", "parts") == ["d"]
    assert keys("--from", "records:0", "--last", "1") == ["c"]
    assert keys("--from", "records:1") == []
    assert keys("--since", "1h", "--stage", "decode") == ["a"]
    assert keys("--until", "1h") == keys("--since", "2999-01-01") == []
    said = topics.braid("list", "--stage", "join")
    assert said.startswith(
        "1 dead letters, 0 of them sent again\n        1  join  BadRecord\n0:3  "
    )
    assert said.endswith("-parts[0]@0 d  join BadRecord: expects: is no list\n")


@kafka
def test_show_decodes_what_it_can_and_writes_the_whole_value(
    topics: Topics, tmp_path: Path
) -> None:
    value = pack({"v": 1, "id": "a", "text": "x" * 5000, "image": {"data": b"\x89PNG" * 1000}})
    first, second = topics.bury("a", value), topics.bury("b", b"\xc1" * 3000)
    told = json.loads(topics.braid("show", first, "--json", "--out", str(tmp_path / "value")))
    assert (tmp_path / "value").read_bytes() == value
    assert told["value"]["text"] == "x" * 200 + "... (5000 characters)"
    assert told["value"]["image"]["data"].startswith("4000 bytes: 89 50 4e 47 ")
    assert (told["stage"], told["reason"], told["offset"]) == ("decode", "is too odd", 0)
    said = topics.braid("show", second)
    assert "is not msgpack (3000 bytes)" in said
    assert len(said) < 3000
    with pytest.raises(ConfigError, match=r"0:7: .*dead-letters holds no such letter"):
        topics.braid("show", "0:7")
    with pytest.raises(ConfigError, match="expected PARTITION:OFFSET"):
        topics.braid("show", "7")


@kafka
def test_replayed_twice_nothing_is_sent_twice(topics: Topics) -> None:
    before = [topics.bury(key, key.encode()) for key in "abcd"]
    topics.bury("e", error=ENCODE)
    told = json.loads(topics.braid("replay", *before[:2], "--wait", "0", "--json"))
    assert (told["sent"], told["already"], told["waiting"]) == (2, 0, before[:2])
    assert topics.texts("records")[5:] == [(b"a", b"a"), (b"b", b"b")]
    (mark,) = topics.deployment.read("records")[5].headers
    assert mark[0] == MARK
    assert (mark[1] or b"").endswith(b"/0:0")
    told = json.loads(topics.braid("replay", "--stage", "decode", "--wait", "0", "--json"))
    assert (told["sent"], told["already"]) == (2, 2)
    for _ in range(2):
        said = topics.braid("replay", "--stage", "decode", "--wait", "0")
        assert said == "0 sent, 4 had been sent before\n"
    assert b"".join(key or b"" for key, _ in topics.texts("records")) == b"abcdeabcd"
    listed = json.loads(topics.braid("list", "--json"))
    assert (listed["total"], listed["replayed"]) == (5, 4)
    assert replayed(topics.settings) == set(before)


@kafka
def test_what_cannot_be_sent_is_told_and_a_dry_run_sends_nothing(topics: Topics) -> None:
    topics.bury("a")
    topics.put("dead-letters", b"odd", b"", [("topic", b"elsewhere")])
    place = [("topic", topics.settings.topic("records").encode())]
    place += [("partition", b"0"), ("offset", b"0")]
    topics.put("dead-letters", b"large", b"", [*place, ("cut-value", b"20000000 sha256:00")])
    said = topics.braid("replay", "--dry-run").splitlines()
    assert said[0] == "1 would be sent, 0 had been sent before"
    assert said[1] == "1 left out: they do not come from records or parts: 0:1"
    assert said[2].endswith("the letter holds a part only: 0:2")
    assert len(topics.texts("records")) == 1


@kafka
def test_an_older_record_does_not_replace_a_newer_one(topics: Topics) -> None:
    """Replayed, it would have the highest offset, and so win."""
    dead = {key: topics.bury(key) for key in ("good", "deleted", "dead again", "alone")}
    topics.put("records", b"good", b"new")
    topics.put("records", b"deleted", None)
    newer = topics.bury("dead again", b"newer")
    result = topics.replayer().run(Selection())
    assert sorted(result.superseded) == sorted(
        dead[key] for key in ("good", "deleted", "dead again")
    )
    assert sorted(result.sent) == sorted([dead["alone"], newer])
    forced = topics.replayer(force=True).run(Selection(ids=frozenset([place_of(dead["good"])])))
    assert list(forced.sent) == [dead["good"]]
    assert topics.texts("records")[-1] == (b"good", b"\x00")


@kafka
def test_a_record_that_comes_during_the_replay_counts_too(topics: Topics) -> None:
    """The second transaction is made after the first, and looks at the topic again."""
    first, second = topics.bury("a"), topics.bury("b")

    def sleep(seconds: float) -> None:
        if topics.texts("records")[-1] != (b"b", b"new"):
            topics.put("records", b"b", b"new")

    result = topics.replayer(rate=1.0, sleep=sleep).run(Selection())
    assert (list(result.sent), result.superseded) == ([first], [second])


@kafka
def test_a_part_is_replaced_by_the_same_fields_only(topics: Topics) -> None:
    ours = ("text", "picture", "deleted")
    dead = {key: topics.bury(key, pack({"text": "old"}), topic="parts") for key in ours}
    topics.put("parts", b"text", pack({"text": "new"}))
    topics.put("parts", b"picture", pack({"image": {"uri": "x"}}))
    topics.put("records", b"deleted", None)
    result = topics.replayer().run(Selection())
    assert list(result.sent) == [dead["picture"]]
    assert sorted(result.superseded) == sorted([dead["text"], dead["deleted"]])
    assert topics.texts("parts")[-1] == (b"picture", pack({"text": "old"}))


@kafka
def test_what_fails_again_is_told(topics: Topics) -> None:
    good, bad, late = (topics.bury(key, key.encode()) for key in ("good", "bad", "late"))

    def worker(seconds: float) -> None:
        """It processes the first two, of which one is dead again, while the outcome is awaited."""
        if seconds == 0.5 and len(topics.texts("dead-letters")) == 3:
            topics.bury("bad", b"bad", error=ENCODE)
            again = topics.deployment.read("records")[4]
            (output,) = OutputTopics(topics.settings).dead(again, ENCODE)
            topics.put("dead-letters", b"bad", b"bad", list(output.headers))
            group = Consumer(
                {
                    "bootstrap.servers": topics.settings.kafka_bootstrap,
                    "group.id": topics.settings.group,
                }
            )
            place = TopicPartition(topics.settings.topic("records"), 0, 5)
            group.commit(offsets=[place], asynchronous=False)
            group.close()
        time.sleep(min(seconds, 0.05))

    result = topics.replayer(wait_s=5.0, sleep=worker).run(Selection())
    assert (result.done, result.waiting) == ([good], [late])
    assert {id: letter.kind for id, letter in result.failed.items()} == {bad: "RuntimeError"}


@kafka
@pytest.mark.parametrize("step", ["_look", "_send"])
def test_of_two_replays_at_once_one_sends(topics: Topics, step: str) -> None:
    """The first is slow: the second runs when that has read the marks, or is about to send."""
    topics.bury("a")
    others: list[Any] = []

    class Overtaken(Replayer):
        def _look(self, *arguments: Any) -> set[str]:
            wanted = super()._look(*arguments)
            if step == "_look":
                others.append(topics.replayer().run(Selection()))
            return wanted

        def _send(self, *arguments: Any) -> None:
            others.append(topics.replayer().run(Selection()))
            super()._send(*arguments)

    slow = topics.replayer(force=True)  # else what the other one sent would supersede the letter
    slow.__class__ = Overtaken
    if step == "_send":
        with pytest.raises(Fenced):
            slow.run(Selection())
    else:
        result = slow.run(Selection())
        assert (len(result.sent), result.already) == (0, 1)
    assert len(topics.texts("records")) == 2
    assert len(others[0].sent) == 1


@kafka
def test_purge_deletes_what_lies_before(topics: Topics) -> None:
    for key in "abcd":
        topics.bury(key)
    topics.put("dead-letters", b"e", b"", partition=1)
    assert topics.braid("purge", "--before", "1h", "--yes") == "nothing to delete\n"
    said = topics.braid("purge", "--before", "0:2", "--yes")
    assert said == "partition 0: deleted what lay before offset 2\n"
    assert sorted(key or b"" for key, _ in topics.texts("dead-letters")) == [b"c", b"d", b"e"]
    asked = CliRunner().invoke(
        app,
        ["dead-letters", "purge", "--before", "2999-01-01"],
        env=topics.settings.environment(),
        input="n\n",
    )
    assert asked.exit_code == 1
    assert "delete up to 3 letters in 2 partitions?" in asked.output
    assert len(topics.texts("dead-letters")) == 3
    told = json.loads(topics.braid("purge", "--before", "2999-01-01", "--yes", "--json"))
    assert told == {"0": 4, "1": 1}
    assert topics.texts("dead-letters") == []


@kafka
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_worker_processes_what_is_sent_again(deployment: Deployment) -> None:
    """One that its producer mended in place of braid's fault, and one that is bad for good."""
    topics = Topics(deployment)
    fine = pack({"v": 1, "id": "fine", "text": "a red tile"})
    topics.put("records", b"bad", b"\xc1")
    worker = deployment.worker("one")
    wait_for("a dead letter", lambda: len(topics.texts("dead-letters")) == 1, timeout=90)
    buried = topics.bury("fine", fine)
    told = json.loads(topics.braid("replay", "--wait", "60", "--json", status=1))
    assert (told["sent"], told["done"], told["waiting"]) == (2, 1, [])
    ((id, again),) = told["failed"].items()
    assert (id, again["stage"], again["key"]) == ("0:0", "decode", "bad")
    assert buried != id
    assert worker.running
    found = recent(deployment.settings)
    assert (found["total"], found["complete"]) == (3, True)


@kafka
def test_the_last_hour_is_counted_at_a_bounded_cost(
    topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in "abc":
        topics.bury(key)
    topics.bury("d", error=ENCODE)
    found = recent(topics.settings, last=1)
    assert (found["total"], found["complete"], found["by"][0]["count"]) == (4, True, 3)
    said = CliRunner().invoke(app, ["status"], env=topics.settings.environment()).output
    kinds = "decode BadRecord 3, encode RuntimeError 1 (braid dead-letters list)\n"
    assert f"dead letters 4 in the last hour: {kinds}" in said
    assert [row["key"] for row in found["last"]] == ["d"]
    assert recent(topics.settings, wall=time.time() + 7200)["total"] == 0
    monkeypatch.setattr("stream.dead_letters.RECENT_LETTERS", 2)
    found = recent(topics.settings)
    assert (found["total"], found["complete"]) == (2, False)
    monkeypatch.setattr("stream.dead_letters.RECENT_LETTERS", 2000)
    monkeypatch.setattr("stream.dead_letters.RECENT_BYTES", 1)
    assert recent(topics.settings)["complete"] is False


def test_the_index_node_counts_once_for_all_who_ask() -> None:
    now, counted = [100.0], list[float]()

    def count(_: Settings) -> dict[str, Any]:
        time.sleep(0.1)
        counted.append(now[0])
        if len(counted) == 2:
            raise Unreachable("no answer from 10.0.0.1:9092")
        return {"total": len(counted)}

    async def ask() -> None:
        counts = DeadLetterCounts(Settings(), count=count, clock=lambda: now[0])
        assert await asyncio.gather(*(counts() for _ in range(20))) == [{"total": 1}] * 20
        now[0] = 110.0
        assert await counts() == {"total": 1}
        now[0] = 120.0
        for _ in range(2):
            with pytest.raises(BadQuery, match="broker: does not answer"):
                await counts()
        now[0] = 140.0
        assert await counts() == {"total": 3}

    asyncio.run(ask())
    assert counted == [100.0, 120.0, 140.0]


@pytest.mark.parametrize(
    "value",
    [b"", b"\x00" * 10**6, pack({"a": [[[[[[1]]]]]] * 100, "b": "é" * 10**6, "c": float("nan")})],
)
def test_a_view_is_small_whatever_the_value(value: bytes) -> None:
    assert len(json.dumps(view(value))) < 5000


def test_a_letter_with_odd_headers_is_still_a_letter() -> None:
    headers = [("topic", b"t"), ("partition", b"x"), ("offset", b"-1"), ("reason", b"\xff" * 5000)]
    message = Message(topic="d", partition=1, offset=2, key=None, value=None, headers=headers)
    letter = letter_of(message)
    assert (letter.id, letter.origin, letter.size) == ("1:2", None, 0)
    assert len(letter.reason) == 1000


def test_options_that_cannot_be() -> None:
    assert time_of("2026-11-28T12:00") == 1000 * 1795867200
    assert time_of("2026-11-28T13:00+01:00") == time_of("2026-11-28T12:00")
    assert time_of("2h", wall=lambda: 10_000.0) == 2_800_000
    for wrong in ("", "h", "yesterday", "-2h", "2w"):
        with pytest.raises(ConfigError, match="expected a time"):
            time_of(wrong)
    for wrong in ("vectors", "records:", "records:x", ":1"):
        with pytest.raises(ConfigError, match="--from"):
            selection_of(source=wrong)
    assert selection_of(source="parts:2") == Selection(source="parts", partition=2)
