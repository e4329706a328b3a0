"""Shared by tests of the local store: small block sizes, and random histories."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import strategies as st

from braid.index.segments import ann, live_store, scan
from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.live_store import LiveStore
from braid.index.segments.snapshot import segments_folder
from braid.index.store import Delete, Upsert
from tests.index.oracle import DIM, NAMES, SPACE, Oracle, delete, upsert

Batch = list[Upsert | Delete]

SMALL = Policy(seal_blocks=2, tier=2, most_rows=60, most_dead=0.3)
IDS = [f"r{number}" for number in range(12)]


def make(
    block: int = 8, *, home: Path | None = None, threads: int = 1, recall: float = 1.0
) -> LiveStore:
    """A small store; with `home`, one whose segments lie where its snapshots look for them."""
    folder = None if home is None else segments_folder(home)
    return LiveStore(
        space=SPACE, dim=DIM, block=block, folder=folder, threads=threads, recall=recall
    )


def put(store: LiveStore, *writes: Upsert | Delete) -> None:
    store.apply(writes, positions={}, progress={})


def settle(store: LiveStore, policy: Policy = SMALL) -> int:
    """Do all that is due; how many steps it took."""
    steps = 0
    while maintain(store, policy):
        steps += 1
        assert steps < 1000, "compaction does not end"
    return steps


@contextmanager
def tuned(**values: int | float) -> Iterator[None]:
    """Constants of the search changed, so that small stores go every way that large ones go."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            (module,) = [one for one in (scan, live_store, ann) if hasattr(one, name)][:1]
            patch.setattr(module, name, value)
        yield


def history(seed: int, *, batches: int, ids: int = 40, partitions: int = 2) -> list[Batch]:
    """Upserts, deletions, re-insertions, repeats, and writes that come too late."""
    rng = random.Random(seed)
    made: list[Batch] = []
    version = 0
    for _ in range(batches):
        batch: Batch = []
        for _ in range(rng.randint(1, 12)):
            version += 1
            id_, partition = f"r{rng.randrange(ids)}", rng.randrange(partitions)
            kind = rng.random()
            if kind < 0.2:
                batch.append(delete(id_, version, partition=partition))
            elif kind < 0.3 and made:
                batch.append(rng.choice(rng.choice(made) or [delete(id_, version)]))
            else:
                by = rng.sample(NAMES[1:], rng.randint(0, 3))
                batch.append(upsert(id_, version, partition=partition, by=by))
        made.append(batch)
    return made


def after(batches: Sequence[Batch]) -> Oracle:
    oracle = Oracle()
    for batch in batches:
        oracle.apply(batch)
    return oracle


@st.composite
def write(draw: st.DrawFn, *, ids: Sequence[str] = IDS, partitions: int = 1) -> Upsert | Delete:
    """Any write: versions and times that go back, too."""
    id_ = draw(st.sampled_from(ids))
    version = draw(st.integers(0, 30))
    partition = draw(st.integers(0, partitions - 1))
    ts = draw(st.integers(0, 5))
    if draw(st.integers(0, 3)) == 0:
        return delete(id_, version, partition=partition, ts=ts)
    by = draw(st.sets(st.sampled_from(NAMES[1:])))
    return upsert(id_, version, partition=partition, ts=ts, by=sorted(by))
