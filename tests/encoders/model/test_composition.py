"""What a record becomes does not depend on the records that share its batch, nor on other calls."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.encoders import Embedding, Model
from braid.encoders.types import Prepared
from tests.encoders.material import samples

COUNT = 12

PRESENT = ("text", "image", "audio")  # of the samples


@pytest.fixture(scope="module")
def alone(model: Model) -> tuple[list[Prepared], list[Embedding]]:
    """Records with all, some or one of the modalities, each encoded by itself."""
    prepared = []
    for number, sample in enumerate(samples(COUNT)):
        gone = {name: None for place, name in enumerate(PRESENT) if number >> place & 1}
        kept = sample if len(gone) == len(PRESENT) else replace(sample, **gone)  # type: ignore[arg-type]
        prepared.append(model.prepare(kept))
    return prepared, [model.encode([item])[0] for item in prepared]


@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=9), min_size=1, max_size=4
    )
)
def test_batches_of_any_composition_give_the_same_vectors(
    model: Model, alone: tuple[list[Prepared], list[Embedding]], batches: list[list[int]]
) -> None:
    prepared, expected = alone
    with ThreadPoolExecutor(model.lanes) as lanes:
        encoded = lanes.map(lambda places: model.encode([prepared[p] for p in places]), batches)
        for places, embeddings in zip(batches, encoded, strict=True):
            for place, embedding in zip(places, embeddings, strict=True):
                one = expected[place]
                np.testing.assert_allclose(embedding.fused, one.fused, atol=1e-5)
                assert set(embedding.by) == set(one.by)
                for name, vector_D in one.by.items():
                    np.testing.assert_allclose(embedding.by[name], vector_D, atol=1e-5)
                for task, prediction in one.tasks.items():
                    assert embedding.tasks[task].label == prediction.label
                assert model.encode_queries([prepared[place]])[0].tasks == {}
