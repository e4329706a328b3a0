"""Held-out records that a version keeps to compare engines with torch."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from braid.encoders import Sample, load, preset, split, train, verify
from braid.encoders.model import frozen_queries
from braid.encoders.model.checkpoint import load_folder
from braid.encoders.model.frozen_queries import PART, QUERIES, FrozenQueries, HeldOut
from tests.encoders.material import png, samples, wav

SHORT = replace(preset("tiny"), epochs=1, refit=False)


def chosen(some: Iterable[Sample], most: int) -> list[Sample]:
    held_out = HeldOut(most)
    for one in some:
        held_out.add(one)
    return held_out.samples()


def test_the_choice_depends_on_the_ids_alone() -> None:
    texts = [Sample(id=f"r{n}", text=f"text {n}") for n in range(50)]
    first = chosen(texts, 10)
    assert len(first) == 10
    random.Random(0).shuffle(texts)
    assert chosen(texts, 10) == first
    assert {one.id for one in first} <= {one.id for one in chosen(texts, 20)}
    assert chosen(texts, 0) == []


def test_of_an_id_the_last_sample_is_kept_and_of_a_text_one() -> None:
    some = [Sample(id="a", text="old"), Sample(id="b", text="same"), Sample(id="c", text="same")]
    assert [one.text for one in chosen([*some, Sample(id="a", text="new")], 10)] == ["new", "same"]
    pictures = [Sample(id="a", image=png()), Sample(id="b", image=png())]
    assert len(chosen(pictures, 10)) == 2


def test_the_records_have_a_bound_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_queries, "MOST_BYTES", 1000)
    some = [Sample(id=f"r{n}", image=bytes([n]) * 90, text=f"{n:010}") for n in range(40)]
    kept = chosen(some, 100)
    assert len(kept) == 10
    larger = [replace(one, image=(one.image or b"") * 3) for one in kept]  # sent again
    assert len(chosen([*kept, *larger], 100)) == 3
    assert chosen([Sample(id="r", text="x" * 1001)], 100) == []


def test_a_version_keeps_its_judge_split_and_torchs_vectors_of_it(version: Path) -> None:
    model = load(version, device="cpu")
    assert QUERIES in verify(version).files
    frozen = FrozenQueries.read(version, model.manifest)
    judged = {one.id: one for one in samples() if split(one.id) == "judge"}
    assert {one.id for one in frozen.samples} <= judged.keys()
    assert len(frozen.samples) > 5
    for kept in frozen.samples:
        assert kept == replace(judged[kept.id], labels={})
        want = model.encode([model.prepare(kept)])[0].by
        assert {name for name in model.modalities if kept.id in frozen.vectors[name]} == set(want)
        for name, vector_D in want.items():
            np.testing.assert_allclose(frozen.vectors[name][kept.id], vector_D, rtol=0, atol=1e-5)
        assert (kept.id in frozen.vectors[PART]) == ("text" in want)


@pytest.mark.parametrize(("judge", "most"), [(False, 200), (True, 0)])
def test_without_a_judge_split_the_validation_is_kept_or_none(
    tmp_path: Path, judge: bool, most: int
) -> None:
    made = train(
        samples(80),
        replace(SHORT, judge=judge),
        out=tmp_path / "v",
        name="v",
        version=1,
        seed=0,
        queries=most,
    )
    kept = FrozenQueries.read(tmp_path / "v", made).samples
    assert {split(one.id) for one in kept} == ({"validation"} if most else set())
    assert (QUERIES in made.files) == bool(most)


def test_unusable_records_and_unknown_modalities_are_left_out(
    version: Path, tmp_path: Path
) -> None:
    model = load_folder(version, device="cpu")
    model.net.modalities = ("text", "image")  # as if it had no sounds
    model.modalities = ("text", "image")
    queries = [
        Sample(id="a", text="a red thing", audio=wav()),
        Sample(id="b", text="another", image=b"broken"),
        Sample(id="c", audio=wav()),
        Sample(id="d", image=png()),
    ]
    frozen = FrozenQueries.of(model, queries)
    assert [one.id for one in frozen.samples] == ["a", "d"]
    assert [one.present for one in frozen.samples] == [("text",), ("image",)]
    assert {name: list(some) for name, some in frozen.vectors.items()} == {
        "text": ["a"],
        PART: ["a"],
        "image": ["d"],
    }
