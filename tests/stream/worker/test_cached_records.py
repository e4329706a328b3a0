"""A worker with a cache of features, and records that are sent again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from braid.encoders import Sample, load
from braid.encoders.feature_cache import FeatureCache
from braid.stream.kafka.schemas import decode_vector
from tests.stream.conftest import coloured
from tests.stream.harness import Deployment
from tests.stream.running import running, wait_until_idle

pytestmark = pytest.mark.kafka


def record_of(sample: Sample, **changes: Any) -> dict[str, Any]:
    return {"id": sample.id, **{name: getattr(sample, name) for name in sample.present}, **changes}


def test_records_sent_again_get_the_vectors_of_a_plain_model(
    deployment: Deployment, tiny_model: Path
) -> None:
    """With other meta, and as other records with the same content."""
    cache = FeatureCache(1 << 24)
    samples = [coloured(number) for number in range(12)]
    with running(deployment.settings, load(tiny_model, cache=cache)) as worker:
        deployment.produce(record_of(sample, meta={"turn": 0}) for sample in samples)
        wait_until_idle(worker, deployment.lag)
        misses = cache.misses.total()
        deployment.produce(record_of(sample, meta={"turn": 1}) for sample in samples)
        deployment.produce(record_of(sample, id=f"copy-{sample.id}") for sample in samples)
        wait_until_idle(worker, deployment.lag)
        assert cache.misses.total() == misses
        assert cache.hits.total() >= 3 * 2 * len(samples)
    plain = load(tiny_model)
    expected = {
        sample.id: made.fused
        for sample, made in zip(
            samples, plain.encode([plain.prepare(sample) for sample in samples]), strict=True
        )
    }
    messages = deployment.vectors()
    assert len(messages) == 3 * len(samples)
    for message in messages:
        published = decode_vector(message.value or b"")
        np.testing.assert_allclose(
            published.fused, expected[published.id.removeprefix("copy-")], atol=1e-5
        )
