"""The local vector store: one writer, any number of concurrent searches.

Writes fill growing blocks. `braid.index.segments.compaction` seals full blocks to segments, merges
small segments and drops dead rows in the background. A search reads one immutable view, which the
writer replaces by one assignment: a search sees all of an `apply` or none of it. FAISS objects are
not changed once readers can see them.

Shapes: B queries, D dimensions, K hits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..filters import Filter
from ..rules import advanced, check_vectors, checked_queries, supersedes, warn_of_second_partition
from ..store import FUSED, Array, Delete, Hit, Row, Upsert
from .gpu import Gpu
from .growing import Block
from .id_map import TOMBSTONE, IdMap, Int64, LastWrite, split
from .rescoring import Answer, merge
from .scan import Candidates, ScanRequest, scan_part
from .sealed import Recipe, Segment
from .view import Edit, Mask, Part, View

log = logging.getLogger(__name__)

BLOCK = 8192  # rows; a block fits the CPU's cache
SPARE = 16  # candidates of each part beyond k
MORE = 8  # times as many candidates for an answer that is not proven
# Width of the arrays in `braid.index.segments.id_map`, without the sign.
BITS = {"partition": 31, "version": 63, "ts": 63}
LOOKS = 100  # attempts of `get` to read a row that is being moved, before it waits


class LiveStore:
    """Implements `braid.index.store.VectorStore`.

    Args:
        space: name of the space of all vectors.
        dim: D.
        threads: threads for one search.
        block: rows of one growing block.
        recall: required recall@10; below 1, large segments get approximate indexes, each checked
            against exact search before it is used.
        gpu: searches instead of the threads (`braid.index.segments.gpu`).
        folder: folder of sealed segments, which are memory-mapped; None keeps them in memory.
        failpoint: called with the name of each step of sealing, for crash tests.

    Raises:
        ValueError: recall is not in (0, 1].
    """

    def __init__(
        self,
        *,
        space: str,
        dim: int,
        threads: int = 1,
        block: int = BLOCK,
        recall: float = 1.0,
        gpu: Gpu | None = None,
        folder: Path | None = None,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> None:
        if not 0 < recall <= 1:
            raise ValueError(f"recall must be above 0 and at most 1, is {recall}")
        self.recipe = Recipe(dim=dim, recall=recall, folder=folder, failpoint=failpoint)
        self.space, self.dim, self.block = space, dim, block
        self._pool = ThreadPoolExecutor(threads, "search") if threads > 1 else None
        self._gpu = gpu
        self.view = View()
        self.id_map = IdMap()
        self.next_number = 0
        self.being_written: str | None = None  # name of a segment
        self.writing = threading.Lock()
        self._positions: dict[int, int] = {}
        self._progress: dict[int, int] = {}
        self._second_partition = 0
        self._ignored = 0
        self._unproven = 0

    @property
    def positions(self) -> Mapping[int, int]:
        return dict(self._positions)

    @property
    def progress(self) -> Mapping[int, int]:
        return dict(self._progress)

    @property
    def exact(self) -> bool:
        """Whether answers are exact: no approximate index is used."""
        if self._gpu is not None and self._gpu.broken is None:
            return True
        return not any(segment.vectors[FUSED].approximate for segment in self.segments())

    def __len__(self) -> int:
        return self.view.alive

    def ids(self) -> set[str]:
        """The ids of all live records."""
        parts = self.view.parts.values()
        return {part.rows.id(row) for part in parts for row in part.living().tolist()}

    def segments(self) -> list[Segment]:
        """The sealed segments of the current view."""
        rows = (part.rows for part in self.view.parts.values())
        return [segment for segment in rows if isinstance(segment, Segment)]

    def apply(
        self,
        writes: Sequence[Upsert | Delete],
        *,
        positions: Mapping[int, int],
        progress: Mapping[int, int],
    ) -> None:
        """See VectorStore.apply. If it raises, no write of the call is applied."""
        for write in writes:
            _check_numbers(write)
            if isinstance(write, Upsert):
                self._check(write)
        with self.writing:
            edit = Edit(self.view, size=self.block, next_number=self.next_number)
            lasts: dict[str, LastWrite] = {}
            new = len(self.id_map)
            slots: dict[str, int] = {}
            ignored = 0
            for write in writes:
                slot = self.id_map.slot(write.id)
                if slot is None:
                    slot = slots.setdefault(write.id, new + len(slots))
                    known = lasts.get(write.id)
                else:
                    known = lasts.get(write.id) or self.id_map.last(slot)
                if known is not None and not self._supersedes(write, known):
                    ignored += 1
                    continue
                if known is not None and known.place != TOMBSTONE:
                    edit.kill(known.place)
                place = edit.append(write, slot) if isinstance(write, Upsert) else TOMBSTONE
                lasts[write.id] = LastWrite(write.partition, write.version, write.ts, place)
            self.view = edit.view()
            self.next_number = edit.next_number
            for id_ in slots:  # in the order of their slots
                self.id_map.put(id_, lasts.pop(id_))
            for id_, last in lasts.items():
                self.id_map.put(id_, last)
            self._ignored += ignored
            # Offsets last: a reader that sees them also sees the writes.
            self._positions = advanced(self._positions, positions)
            self._progress = advanced(self._progress, progress)

    def search(
        self,
        queries_BD: Array,
        *,
        k: int,
        vector: str = FUSED,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """See VectorStore.search.

        Hits of equal score are ordered by id; which of them are among the k is not defined. Scores
        are exact for every index.

        Args:
            exact: do not use approximate indexes.
        """
        queries_BD = checked_queries(queries_BD, dim=self.dim, k=k)
        view = self.view
        answers: list[Answer | None] = [None] * len(queries_BD)
        left = np.arange(len(queries_BD))
        for careful, factor in ((False, 1), (False, MORE), (True, MORE)):
            if len(left) == 0:
                break
            if factor > 1:
                self._unproven += len(left)
            norm_B = np.linalg.norm(queries_BD[left], axis=1).astype(np.float32)
            request = ScanRequest(
                queries_BD[left], norm_B, vector, factor * (k + SPARE), exact, careful
            )
            merged = merge(request.queries_BD, vector, k, self._scan(view, request, filter))
            for number, answer in zip(left.tolist(), merged, strict=True):
                answers[number] = answer
            left = left[[not answer.proven for answer in merged]]
        return [[_hit(hit) for hit in answer.hits] for answer in answers if answer is not None]

    def probe(self, query_D: Array, k: int, vector: str = FUSED) -> float:
        """Recall@k of one query against exact search."""
        query_BD = np.asarray(query_D, np.float32)[None]
        (expected,) = self.search(query_BD, k=k, vector=vector, exact=True)
        (hits,) = self.search(query_BD, k=k, vector=vector)
        if not expected:
            return 1.0
        return len({hit.id for hit in hits} & {hit.id for hit in expected}) / len(expected)

    def get(self, id: str) -> Row | None:
        """The record, or None. Takes the writer's lock only after LOOKS attempts."""
        for _ in range(LOOKS):
            place = self.id_map.place(id)
            if place is None or place == TOMBSTONE:
                return None
            row = self._at(self.view, place, id)
            if row is not None:
                return row
            time.sleep(0)  # the row is being moved or replaced
        with self.writing:
            place = self.id_map.place(id)
            return None if place is None or place == TOMBSTONE else self._at(self.view, place, id)

    def sample(self, limit: int, *, seed: int = 0) -> list[Row]:
        """See VectorStore.sample: the records whose slots have the smallest hashes."""
        view = self.view
        living = [(part, part.living()) for part in view.parts.values() if part.alive]
        hashes = [_mixed(part.rows.slots[rows], seed) for part, rows in living]
        if sum(map(len, hashes)) > limit > 0:
            last = np.partition(np.concatenate(hashes), limit - 1)[limit - 1]
            living = [
                (part, rows[hashed <= last])
                for (part, rows), hashed in zip(living, hashes, strict=True)
            ]
        return [
            _row(part.rows.record(row))
            for part, rows in living
            if limit > 0
            for row in rows.tolist()
        ]

    def stats(self) -> dict[str, Any]:
        view = self.view
        alive, count = view.alive, view.count
        return {
            "records": alive,
            "rows": count,
            "dead": count - alive,
            "segments": [_described(part) for part in view.parts.values() if part.count],
            "ignored": self._ignored,
            "second_partition": self._second_partition,
            "unproven": self._unproven,
            "device": "cpu" if self._gpu is None or self._gpu.broken else "gpu",
            "space": self.space,
            "dim": self.dim,
        }

    def adopt(self, segments: Sequence[tuple[Segment, Mask]], next_number: int) -> None:
        """Add sealed segments, with masks of their live rows, to an empty store."""
        assert len(self.id_map) == 0, "the store must be empty"
        parts = {}
        for number, (segment, keep_R) in enumerate(segments, start=next_number):
            living = np.flatnonzero(keep_R)
            numbers = segment.numbers
            segment.slots = np.zeros(len(segment), np.int64)
            segment.slots[living] = self.id_map.put_rows(
                [segment.ids[row] for row in living.tolist()],
                numbers.partition_R[living],
                numbers.version_R[living],
                numbers.ts_R[living],
                (number, living),
            )
            parts[number] = Part(number, segment, len(segment), keep_R, len(living))
        self.view = View(parts)
        self.next_number = next_number + len(parts)

    def close(self) -> None:
        """Stop the search threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _scan(
        self, view: View, request: ScanRequest, filter: Filter | None
    ) -> list[tuple[Part, Candidates]]:
        if self._gpu is not None:
            return self._gpu.scan(self._now, request, filter)
        # The largest first, so that threads finish at about the same time.
        parts = sorted(view.parts.values(), key=lambda part: -part.count)
        run = map if self._pool is None or len(parts) == 1 else self._pool.map
        scanned = run(lambda part: scan_part(part, request, filter), parts)
        return [result for result in scanned if result is not None]

    def _now(self) -> View:
        return self.view

    def _at(self, view: View, place: int, id: str) -> Row | None:
        number, row = split(place)
        part = view.parts.get(number)
        if part is None or not part.holds(id, row):
            return None
        return _row(part.rows.record(row))

    def _check(self, write: Upsert) -> None:
        for name in write.by:
            if not name.isidentifier() or name == FUSED:
                raise ValueError(f"{write.id}: {name!r} cannot name a modality's vector")
        check_vectors(write, self.dim)

    def _supersedes(self, write: Upsert | Delete, known: LastWrite) -> bool:
        if known.partition != write.partition:
            if self._second_partition == 0:
                warn_of_second_partition(write, known)
            self._second_partition += 1
        return supersedes(write, known)


def _described(part: Part) -> dict[str, Any]:
    kind = "growing" if isinstance(part.rows, Block) else "exact"
    described: dict[str, Any] = {"rows": part.count, "alive": part.alive}
    if isinstance(part.rows, Segment):
        index = part.rows.vectors[FUSED].approximate
        if index is not None:
            kind = index.kind
            described |= {"recall": index.recall, "nprobe": index.nprobe}
    return {"kind": kind, **described}


def _check_numbers(write: Upsert | Delete) -> None:
    for name, bits in BITS.items():
        value = getattr(write, name)
        if not -(1 << bits) <= value < 1 << bits:
            raise ValueError(
                f"{write.id}: {name} is {value}, beyond a signed {bits + 1} bit number"
            )


def _mixed(slots_N: Int64, seed: int) -> npt.NDArray[np.uint64]:
    """A distinct pseudorandom number for each slot (the mixer of SplitMix64)."""
    mixed_N = slots_N.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(shift))) * np.uint64(factor)
    return mixed_N ^ (mixed_N >> np.uint64(31))


def _row(write: Upsert) -> Row:
    return Row(
        id=write.id,
        partition=write.partition,
        version=write.version,
        ts=write.ts,
        model=write.model,
        meta=write.meta,
        vectors={FUSED: write.fused, **write.by},
    )


def _hit(scored: tuple[Part, int, float]) -> Hit:
    part, row, score = scored
    if isinstance(part.rows, Segment):
        numbers = part.rows.numbers
        return Hit(
            id=part.rows.id(row),
            score=score,
            meta=part.rows.meta(row),
            model=part.rows.model(row),
            version=int(numbers.version_R[row]),
            partition=int(numbers.partition_R[row]),
        )
    write = part.rows.record(row)
    return Hit(
        id=write.id,
        score=score,
        meta=write.meta,
        model=write.model,
        version=write.version,
        partition=write.partition,
    )
