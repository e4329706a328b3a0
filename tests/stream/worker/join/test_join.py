"""Parts become one record: the rules and the table, against a model, without Kafka."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.stream.errors import BadRecord, ConfigError
from braid.stream.kafka.client import Message, Output
from braid.stream.kafka.schemas import MAX_RECORD_BYTES, decode_map
from braid.stream.settings import Settings, load
from braid.stream.worker.join.state import decode_part, merge, pack_state, unpack_state, with_part
from braid.stream.worker.join.table import JoinTable
from braid.stream.worker.outputs import DELETED_HEADER

SETTINGS = Settings(join={"quiet_s": 10, "late_s": 100})


def part(
    id_: str = "a", *, at: int = 1, offset: int = 0, partition: int = 0, **fields: Any
) -> Message:
    value = msgpack.packb({"v": 1, "id": id_, "ts": 1, **fields})
    return Message(
        topic="parts", partition=partition, offset=offset, key=id_.encode(), value=value, ts=at
    )


def fields(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


def null(id_: str = "a", *, deleted: int | None = None) -> Message:
    headers = [] if deleted is None else [(DELETED_HEADER, str(deleted).encode())]
    return Message(
        topic="parts", partition=0, offset=0, key=id_.encode(), value=None, headers=headers
    )


def sent(outputs: list[Output], topic: str = "records") -> list[dict[str, Any] | None]:
    values = [output.value for output in outputs if output.topic == topic]
    return [None if value is None else decode_map(value) for value in values]


def due(table: JoinTable, now_ms: int) -> list[Output]:
    return [output for outputs in table.due(now_ms, {0: now_ms}) for output in outputs]


def reasons(outputs: list[Output]) -> list[tuple[bytes | None, bytes | None]]:
    dead = [dict(output.headers) for output in outputs if output.topic == "dead-letters"]
    return [(headers["field"], headers["reason"]) for headers in dead]


def test_the_later_ts_wins_field_by_field_whatever_the_order() -> None:
    parts = [
        part(text="old", labels={"x": "1"}, ts=1),
        part(text="new", labels={"y": "2"}, ts=5),
        part(text="between", labels={"x": "3"}, image={"data": b"png"}, ts=3),
    ]
    for seed in range(6):
        table, outputs = JoinTable(SETTINGS), []
        for message in random.Random(seed).sample(parts, 3):
            outputs = table.take(message, 1000)
        (record,) = sent(outputs)
        assert record == {
            "v": 1,
            "id": "a",
            "ts": 5,
            "text": "new",
            "image": {"data": b"png"},
            "labels": {"x": "3", "y": "2"},
        }


def test_a_record_waits_for_what_any_part_expects() -> None:
    table = JoinTable(SETTINGS)
    assert sent(table.take(part(text="x", expects=["image", "text"]), 1000)) == []
    assert table.waiting == 1
    (record,) = sent(table.take(part(image={"data": b"png"}), 2000))
    assert record is not None
    assert (record["text"], record["image"]) == ("x", {"data": b"png"})
    assert "expects" not in record
    assert table.waiting == 0
    (again,) = sent(table.take(part(text="late, and merged", ts=2), 3000))
    assert again is not None
    assert again["image"] == {"data": b"png"}


@pytest.mark.parametrize("expects", [[1], ["text", 1], [["text"]], [[1]], ["smell"], "text", {}, 7])
def test_expects_that_is_no_list_of_modalities_is_a_dead_letter(expects: Any) -> None:
    table = JoinTable(SETTINGS)
    outputs = table.take(part(text="x", expects=expects), 1000)
    assert reasons(outputs) == [(b"expects", b"must be a list of text, image, audio, video")]
    assert len(table) == 0


@pytest.mark.parametrize("name", ["labels", "meta", "image", "expects"])
def test_a_field_that_is_null_in_one_part_only_is_as_if_it_was_not_there(name: str) -> None:
    whole: dict[str, Any] = {
        "labels": {"x": "1"},
        "meta": {"m": 1},
        "image": {"data": b"p"},
        "expects": ["audio"],
    }
    for first, second in [(whole[name], None), (None, whole[name])]:
        table = JoinTable(SETTINGS)
        table.take(part(text="x", **fields(name, first)), 1000)
        outputs = table.take(part(audio={"data": b"w"}, **fields(name, second)), 1000)
        (record,) = sent(outputs)
        assert record is not None
        assert record.get(name) == (None if name == "expects" else whole[name])
        assert reasons(outputs) == []


def test_whatever_a_part_raises_is_its_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(message: Message) -> None:
        raise RecursionError("too deep")

    table = JoinTable(SETTINGS)
    monkeypatch.setattr("braid.stream.worker.join.table.decode_part", raises)
    assert reasons(table.take(part(text="x"), 1000)) == [(b"record", b"RecursionError: too deep")]
    monkeypatch.undo()
    assert reasons(table.take(part(), 1000))[0][0] == b"value"  # no modality
    assert reasons(table.take(part("b" * 300, text="x"), 1000))[0][0] == b"id"
    assert len(table) == 0


def test_neither_pictures_nor_keys_of_nulls_are_checked_here() -> None:
    """A broken picture is the joined record's dead letter, in the worker."""
    table = JoinTable(SETTINGS)
    (record,) = sent(table.take(part(image={"data": b"no picture"}), 1000))
    assert record is not None
    assert record["image"] == {"data": b"no picture"}
    for key in ("never-seen", "", "x" * 300):
        assert table.take(null(key), 1000) == []


def test_a_joined_record_over_the_limit_is_the_last_parts_dead_letter() -> None:
    table = JoinTable(Settings(join={"bytes": 64 * 1024 * 1024}))
    half = b"x" * (MAX_RECORD_BYTES // 2)
    table.take(part(image={"data": half}, expects=["image", "audio", "text"]), 1000)
    outputs = table.take(part(audio={"data": half}, offset=7), 1000)
    ((field_, reason),) = reasons(outputs)
    assert field_ == b"value"
    assert b"joined from its parts is 1677" in (reason or b"")
    assert [o.value for o in outputs] == [part(audio={"data": half}).value]
    (record,) = sent(table.take(part(audio={"data": b"small"}, text="x"), 1000))
    assert record is not None
    assert record["audio"] == {"data": b"small"}


@pytest.mark.parametrize("incomplete", ["send", "dead-letter"])
def test_an_incomplete_record_goes_on_after_a_quiet_time_and_a_late_part_completes_it(
    incomplete: Any,
) -> None:
    table = JoinTable(SETTINGS.replace(join={"incomplete": incomplete}))
    table.take(part(text="x", expects=["text", "audio"], offset=5), 1_000)
    assert due(table, 10_999) == []
    outputs = due(table, 11_000)
    if incomplete == "send":
        assert sent(outputs) == [{"v": 1, "id": "a", "ts": 1, "text": "x"}]
        assert reasons(outputs) == []
    else:
        assert sent(outputs) == []
        assert reasons(outputs) == [(b"expects", b"audio did not come within join.quiet_s = 10 s")]
        (letter,) = sent(outputs, "dead-letters")
        assert letter == {"v": 1, "id": "a", "ts": 1, "text": "x", "expects": ["text", "audio"]}
        assert dict(outputs[0].headers)["offset"] == b"5"
    assert due(table, 50_000) == []
    (record,) = sent(table.take(part(audio={"data": b"w"}), 60_000))
    assert record is not None
    assert record["text"] == "x"
    assert due(table, 159_999) == []
    assert sent(due(table, 160_000)) == []
    assert (len(table), table.nbytes) == (0, 0)


def test_parts_that_keep_coming_hold_a_record_back_for_join_late_s_at_most() -> None:
    table, released = JoinTable(SETTINGS), []
    for now in range(0, 200_000, 5_000):
        table.take(part(text="x", expects=["audio"]), 1000 + now)
        released += [now] * len(sent(due(table, 1000 + now)))
    assert released == [100_000]


def test_beyond_join_bytes_the_ids_without_a_part_for_longest_go_on_early() -> None:
    table, outputs = JoinTable(Settings(join={"bytes": 16 * 1024 * 1024})), []
    for number in range(400):
        message = part(f"r{number}", image={"data": bytes(400_000)}, expects=["image", "text"])
        outputs += table.take(message, 1000)
        outputs += [output for batch in table.trim(1000) for output in batch]
        assert table.nbytes <= 16 * 1024 * 1024
    ids = [record["id"] for record in sent(outputs) if record]
    assert ids == [f"r{number}" for number in range(400 - len(table))]
    assert table.counts["full"] == len(ids) > 300


def test_a_null_on_parts_forgets_what_came_before_it() -> None:
    table = JoinTable(SETTINGS)
    table.take(part(text="x", expects=["audio"]), 1000)
    outputs = table.take(null(), 1000)
    assert sent(outputs) == []
    assert [(o.topic, o.value) for o in outputs] == [("parts-seen", None)]
    assert (len(table), table.nbytes) == (0, 0)
    (record,) = sent(table.take(part(audio={"data": b"w"}), 1000))
    assert record is not None
    assert "text" not in record


def test_a_deletion_on_records_forgets_what_was_sent_before_it() -> None:
    table = JoinTable(SETTINGS)
    table.take(part(text="deleted", at=10), 11)
    assert sent(table.take(null(deleted=20), 21)) == []
    assert sent(table.take(part(text="sent before it", at=15), 22)) == []
    (record,) = sent(table.take(part(image={"data": b"p"}, at=30), 31))
    assert record is not None
    assert "text" not in record


def test_a_deletion_that_arrives_after_a_new_part_takes_back_the_deleted_fields() -> None:
    table = JoinTable(SETTINGS)
    table.take(part(text="deleted", at=10), 11)
    (resurrected,) = sent(table.take(part(image={"data": b"p"}, at=30), 31))
    assert resurrected is not None
    assert "text" in resurrected
    (record,) = sent(table.take(null(deleted=20), 41))
    assert record is not None
    assert "text" not in record
    assert record["image"] == {"data": b"p"}


def test_a_record_that_the_join_sent_after_its_deletion_is_deleted_again() -> None:
    table = JoinTable(SETTINGS)
    table.take(part(text="deleted", at=10), 31)
    assert sent(table.take(null(deleted=20), 41)) == [None]
    assert sent(table.take(null(deleted=20), 42)) == []
    assert sent(table.take(null("unknown", deleted=20), 42)) == []
    assert len(table) == 1


def test_late_must_not_be_before_quiet() -> None:
    with pytest.raises(ConfigError, match=r"join.late_s.*join.quiet_s = 60"):
        load(join={"late_s": 5.0})
    with pytest.raises(ConfigError, match=r"join\.quiet_s = 9999"):
        load(join={"quiet_s": 9999.0})


def test_a_changelog_value_that_is_damaged_costs_its_id_alone() -> None:
    table = JoinTable(SETTINGS)
    for value in (b"", b"\xc1", b"\x80", msgpack.packb([1, [], [0] * 6, [[1]]])):
        table.restore(0, b"a", value)
    assert (len(table), table.nbytes) == (0, 0)


# ---- against a model

TEXT, IMAGE, AUDIO = "text", "image", "audio"
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("part"),
            st.sampled_from("ab"),
            st.sampled_from([TEXT, IMAGE, AUDIO]),
            st.integers(0, 3),
            st.sampled_from([None, [TEXT, IMAGE], [AUDIO]]),
        ),
        st.tuples(st.just("null"), st.sampled_from("ab")),
        st.tuples(st.just("wait"), st.sampled_from([1_000, 10_000, 100_000])),
        st.tuples(st.just("restart")),
    ),
    max_size=30,
)


@dataclass
class Model:
    """What should be known of one id, kept the slow way: all of its parts."""

    parts: list[tuple[int, int, str, str]] = field(default_factory=list)
    expects: set[str] = field(default_factory=set)
    first: int = 0
    last: int = 0
    waiting: bool = False

    def record(self) -> dict[str, str]:
        return {name: text for _, _, name, text in sorted(self.parts)}


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_the_table_does_what_a_model_does_and_survives_restarts(operations: list[Any]) -> None:
    table, models = JoinTable(SETTINGS), defaultdict[str, Model](Model)
    changelog: dict[bytes, bytes] = {}
    now = 1_000

    def run(outputs: list[Output]) -> list[dict[str, Any] | None]:
        for output in outputs:
            if output.topic == "parts-seen":
                changelog.pop(output.key or b"", None)
                if output.value is not None:
                    changelog[output.key or b""] = output.value
        return sent(outputs)

    for arrival, operation in enumerate(operations):
        expected: list[dict[str, str]] = []
        if operation[0] == "part":
            _, id_, name, ts, expects = operation
            text = f"text {arrival}"
            plain = text if name == TEXT else {"uri": text}
            model = models[id_]
            model.parts.append((ts, arrival, name, text))
            model.expects |= set(expects or ())
            model.first = model.first if model.waiting else now
            model.last = now
            model.waiting = not model.expects <= set(model.record())
            if not model.waiting:
                expected = [model.record()]
            records = run(table.take(part(id_, ts=ts, expects=expects, **fields(name, plain)), now))
        elif operation[0] == "null":
            models.pop(operation[1], None)
            records = run(table.take(null(operation[1]), now))
        elif operation[0] == "wait":
            now += operation[1]
            for model in models.values():
                if model.waiting and (now >= model.last + 10_000 or now >= model.first + 100_000):
                    model.waiting = False
                    expected.append(model.record())
            records = run(due(table, now))
            records += run(due(table, now))  # nothing twice; and what was late is forgotten
            for id_, model in list(models.items()):
                if not model.waiting and now >= model.last + 100_000:
                    del models[id_]
        else:
            size, count = table.nbytes, len(table)
            table = JoinTable(SETTINGS)
            for key, value in changelog.items():
                table.restore(0, key, value)
            assert (table.nbytes, len(table)) == (size, count)
            records = []
        plainly = [
            {
                name: r[name] if name == TEXT else r[name]["uri"]
                for name in (TEXT, IMAGE, AUDIO)
                if name in r
            }
            for r in records
            if r
        ]
        assert sorted(map(str, map(sorted, map(dict.items, plainly)))) == sorted(
            map(str, map(sorted, map(dict.items, expected)))
        )
        assert len(table) == len(models)
        assert table.waiting == sum(model.waiting for model in models.values())


def test_states_are_read_back_as_they_were() -> None:
    parts = [
        decode_part(part(text="x", labels={"a": ["b", "c"], "n": 1.5}, expects=["audio"])),
        decode_part(part(image={"data": b"\x00", "uri": "u"}, meta={"m": None, "l": [1, "x"]})),
    ]
    state = None
    for number, one in enumerate(parts):
        state = with_part(state, one, offset=number, now_ms=9)
        assert unpack_state(pack_state(state)) == state
    assert merge({}, parts[0].fields) == parts[0].fields


def test_a_part_names_what_is_wrong_with_it() -> None:
    with pytest.raises(BadRecord, match="no modality"):
        decode_part(part())
    with pytest.raises(BadRecord, match="the key must be the id"):
        decode_part(
            Message(topic="parts", partition=0, offset=0, key=b"b", value=part(text="x").value)
        )
