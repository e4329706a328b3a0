"""The numbers of published vectors."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from braid.encoders.model.null import NullModel
from braid.encoders.types import Sample
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import Record, decode_vector
from braid.stream.settings import Settings
from braid.stream.worker.in_flight import Item
from braid.stream.worker.outputs import OutputTopics

DIM = 256


@pytest.mark.parametrize(("vectors", "error"), [("float32", 0.0), ("float16", 2.0**-12)])
def test_vectors_are_published_in_the_numbers_of_the_setting(vectors: str, error: float) -> None:
    model = NullModel(DIM)
    (embedding,) = model.encode([model.prepare(Sample(id="a", text="words", image=b"bytes"))])
    item = Item(
        Message(topic="records", partition=3, offset=7, key=b"a", value=b"v"),
        cast(Any, None),
        0.0,
        record=Record(id="a", ts=1, text="words"),
    )
    topics = OutputTopics(Settings().replace(worker={"vectors": vectors}), "g0001")
    vector, prediction = topics.embedded(item, embedding, model, now_ms=2.0)
    assert (vector.partition, prediction.partition, vector.key) == (3, 3, b"a")
    row = decode_vector(vector.value or b"")
    assert set(row.by) == {"text", "image"}
    for sent, came in (
        (embedding.fused, row.fused),
        *((embedding.by[n], row.by[n]) for n in row.by),
    ):
        assert came.dtype == np.float32
        # float16 has 11 bits, and the values are below 1/2.
        assert np.abs(came - sent).max() <= error
        assert (np.abs(came - sent).max() > 0) == (error > 0)
    size = 3 * DIM * np.dtype(vectors).itemsize
    assert size < len(vector.value or b"") < size + 200
