"""Filters match labels by the same rule as meta: a worker writes them into the row's meta."""

from __future__ import annotations

from typing import Any, cast

import pytest

from braid.encoders.model.null import NullModel
from braid.encoders.types import Label, Sample
from braid.index.filters import compile_filter
from braid.index.milvus.filters import tags_of
from braid.index.segments.live_store import LiveStore
from braid.index.store import Upsert
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import Record, Vector, decode_vector, encode_record
from braid.stream.settings import Settings
from braid.stream.worker.in_flight import Item
from braid.stream.worker.outputs import MOST_FILTERED, OutputTopics

MODEL = NullModel(16)
LABELS: dict[str, dict[str, Label]] = {
    "koala": {"category": "animals", "weight": 9.5},
    "truck": {"category": "vehicles", "tags": ["red", "old"]},
    "captioned": {"caption": "a long caption " * MOST_FILTERED},
    "plain": {},
}


def published(id_: str, offset: int) -> Vector:
    """The row that a worker publishes for a record with these labels."""
    record = Record(id=id_, ts=1, text=id_, labels=LABELS[id_], meta={"lang": "en"})
    message = Message(
        topic="records", partition=0, offset=offset, key=id_.encode(), value=encode_record(record)
    )
    (embedding,) = MODEL.encode([MODEL.prepare(Sample(id=id_, text=id_))])
    outputs = OutputTopics(Settings(), "g0001").embedded(
        Item(message=message, ticket=cast(Any, None), since=0.0, record=record),
        embedding,
        MODEL,
        now_ms=2.0,
    )
    return decode_vector(outputs[0].value or b"")


@pytest.fixture(scope="module")
def store() -> LiveStore:
    made = LiveStore(space=MODEL.space, dim=16, block=16)
    rows = [published(id_, offset) for offset, id_ in enumerate(LABELS)]
    # As a worker before labels were filterable: nothing but the record's meta.
    old = published("plain", len(rows))
    upserts = [
        Upsert(
            id=id_,
            ts=row.ts,
            model=row.model,
            partition=0,
            version=version,
            fused=row.fused,
            by=row.by,
            meta=dict(row.meta) if id_ != "before" else {"lang": "en"},
        )
        for version, (id_, row) in enumerate([*((row.id, row) for row in rows), ("before", old)])
    ]
    made.apply(upserts, positions={0: 10}, progress={0: 10})
    return made


@pytest.mark.parametrize(
    ("filter", "ids"),
    [
        ({"labels.category": "animals"}, {"koala"}),
        ({"labels.category": {"in": ["animals", "vehicles"]}}, {"koala", "truck"}),
        ({"labels.weight": {"gte": 9, "lt": 10}, "lang": "en"}, {"koala"}),
        ({"labels.tags": "old"}, {"truck"}),
        ({"labels.category": {"exists": False}}, {"captioned", "plain", "before"}),
        ({"not": {"labels.category": "animals"}}, {"truck", "captioned", "plain", "before"}),
        ({"labels.caption": {"exists": True}}, set()),
    ],
)
def test_labels_are_filtered_as_meta(
    store: LiveStore, filter: dict[str, Any], ids: set[str]
) -> None:
    query_D = published("koala", 0).fused
    (hits,) = store.search(query_D[None], k=10, filter=compile_filter(filter))
    assert {hit.id for hit in hits} == ids


def test_milvus_has_a_tag_for_each_label() -> None:
    with_label, without = published("koala", 0).meta, {"lang": "en"}
    assert len(tags_of(with_label) or ()) > len(tags_of(without) or ())
