"""How a call is cut into sub-batches, and what watchers are told of them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from braid.encoders import Model
from braid.encoders.backbones import sub_batches
from braid.encoders.timings import SubBatch, watchers
from tests.encoders.material import samples


def test_a_watcher_sees_every_input_once_and_its_padding(model: Model) -> None:
    prepared = [model.prepare(sample) for sample in samples(20)]
    seen: list[SubBatch] = []
    watchers.append(seen.append)
    try:
        model.encode(prepared)
    finally:
        watchers.remove(seen.append)
    inputs: Counter[str] = Counter()
    for part in seen:
        inputs[part.modality] += part.inputs
        assert 0 < part.size <= part.computed
        assert part.ended >= part.began
        assert part.on_cpu
    assert inputs == {
        name: sum(name in item.inputs for item in prepared) for name in model.modalities
    }
    count = len(seen)
    model.encode(prepared)
    assert len(seen) == count


@pytest.mark.parametrize(
    ("sizes", "packed", "alone", "groups"),
    [
        ([10] * 22, True, False, [60, 60, 60, 40]),  # 220, two cores of 100: twice on each
        ([10] * 9, True, False, [90]),  # one is enough, and the other core has another call's
        ([10] * 9, True, True, [50, 40]),
        ([10] * 5, False, True, [30, 20]),
        ([150, 10, 10], True, False, [150, 20]),
        ([0, 0], True, True, [0]),
        ([], True, True, []),
    ],
)
def test_each_core_gets_as_many_sub_batches(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], packed: bool, alone: bool, groups: list[int]
) -> None:
    monkeypatch.setattr(sub_batches, "cores", lambda: 2)
    encoder: Any = SimpleNamespace(budget=100, packed=packed, size=len)
    inputs = [np.zeros(size) for size in sizes]
    cut = sub_batches._groups(encoder, inputs, True, alone)
    assert sorted(place for group in cut for place in group) == list(range(len(sizes)))
    assert sorted((sum(sizes[place] for place in group) for group in cut), reverse=True) == groups
