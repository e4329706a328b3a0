"""The oracle of the chaos runs: it accepts what a worker makes of a flow, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from braid.encoders.model.null import NullModel
from braid.encoders.types import Sample
from braid.stream.errors import BadRecord
from braid.stream.kafka.client import Message as Read
from braid.stream.kafka.client import Output
from braid.stream.kafka.schemas import decode_record
from braid.stream.settings import Settings
from braid.stream.worker.in_flight import Item
from braid.stream.worker.offsets import Ticket
from braid.stream.worker.outputs import OutputTopics
from tests.chaos.flow import messages
from tests.chaos.oracle import check_inputs, check_outputs, expected

SETTINGS = Settings()
TOPICS = OutputTopics(SETTINGS, SETTINGS.generation)
NAMES = {"records": "records", "parts": "parts"}


def read(output: Output, offset: int) -> Read:
    return Read(
        topic=output.topic, partition=output.partition, offset=offset, key=output.key,
        value=output.value, headers=tuple(output.headers),
    )  # fmt: skip


@pytest.fixture
def outputs() -> tuple[list[Read], dict[str, list[Read]]]:
    """Messages of `records`, and what the worker makes of them, by topic."""
    model = NullModel(16)
    sent = [one for one in messages(400, seed=1) if one.topic == "records"]
    records = [
        Read(topic="records", partition=0, offset=number, key=one.key, value=one.value)
        for number, one in enumerate(sent)
    ]
    due = expected(records)
    made: list[Output] = []
    for message in records:
        at = (0, message.offset)
        if at in due.deleted:
            made += TOPICS.deleted(message)
        elif at in due.dead:
            made += TOPICS.dead(message, BadRecord("x", "bad", stage=due.dead[at]))
        else:
            record = decode_record(message.key, message.value or b"", default_ts=0)
            image = record.image.data if record.image else None
            sample = Sample(id=record.id, text=record.text, image=image)
            item = Item(message, Ticket(0, message.offset), 0.0, record=record)
            (embedding,) = model.encode([model.prepare(sample)])
            made += TOPICS.embedded(item, embedding, model, now_ms=0.0)
    topics = {TOPICS.vectors: "vectors", TOPICS.predictions: "predictions"}
    result: dict[str, list[Read]] = {"vectors": [], "predictions": [], "dead": []}
    for number, output in enumerate(made):
        if output.topic in (*topics, TOPICS.dead_letters):
            result[topics.get(output.topic, "dead")].append(read(output, number))
    return records, result


def check(records: list[Read], result: dict[str, list[Read]]) -> None:
    check_outputs(
        expected(records), vectors=result["vectors"], predictions=result["predictions"],
        dead=result["dead"], parts=[], names=NAMES,
    )  # fmt: skip


def test_it_accepts_what_a_worker_makes(outputs: tuple[list[Read], dict[str, list[Read]]]) -> None:
    records, result = outputs
    assert all(result.values())
    check(records, result)
    sent = [one for one in messages(400, seed=1) if one.topic == "records"]
    check_inputs(sent, records, [])
    with pytest.raises(AssertionError, match="records"):
        check_inputs(sent, records[1:], [])


@pytest.mark.parametrize("topic", ["vectors", "predictions", "dead"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda found: found[1:], "1 of .* missing"),
        (lambda found: [*found, found[0]], "1 doubled"),
    ],
)
def test_a_lost_or_doubled_output_is_seen(
    outputs: tuple[list[Read], dict[str, list[Read]]],
    topic: str,
    wrong: Callable[[list[Read]], list[Read]],
    words: str,
) -> None:
    records, result = outputs
    with pytest.raises(AssertionError, match=words):
        check(records, result | {topic: wrong(result[topic])})


def test_the_vector_of_another_record_is_seen(
    outputs: tuple[list[Read], dict[str, list[Read]]],
) -> None:
    records, result = outputs
    other = [records[0]._replace(key=records[1].key, value=records[1].value), *records[1:]]
    with pytest.raises(AssertionError):
        check(other, result)
