"""About a minute of the fuzz run, and what it rests on: the same corpus from the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from braid.stream.errors import BadRecord
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import decode_record
from braid.stream.settings import Settings
from braid.stream.worker.outputs import OutputTopics
from tests.fuzz.accounts import Accounts
from tests.fuzz.messages import MUTATIONS, MessageCase, messages
from tests.fuzz.run import Plan, fuzz, report
from tests.fuzz.texts import texts


def test_the_same_seed_makes_the_same_messages() -> None:
    assert list(messages(1, 60)) == list(messages(1, 60))
    assert list(messages(1, 60)) != list(messages(2, 60))
    kinds = {case.name.rpartition("-")[0] for case in messages(1, 1500)}
    assert kinds == {mutate.__name__ for mutate in MUTATIONS} | {"healthy"}
    assert len({name for name, _ in texts()}) >= 60


def test_a_healthy_message_decodes_and_others_raise_bad_record_alone() -> None:
    refused = 0
    for case in messages(3, 1500):
        try:
            if case.value is not None:
                decode_record(case.key, case.value)
        except BadRecord:
            assert not case.healthy, case.name
            refused += 1
    assert 300 < refused < 1300  # the others are right in a way that few programs are


def test_a_message_without_an_outcome_or_with_two_is_found_out(tmp_path: Path) -> None:
    topics = OutputTopics(Settings(home=tmp_path), "g0001")

    def dead(offset: int, value: bytes = b"v") -> Message:
        message = Message(topic="records", partition=0, offset=offset, key=b"k", value=value)
        (output,) = topics.dead(message, BadRecord("value", "is bad"))
        return Message(
            topic=output.topic,
            partition=0,
            offset=9,
            key=output.key,
            value=output.value,
            headers=output.headers,
        )

    accounts = Accounts()
    for offset, name in enumerate(("right", "none", "two", "changed", "healthy")):
        case = MessageCase(name=name, key=b"k", value=b"v", healthy=name == "healthy")
        accounts.send(case, (0, offset))
    accounts.read_dead_letters([dead(0), dead(2), dead(2), dead(3, b"other"), dead(4), dead(7)])
    accounts.check()
    assert {name for name, _ in accounts.problems} == {
        "none",
        "two",
        "changed",
        "healthy",
        "(0, 7)",
    }


@pytest.mark.kafka
@pytest.mark.redis
def test_a_minute_of_it(kafka: str, valkey: str, tmp_path: Path) -> None:
    plan = Plan(seed=7, seconds=300, messages=3000, media=60, texts=60, requests=200)
    finding = fuzz(plan, kafka, valkey, tmp_path / "home", tmp_path / "failed")
    assert not finding.problems, report(finding)
    assert finding.outcomes["dead letter"] > 1000
    assert finding.outcomes["prediction and vector"] > 500
    assert (tmp_path / "failed").exists() is False
