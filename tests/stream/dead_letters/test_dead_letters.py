"""Dead letters on Apache Kafka: listed, shown, sent again once and not if superseded, purged."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from braid.index.errors import BadQuery
from braid.stream.cli.dead_letters import selection_of, time_of
from braid.stream.cli.main import app
from braid.stream.dead_letters.letters import Selection, letter_of, recent, view
from braid.stream.errors import BadRecord, ConfigError, Unreachable
from braid.stream.index_node.dead_letter_counts import DeadLetterCounts
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import pack
from braid.stream.settings import Settings
from tests.stream.harness import Deployment
from tests.stream.letters import ENCODE, Topics

kafka = pytest.mark.kafka


@pytest.fixture
def topics(deployment: Deployment) -> Topics:
    return Topics(deployment)


@pytest.mark.slow
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

    summary = told()
    assert (summary["total"], summary["replayed"]) == (5, 0)
    assert {(row["stage"], row["kind"]): row["count"] for row in summary["by"]} == {
        ("encode", "RuntimeError"): 2,
        ("decode", "BadRecord"): 1,
        ("join", "BadRecord"): 1,
        ("", ""): 1,
    }
    assert keys()[0] == "odd"
    assert summary["last"][2] == {
        "id": "0:2",
        "at_ms": summary["last"][2]["at_ms"],
        "key": "c",
        "bytes": 1,
        "cut": False,
        "stage": "encode",
        "kind": "RuntimeError",
        "field": "image",
        "reason": "RuntimeError: shape",
        "model": "braid-0003",
        "topic": topics.settings.topic("records"),
        "partition": 0,
        "offset": 2,
        "replayed": False,
    }
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
    listing = topics.braid("list", "--stage", "join")
    assert listing.startswith(
        "1 dead letters, 0 of them sent again\n        1  join  BadRecord\n0:3  "
    )
    assert listing.endswith("-parts[0]@0 d  join BadRecord: expects: is no list\n")


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
    letter = topics.braid("show", second)
    assert "is not msgpack (3000 bytes)" in letter
    assert len(letter) < 3000
    with pytest.raises(ConfigError, match=r"0:7: .*dead-letters holds no such letter"):
        topics.braid("show", "0:7")
    with pytest.raises(ConfigError, match="expected PARTITION:OFFSET"):
        topics.braid("show", "7")


@pytest.mark.slow
@kafka
def test_purge_deletes_what_lies_before(topics: Topics) -> None:
    for key in "abcd":
        topics.bury(key)
    topics.put("dead-letters", b"e", b"", partition=1)
    assert topics.braid("purge", "--before", "1h", "--yes") == "nothing to delete\n"
    printed = topics.braid("purge", "--before", "0:2", "--yes")
    assert printed == "partition 0: deleted what lay before offset 2\n"
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


@pytest.mark.slow
@kafka
def test_the_last_hour_is_counted_at_a_bounded_cost(
    topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in "abc":
        topics.bury(key)
    topics.bury("d", error=ENCODE)
    counts = recent(topics.settings, last=1)
    assert (counts["total"], counts["complete"], counts["by"][0]["count"]) == (4, True, 3)
    printed = CliRunner().invoke(app, ["status"], env=topics.settings.environment()).output
    kinds = "decode BadRecord 3, encode RuntimeError 1 (braid dead-letters list)\n"
    assert f"dead letters 4 in the last hour: {kinds}" in printed
    assert [row["key"] for row in counts["last"]] == ["d"]
    assert recent(topics.settings, wall=time.time() + 7200)["total"] == 0
    monkeypatch.setattr("braid.stream.dead_letters.letters.RECENT_LETTERS", 2)
    counts = recent(topics.settings)
    assert (counts["total"], counts["complete"]) == (2, False)
    monkeypatch.setattr("braid.stream.dead_letters.letters.RECENT_LETTERS", 2000)
    monkeypatch.setattr("braid.stream.dead_letters.letters.RECENT_BYTES", 1)
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
