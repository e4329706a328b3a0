"""Oracle of a vector store: a dictionary and numpy.

Vectors are functions of (id, partition, version, name), so that two writes never tie.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from braid.index.filters import compile_filter
from braid.index.store import FUSED, Array, Delete, Upsert, VectorStore

DIM = 8
NAMES = (FUSED, "text", "image", "audio")
SPACE = "s-test"


def unit(*key: object) -> Array:
    """A unit vector float32[DIM] that the key determines."""
    rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
    vector_D = rng.standard_normal(DIM)
    return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)


def upsert(
    id: str,
    version: int,
    *,
    partition: int = 0,
    ts: int | None = None,
    by: Iterable[str] = ("text", "image"),
    meta: Mapping[str, Any] | None = None,
    model: str = "m-1",
) -> Upsert:
    return Upsert(
        id=id,
        partition=partition,
        version=version,
        ts=version if ts is None else ts,
        model=model,
        fused=unit(id, partition, version, FUSED),
        by={name: unit(id, partition, version, name) for name in by},
        meta={"even": version % 2 == 0, "version": version} if meta is None else meta,
    )


def delete(id: str, version: int, *, partition: int = 0, ts: int | None = None) -> Delete:
    return Delete(id=id, partition=partition, version=version, ts=version if ts is None else ts)


def vector_of(write: Upsert, name: str) -> Array | None:
    return write.fused if name == FUSED else write.by.get(name)


class Oracle:
    """The rules of DESIGN.md, one write at a time."""

    def __init__(self) -> None:
        self.last: dict[str, Upsert | Delete] = {}

    def apply(self, writes: Sequence[Upsert | Delete]) -> None:
        for write in writes:
            known = self.last.get(write.id)
            if known is not None:
                if known.partition == write.partition:
                    if write.version <= known.version:
                        continue
                elif (write.ts, write.partition) <= (known.ts, known.partition):
                    continue
            self.last[write.id] = write

    @property
    def rows(self) -> dict[str, Upsert]:
        return {id_: last for id_, last in self.last.items() if isinstance(last, Upsert)}

    def search(
        self, query_D: Array, *, k: int, vector: str = FUSED, filter: object = None
    ) -> list[tuple[str, float]]:
        keep = compile_filter(filter) if filter is not None else lambda meta: True
        scored = [
            (float(vector_D.astype(np.float64) @ query_D.astype(np.float64)), id_)
            for id_, write in self.rows.items()
            if keep(write.meta) and (vector_D := vector_of(write, vector)) is not None
        ]
        return [(id_, score) for score, id_ in sorted(scored, reverse=True)[:k]]


def assert_same(
    store: VectorStore, oracle: Oracle, *, seed: int = 0, exact: bool = False, brief: bool = False
) -> None:
    """The store holds what the oracle holds, and answers alike for every vector name.

    Args:
        exact: ask the store to pass approximate indexes over.
        brief: fewer questions.
    """
    options: dict[str, Any] = {"exact": True} if exact else {}
    rows = oracle.rows
    assert len(store) == len(rows)
    for id_, last in oracle.last.items():
        row = store.get(id_)
        if isinstance(last, Delete):
            assert row is None
            continue
        assert row is not None
        held = (row.id, row.partition, row.version, row.ts, row.model)
        assert held == (last.id, last.partition, last.version, last.ts, last.model)
        assert row.meta == last.meta
        assert set(row.vectors) == {FUSED, *last.by}
        for name, vector_D in row.vectors.items():
            np.testing.assert_array_equal(vector_D, vector_of(last, name))
    queries_BD = np.stack([unit("query", seed, number) for number in range(2)])
    for name in NAMES:
        for filter in (None, {"even": True}, {"version": {"lt": 10}})[: 2 if brief else 3]:
            keep = None if filter is None else compile_filter(filter)
            for k in (3,) if brief else (1, 3, 100):
                answers = store.search(queries_BD, k=k, vector=name, filter=keep, **options)
                for query_D, hits in zip(queries_BD, answers, strict=True):
                    expected = oracle.search(query_D, k=k, vector=name, filter=filter)
                    assert [hit.id for hit in hits] == [id_ for id_, _ in expected]
                    np.testing.assert_allclose(
                        [hit.score for hit in hits], [score for _, score in expected], atol=1e-5
                    )
                    for hit in hits:
                        write = rows[hit.id]
                        assert (hit.version, hit.partition) == (write.version, write.partition)
                        assert (hit.model, hit.meta) == (write.model, write.meta)
