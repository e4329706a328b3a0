"""The map: stable principal components, redrawn when the store has changed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from braid.index.payloads import Payload, Payloads
from braid.index.segments.live_store import LiveStore
from braid.index.service import space_map as space_map_module
from braid.index.service.projection import fit
from braid.index.service.space_map import EVERY_S, FIELDS, NAMES, SpaceMap
from braid.index.store import Row
from tests.index.oracle import DIM, SPACE, delete, unit, upsert


def cloud(rows: int = 300, seed: int = 0, spread: tuple[float, ...] = (5, 3, 1)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale_D = np.array([*spread, *[0.1] * (DIM - len(spread))])
    rows_RD: np.ndarray = rng.standard_normal((rows, DIM)) * scale_D + 7.0
    return rows_RD.astype(np.float32)


def test_the_axes_are_the_principal_components() -> None:
    rows_RD = cloud()
    projection = fit(rows_RD)
    _, _, right = np.linalg.svd(rows_RD - rows_RD.mean(axis=0), full_matrices=False)
    for axis, wanted in zip(projection.axes_2D, right[:2], strict=True):
        assert abs(float(axis @ wanted)) == pytest.approx(1.0, abs=1e-4)
    placed = projection(rows_RD)
    assert np.abs(placed.mean(axis=0)).max() < 1e-4
    assert np.mean(np.linalg.norm(placed, axis=1) <= 1.0) == pytest.approx(0.98, abs=0.01)


def test_they_stay_where_they_were() -> None:
    """Nearly equal variances: without alignment the axes would turn freely."""
    known_RD = cloud(spread=(3, 3, 1))
    before = fit(known_RD)
    placed = before(known_RD)
    for seed in range(5):
        more_RD = np.concatenate([known_RD, cloud(300, seed + 1, (3, 3, 1))])
        after = fit(more_RD, before)
        moved = np.linalg.norm(after(known_RD) - placed, axis=1)
        assert np.median(moved) < 0.1
        assert np.allclose(after.axes_2D @ after.axes_2D.T, np.eye(2), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_or_equal_ones_have_a_place(rows: int) -> None:
    same_RD = np.tile(unit("x"), (rows, 1))
    assert np.isfinite(fit(same_RD)(same_RD)).all()
    few_RD = cloud(rows)
    assert np.isfinite(fit(few_RD, fit(cloud()))(few_RD)).all()
    with pytest.raises(ValueError, match="rows"):
        fit(few_RD[:0])


class Shown(Payloads):
    """Payloads in a dictionary."""

    def __init__(self, kept: dict[str, Payload]) -> None:
        super().__init__(None)
        self.kept = kept

    def get_many(self, ids: Any) -> dict[str, Payload]:
        return {id_: self.kept[id_] for id_ in ids if id_ in self.kept}


def store_of(count: int = 60) -> LiveStore:
    store = LiveStore(space=SPACE, dim=DIM, block=16)
    writes = [
        upsert(f"r{n}", n, meta={"lang": "de" if n % 3 else "fr", "n": n, "own": f"x{n}"})
        for n in range(count)
    ]
    store.apply(writes, positions={0: count}, progress={0: count})
    return store


def drawn(space_map: SpaceMap) -> dict[str, Any]:
    async def draw() -> bytes:
        return (await space_map.now()).body

    answer: dict[str, Any] = json.loads(asyncio.run(draw()))
    return answer


def test_it_is_drawn_when_the_store_has_changed_and_time_has_passed() -> None:
    store, now = store_of(), [100.0]
    space_map = SpaceMap(lambda: store, Payloads(None), clock=lambda: now[0])
    first = drawn(space_map)
    assert (first["revision"], first["records"], len(first["ids"])) == (1, 60, 60)
    store.apply([upsert("new", 99)], positions={0: 100}, progress={0: 100})
    assert drawn(space_map)["revision"] == 1
    now[0] += EVERY_S + 0.1
    second = drawn(space_map)
    assert second["revision"] == 2
    assert "new" in second["ids"]
    now[0] += EVERY_S + 0.1
    assert drawn(space_map)["revision"] == 2
    assert np.isfinite(second["x"] + second["y"]).all()
    row = store.get("new")
    assert row is not None
    place = second["ids"].index("new")
    assert space_map.place([row.vectors["fused"]]) == [[second["x"][place], second["y"][place]]]
    assert space_map.place([]) == []
    assert space_map.place([np.zeros(3, np.float32)]) is None


def test_fields_tell_records_apart() -> None:
    kept = {
        f"r{n}": Payload(labels={"kind": "ab"[n % 2]}, predicted={"mood": ["x"]})
        for n in range(0, 60, 2)
    }
    fields = drawn(SpaceMap(store_of, Shown(kept)))["fields"]
    named = {(field["kind"], field["name"]): field for field in fields}
    assert set(named) == {("label", "kind"), ("predicted", "mood"), ("meta", "lang"), ("meta", "n")}
    lang = named["meta", "lang"]
    assert (lang["choices"], lang["counts"]) == (["de", "fr"], [40, 20])
    assert named["label", "kind"]["choices"] == ["a"]
    assert sorted(set(named["label", "kind"]["of"])) == [-1, 0]
    numbers = named["meta", "n"]  # too many to name them: a range
    assert (numbers["least"], numbers["most"], numbers["choices"]) == (0, 59, [])


def test_an_empty_store_is_an_empty_map() -> None:
    space_map = SpaceMap(lambda: LiveStore(space=SPACE, dim=DIM), Payloads(None))
    assert drawn(space_map)["ids"] == []
    assert space_map.place([unit("x")]) is None


def test_a_sample_stays_the_same_as_far_as_it_lives() -> None:
    store = store_of(400)
    first = {row.id for row in store.sample(100)}
    assert len(first) == 100
    assert {row.id for row in store.sample(100)} == first
    assert {row.id for row in store.sample(100, seed=1)} != first
    gone = sorted(first)[:10]
    store.apply([delete(id_, 1000 + n) for n, id_ in enumerate(gone)], positions={}, progress={})
    second = {row.id for row in store.sample(100)}
    assert len(second) == 100
    assert second >= first - set(gone)
    assert {row.id for row in store.sample(1000)} == {f"r{n}" for n in range(400)} - set(gone)
    row = store.sample(1)[0]
    held = store.get(row.id)
    assert held is not None
    assert (row.id, row.version, row.meta) == (held.id, held.version, held.meta)
    assert all(np.array_equal(row.vectors[name], held.vectors[name]) for name in held.vectors)


def test_thousands_of_names_cost_a_few() -> None:
    """Each record may bring names of its own; only the most common of the first are looked at."""
    store = LiveStore(space=SPACE, dim=DIM)
    names = [{f"name-{number}-{n}": n for n in range(1000)} for number in range(40)]
    writes = [
        upsert(f"r{number}", number, meta={"common": number % 3, "long": "x" * 1000, **meta})
        for number, meta in enumerate(names)
    ]
    writes.append(upsert("nan", 99, meta={"common": 1, "y" * 1000: 1, "bad": float("nan")}))
    store.apply(writes, positions={0: 100}, progress={0: 100})

    async def draw() -> Any:
        return json.loads((await SpaceMap(lambda: store, Payloads(None)).now()).body)

    fields = asyncio.run(draw())["fields"]
    assert fields[0]["name"] == "common"
    assert len(fields) <= FIELDS
    assert not {field["name"] for field in fields} & {"long", "bad", "y" * 1000}
    assert looked_at(names) <= NAMES


def looked_at(maps: list[dict[str, int]]) -> int:
    """For how many names values are compared."""
    rows = [
        Row(id=str(n), partition=0, version=n, ts=0, model="m", vectors={}, meta=one)
        for n, one in enumerate(maps)
    ]
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space_map_module, "_field", lambda kind, name, values: seen.append(name))
        space_map_module._fields(rows, {})
    return len(seen)
