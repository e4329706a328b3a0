"""Sealing, merging and compaction of segments, in the background.

One step writes the live rows of some parts to a new segment without a lock. Then, under the
writer's lock and for a few array operations, it marks the rows that were deleted meanwhile and
replaces the parts by the segment. Sizes are tiered, as in a log-structured merge tree: a row is
copied about log(rows) / log(tier) times.
"""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass

import numpy as np

from .growing import Block
from .id_map import Int64
from .live_store import LiveStore
from .sealed import Segment
from .view import Edit, Part, View
from .writer import segment_name, write

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """When to seal, merge and rewrite.

    Attributes:
        seal_blocks: full blocks that are sealed to one segment.
        tier: number of segments of similar size that are merged.
        most_rows: rows of a segment; several segments let search threads share a query.
        most_dead: share of dead rows above which a segment is rewritten.
    """

    seal_blocks: int = 4
    tier: int = 4
    most_rows: int = 262_144
    most_dead: float = 0.3


EXACT = Policy()
APPROXIMATE = Policy(most_rows=1 << 22)


def policy_for(store: LiveStore) -> Policy:
    """Larger segments for approximate indexes, whose search cost grows with the root of rows."""
    return EXACT if store.recipe.recall >= 1 else APPROXIMATE


def maintain(store: LiveStore, policy: Policy | None = None) -> bool:
    """Run one due step; returns whether there was one. Only one thread may call this.

    Raises:
        OSError: a segment could not be written; the view is unchanged.
    """
    policy = policy or policy_for(store)
    for segment in store.segments():
        for name in sorted(segment.int8_requests):
            segment.int8_requests.discard(name)
            segment.build_int8(name)
    due = _due(store.view, policy)
    if not due:
        return False
    replace(store, due)
    return True


def replace(store: LiveStore, due: list[Part]) -> None:
    """Replace these parts by one segment of their live rows.

    The parts must not grow any more: blocks must be full.
    """
    assert all(not _growing(part) for part in due), "rows that are added now would be lost"
    chosen = [(part, part.living()) for part in due]
    chosen = [(part, rows) for part, rows in chosen if len(rows)]
    with store.writing:
        number = store.next_number
        store.next_number += 1
    segment = None
    if chosen:
        name = segment_name(number)
        store.being_written = name
        try:
            segment = write(name, chosen, store.recipe)
        except OSError:
            if store.recipe.folder is not None:
                shutil.rmtree(store.recipe.folder / name, ignore_errors=True)
            store.being_written = None
            raise
    store.recipe.failpoint("segment-publish")
    with store.writing:
        _publish(store, due, chosen, segment, number)
    store.being_written = None


def _publish(
    store: LiveStore,
    due: list[Part],
    chosen: list[tuple[Part, Int64]],
    segment: Segment | None,
    number: int,
) -> None:
    edit = Edit(store.view, size=store.block, next_number=store.next_number)
    into = None
    if segment is not None:
        # Rows that were deleted since they were chosen are dead in the new segment too.
        now = store.view.parts
        keep_R = np.concatenate([now[part.number].keep[rows] for part, rows in chosen])
        segment.slots = np.concatenate([part.rows.slots[rows] for part, rows in chosen])
        alive = int(np.count_nonzero(keep_R))
        into = Part(number, segment, len(segment), keep_R, alive)
        living = np.flatnonzero(keep_R)
        slots_N = segment.slots[living]
    edit.swap({part.number for part in due}, into)
    store.view = edit.view()
    if into is not None:
        store.id_map.move(slots_N, number, living)


def _due(view: View, policy: Policy) -> list[Part]:
    parts = list(view.parts.values())
    full = [part for part in parts if isinstance(part.rows, Block) and not _growing(part)]
    if len(full) >= policy.seal_blocks:
        return _fitting(full, policy.most_rows)
    sealed = [(part, part.rows) for part in parts if isinstance(part.rows, Segment)]
    for part, segment in sealed:
        if segment.worn or part.count - part.alive > policy.most_dead * part.count:
            return [part]
    by_tier: dict[int, list[Part]] = {}
    for part, _ in sealed:
        by_tier.setdefault(_tier(part.alive, policy.tier), []).append(part)
    for _, same in sorted(by_tier.items()):
        if len(same) >= policy.tier:
            taken = _fitting(same[: policy.tier], policy.most_rows)
            if len(taken) > 1:
                return taken
    return []


def _growing(part: Part) -> bool:
    return isinstance(part.rows, Block) and part.count < part.rows.size


def _fitting(parts: list[Part], most_rows: int) -> list[Part]:
    """The first part and as many others as fit in a segment of `most_rows`."""
    taken, total = parts[:1], parts[0].alive
    for part in parts[1:]:
        if total + part.alive <= most_rows:
            taken.append(part)
            total += part.alive
    return taken


def _tier(rows: int, base: int) -> int:
    return int(np.log(max(rows, 1)) / np.log(base))


class Compactor:
    """A thread that runs due compaction steps until it is stopped.

    Attributes:
        error: the error that ended the thread; its owner must then stop, too.
    """

    def __init__(
        self, store: LiveStore, *, policy: Policy | None = None, every_s: float = 0.25
    ) -> None:
        self._store, self._policy, self._every_s = store, policy, every_s
        self._stopping = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="compactor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current step."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                busy = maintain(self._store, self._policy)
            except OSError as error:  # a full disk: blocks stay searchable
                log.error("nothing is sealed for now: %s", error)
                busy = False
                self._stopping.wait(10.0)
            except BaseException as error:  # handed to the owner
                self.error = error
                log.exception("sealing stopped")
                return
            if not busy:
                self._stopping.wait(self._every_s)
