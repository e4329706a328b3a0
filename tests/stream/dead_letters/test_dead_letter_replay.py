"""Dead letters sent again: once each, not over a newer record, and what becomes of them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from braid.stream.dead_letters.letters import Selection, place_of, recent, replayed
from braid.stream.dead_letters.origins import MARK
from braid.stream.dead_letters.replay import WAIT_S, Replayer
from braid.stream.errors import Fenced, PublishRefused
from braid.stream.kafka.schemas import pack
from braid.stream.worker.outputs import OutputTopics
from tests.stream.harness import Deployment, wait_for
from tests.stream.letters import ENCODE, Topics

kafka = pytest.mark.kafka


@pytest.fixture
def topics(deployment: Deployment) -> Topics:
    return Topics(deployment)


@pytest.mark.slow
@kafka
def test_replayed_twice_nothing_is_sent_twice(topics: Topics) -> None:
    before = [topics.bury(key, key.encode()) for key in "abcd"]
    topics.bury("e", error=ENCODE)
    told = json.loads(topics.braid("replay", *before[:2], "--wait", "0", "--json"))
    assert (told["sent"], told["already"], told["waiting"]) == (2, 0, before[:2])
    assert topics.texts("records")[5:] == [(b"a", b"a"), (b"b", b"b")]
    mark = dict(topics.deployment.read("records")[5].headers)[MARK]
    assert (mark or b"").endswith(b"/0:0")
    told = json.loads(topics.braid("replay", "--stage", "decode", "--wait", "0", "--json"))
    assert (told["sent"], told["already"]) == (2, 2)
    for _ in range(2):
        printed = topics.braid("replay", "--stage", "decode", "--wait", "0")
        assert printed == "0 sent, 4 had been sent before\n"
    assert b"".join(key or b"" for key, _ in topics.texts("records")) == b"abcdeabcd"
    listed = json.loads(topics.braid("list", "--json"))
    assert (listed["total"], listed["replayed"]) == (5, 4)
    assert replayed(topics.settings) == set(before)


@pytest.mark.slow
@kafka
def test_what_cannot_be_read_yet_is_waited_for(topics: Topics) -> None:
    """Somebody else's transaction in the partition is still open when the replay has committed."""
    letter = topics.bury("a")
    other = Producer(
        {"bootstrap.servers": topics.settings.kafka.bootstrap, "transactional.id": "other"}
    )
    other.init_transactions(30)
    other.begin_transaction()
    other.produce(topics.settings.topic("records"), b"b", key=b"b", partition=0)
    other.flush(30)

    waits: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds == WAIT_S:
            if not waits:  # its end marker may be written after the second look
                other.commit_transaction(30)
            waits.append(seconds)

    result = topics.replayer(sleep=sleep).run(Selection())
    assert result.sent == {letter: (topics.settings.topic("records"), 0, 2)}
    assert result.waiting == [letter]


@pytest.mark.slow
@kafka
def test_what_cannot_be_sent_is_told_and_a_dry_run_sends_nothing(topics: Topics) -> None:
    topics.bury("a")
    topics.put("dead-letters", b"odd", b"", [("topic", b"elsewhere")])
    place = [("topic", topics.settings.topic("records").encode())]
    place += [("partition", b"0"), ("offset", b"0")]
    topics.put("dead-letters", b"large", b"", [*place, ("cut-value", b"20000000 sha256:00")])
    lines = topics.braid("replay", "--dry-run").splitlines()
    assert lines[0] == "1 would be sent, 0 had been sent before"
    assert lines[1] == "1 left out: they do not come from records or parts: 0:1"
    assert lines[2].endswith("the letter holds a part only: 0:2")
    assert len(topics.texts("records")) == 1


@pytest.mark.slow
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


@pytest.mark.slow
@kafka
def test_a_record_that_comes_during_the_replay_counts_too(topics: Topics) -> None:
    """The second transaction is made after the first, and looks at the topic again."""
    first, second = topics.bury("a"), topics.bury("b")

    def sleep(seconds: float) -> None:
        if topics.texts("records")[-1] != (b"b", b"new"):
            topics.put("records", b"b", b"new")

    result = topics.replayer(rate=1.0, sleep=sleep).run(Selection())
    assert (list(result.sent), result.superseded) == ([first], [second])


@pytest.mark.slow
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


@pytest.mark.slow
@kafka
def test_what_fails_again_is_told(topics: Topics) -> None:
    good, bad, late = (topics.bury(key, key.encode()) for key in ("good", "bad", "late"))

    def worker(seconds: float) -> None:
        """It processes the first two, of which one is dead again, while the outcome is awaited."""
        if seconds == 0.5 and len(topics.texts("dead-letters")) == 3:
            topics.bury("bad", b"bad", error=ENCODE)
            again = topics.deployment.read("records")[4]
            (output,) = OutputTopics(topics.settings, "g0001").dead(again, ENCODE)
            topics.put("dead-letters", b"bad", b"bad", list(output.headers))
            group = Consumer(
                {
                    "bootstrap.servers": topics.settings.kafka.bootstrap,
                    "group.id": topics.settings.group(topics.settings.generation),
                }
            )
            place = TopicPartition(topics.settings.topic("records"), 0, 5)
            group.commit(offsets=[place], asynchronous=False)
            group.close()
        time.sleep(min(seconds, 0.05))

    result = topics.replayer(wait_s=5.0, sleep=worker).run(Selection())
    assert (result.done, result.waiting) == ([good], [late])
    assert {id: letter.kind for id, letter in result.failed.items()} == {bad: "RuntimeError"}


@pytest.mark.slow
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


@pytest.mark.slow
@kafka
@pytest.mark.parametrize("committed", [True, False])
def test_a_transaction_of_unknown_outcome_is_settled_first(topics: Topics, committed: bool) -> None:
    letter = topics.bury("a")
    tries: list[int] = []

    class Doubtful(Replayer):
        def _send(self, sink: Any, batch: Any) -> None:
            tries.append(len(batch))
            if committed or len(tries) > 1:
                super()._send(sink, batch)
            if len(tries) == 1:
                sink._retire()  # the next producer waits until the broker has ended this one's
                raise PublishRefused("no answer")

    replayer = topics.replayer()
    replayer.__class__ = Doubtful
    result = replayer.run(Selection())
    assert list(result.sent) == [letter]
    assert (len(tries), result.already, result.superseded) == (1 if committed else 2, 0, [])
    assert len(topics.texts("records")) == 2


@kafka
@pytest.mark.slow
@pytest.mark.timeout(600)
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
    counts = recent(deployment.settings)
    assert (counts["total"], counts["complete"]) == (3, True)
