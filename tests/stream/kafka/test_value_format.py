"""Vectors and predictions as msgpack and as JSON: the same to braid's readers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from braid.index.client import Client
from braid.stream.errors import BadRecord
from braid.stream.kafka.arrays import FLOAT16, FLOAT32, unpacked_array
from braid.stream.kafka.client import Message
from braid.stream.kafka.packing import pack, unpack_map
from braid.stream.kafka.schemas import (
    PROGRESS_KEY,
    Vector,
    decode_map,
    decode_progress,
    decode_vector,
    encode_prediction,
    encode_progress,
    encode_vector,
)
from braid.stream.kafka.value_format import DECIMALS, JSON, MSGPACK, ValueFormat, pack_json
from tests.stream.harness import Deployment, wait_for
from tests.stream.oracle import check_index

UNIT = np.array([0.6, 0.8], dtype=np.float32)


@given(arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(-1, 1, width=32)))
def test_numbers_of_a_vector_come_back_through_json(vector_D: np.ndarray) -> None:
    back = unpacked_array(json.loads(pack_json(JSON.array(vector_D, FLOAT32))))
    assert back.dtype == np.float32
    assert np.abs(back.astype(float) - vector_D).max(initial=0) <= 0.51 * 10.0**-DECIMALS
    large = np.abs(vector_D) > 1e-5
    assert np.array_equal(back[large], vector_D[large])


def test_a_vector_in_json_is_rounded_to_its_dtype() -> None:
    assert unpacked_array(JSON.array(UNIT, FLOAT16)).tolist() == pytest.approx(
        UNIT.astype(np.float16).tolist(), abs=1e-9
    )


@pytest.mark.parametrize("form", [MSGPACK, JSON])
def test_both_formats_read_the_same(form: ValueFormat) -> None:
    vector = Vector(
        id="ä", ts=1, space="s", model="m", fused=UNIT, by={"text": UNIT}, meta={"k": [1]}, source=9
    )
    value = encode_vector(vector, form=form)
    back = decode_vector(value)
    assert np.array_equal(back.fused, UNIT)
    assert np.array_equal(back.by["text"], UNIT)
    assert (back.id, back.meta, back.source) == ("ä", {"k": [1]}, 9)
    assert decode_progress(encode_progress(7, form=form)) == 7
    prediction = encode_prediction(
        id="ä",
        ts=1,
        model="m",
        tasks={"t": {"prob": 0.5}},
        source=(1, 2),
        latency_ms=3.5,
        form=form,
    )
    assert decode_map(prediction)["tasks"] == {"t": {"prob": 0.5}}
    assert (prediction[:1] == b"{") == (form is JSON)


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    value = {"a": [math.nan, 1.0, {"b": math.inf}], "c": "x"}
    assert json.loads(pack_json(value)) == {"a": [None, 1.0, {"b": None}], "c": "x"}


@pytest.mark.parametrize("value", [b"{", b"{\xff}", b'{"a": NaN}', b"{" * 100_000])
def test_what_is_no_json_is_a_bad_record(value: bytes) -> None:
    with pytest.raises(BadRecord, match="is not JSON"):
        unpack_map(value)


@given(st.dictionaries(st.text(), st.integers(0, 5) | st.text()))
def test_no_map_of_msgpack_is_taken_for_json(value: dict[str, Any]) -> None:
    assert unpack_map(pack(value)) == value


@pytest.mark.parametrize("raw", [[[0.1]], ["a"], "ab", {"dtype": "<f8", "data": b""}])
def test_what_is_no_vector_is_refused(raw: Any) -> None:
    with pytest.raises(ValueError):
        unpacked_array(raw)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_index_is_built_of_json(kafka: str, tmp_path: Path) -> None:
    formats = {"vectors_format": "json", "predictions_format": "json"}
    with Deployment(kafka, tmp_path, worker=formats) as deployment:
        texts = {f"r{number}": f"text number {number}" for number in range(200)}
        deployment.produce({"id": id_, "text": text} for id_, text in texts.items())
        deployment.worker("worker")
        deployment.index()
        wait_for("all is embedded", lambda: deployment.lag() == 0, timeout=60)
        read: Callable[[str], list[Message]] = deployment.read
        for message in [*read("vectors"), *read("predictions")]:
            assert isinstance(json.loads(message.value or b""), dict)
        assert any(message.key == PROGRESS_KEY for message in read("vectors"))
        with Client(deployment.url) as client:
            wait_for(
                "the index has all",
                lambda: client.ready() and client.status().records == 200,
                timeout=60,
            )
            assert check_index(client, texts, sorted(texts.values())[:20], k=10) == 200


def test_what_does_not_pack_leaves_nothing_in_the_next_value() -> None:
    with pytest.raises(TypeError):
        pack({"a": 1, "b": object()})
    assert unpack_map(pack({"c": 2})) == {"c": 2}
