"""Vector store on one Milvus collection per generation.

Milvus has no transactions; the order of writes replaces them:

    1. look up the last writes of the batch's ids (strong consistency), and drop superseded writes
    2. upsert the rows that win, one row per record
    3. upsert the header row with the offsets

After a crash between two steps the batch is read again from the offsets of the header, and versions
make the repetition idempotent. Meanwhile a reader may see some records of a batch new and others
old, but never half of a record, and never offsets ahead of their records. This holds while one
process writes to a collection; any number may search.

A deletion stays as a row that is not alive, because a late write must find it. Search is exact
(index FLAT). The filter is applied to each hit again (see `braid.index.milvus.filters`).

Tested against Milvus Lite 3.2.2, in this process and as a server (gRPC, the same client and calls);
not against a Milvus cluster. The limits below are a server's defaults.

Shapes: B queries, D dimensions, K hits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import BadQuery, StoreError
from ..filters import Filter
from ..rules import advanced, checked_queries, supersedes, warn_of_second_partition
from ..store import FUSED, Array, Delete, Hit, Row, Upsert
from .client import CALL_TIMEOUT_S, among, errors, query, read_header
from .filters import expression, quoted
from .rows import (
    HEADER,
    HIT_FIELDS,
    LAST_FIELDS,
    LastWrite,
    check,
    decode_hit,
    decode_last,
    decode_row,
    encode,
    encode_header,
    flag_field,
    size_of,
    vector_field,
)
from .sample import AT_ONCE, CIRCLE, arcs, start_of

log = logging.getLogger(__name__)

MOST_K = 16_384  # hits of one search
MOST_WITH_META = 2_048  # so that their metas fit in one answer (64 MiB)
MESSAGE_BYTES = 8 * 1024 * 1024  # of one upsert; a server takes 64 MiB
LOOK_UP = 500  # ids in one expression
GROW = 4  # factor of the limit while the filter leaves too few hits


class MilvusStore:
    """Implements `braid.index.store.VectorStore`.

    Args:
        client: a MilvusClient, see `braid.index.milvus.collections.connect`.
        collection: its name, or an alias of it; made by `MilvusGenerations.open`.
        timeout_s: timeout of one call.

    Raises:
        StoreError: Milvus does not answer, or the collection was not made by braid.
    """

    def __init__(self, client: Any, collection: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._client, self.collection = client, collection
        self._timeout_s = timeout_s
        header = read_header(client, collection, timeout_s=timeout_s)
        if header is None:
            raise StoreError(f"{collection}: this Milvus collection was not made by braid")
        self._header = header
        self._writing = threading.Lock()
        self._second_partition = 0
        self._ignored = 0

    @property
    def space(self) -> str:
        return self._header.space

    @property
    def dim(self) -> int:
        return self._header.dim

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that may have a vector, beside `fused`."""
        return self._header.names

    @property
    def positions(self) -> Mapping[int, int]:
        return dict(self._header.positions)

    @property
    def progress(self) -> Mapping[int, int]:
        return dict(self._header.progress)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The last argument of `note`."""
        return dict(self._header.facts)

    def __len__(self) -> int:
        return self._count("alive == true")

    def apply(
        self,
        writes: Sequence[Upsert | Delete],
        *,
        positions: Mapping[int, int],
        progress: Mapping[int, int],
    ) -> None:
        """See VectorStore.apply; not atomic: the module describes what a search may see meanwhile.

        Raises:
            ValueError: a write does not fit the collection; no write is applied.
            StoreError: Milvus failed; some rows may be written, the offsets are not. Repeat the
                call, or continue from `positions` after a restart.
        """
        for write in writes:
            check(write, dim=self.dim, names=self.names)
        with self._writing:
            known = self._last_of({write.id for write in writes})
            winners, ignored, second = self._winners(writes, known)
            rows = [encode(write, dim=self.dim, names=self.names) for write in winners]
            for message in self._messages(rows):
                self._upsert(message)
            header = replace(
                self._header,
                positions=advanced(self._header.positions, positions),
                progress=advanced(self._header.progress, progress),
            )
            if header != self._header:
                self._upsert([encode_header(header)])
            # Last: a reader that sees the offsets also sees the records.
            self._header = header
            self._ignored += ignored
            self._second_partition += second

    def note(self, facts: Mapping[str, Any]) -> None:
        """Store the owner's facts beside the offsets, as JSON. Raises StoreError."""
        with self._writing:
            header = replace(self._header, facts=dict(facts))
            if header != self._header:
                self._upsert([encode_header(header)])
                self._header = header

    def clear(self) -> None:
        """Delete all records, offsets and facts.

        A crash meanwhile leaves the old offsets with fewer records: clear again.
        """
        with self._writing:
            with errors(f"clearing {self.collection}"):
                condition = f"id != {quoted(HEADER)}"
                self._client.delete(self.collection, filter=condition, timeout=self._timeout_s)
            header = replace(self._header, positions={}, progress={}, facts={})
            self._upsert([encode_header(header)])
            self._header = header

    def search(
        self,
        queries_BD: Array,
        *,
        k: int,
        vector: str = FUSED,
        filter: Filter | None = None,
    ) -> list[list[Hit]]:
        """See VectorStore.search. Hits of equal score are ordered by id.

        Raises:
            BadQuery: also if k is above MOST_K, or if Milvus cannot express the filter exactly and
                fewer than k of its MOST_K nearest rows match.
            StoreError: Milvus failed.
        """
        queries_BD = checked_queries(queries_BD, dim=self.dim, k=k)
        if k > MOST_K:
            raise BadQuery("k", f"must be 1 to {MOST_K}, got {k}")
        if vector not in (FUSED, *self.names):
            return [[] for _ in queries_BD]
        condition = f"{flag_field(vector)} == true"
        if filter is None:
            return [_best(hits, k) for hits in self._nearest(queries_BD, k, vector, condition)]
        return self._admitted(
            queries_BD, k, vector, filter, f"{condition} and {expression(filter)}"
        )

    def get(self, id: str) -> Row | None:
        return self.get_many([id]).get(id)

    def get_many(self, ids: Iterable[str]) -> dict[str, Row]:
        """The records of these ids, by id; missing ones are left out."""
        sound = [id for id in ids if _is_text(id)]  # an id with half a surrogate pair cannot exist
        vectors = [vector_field(name) for name in (FUSED, *self.names)]
        flags = [flag_field(name) for name in (FUSED, *self.names)]
        return {
            row["id"]: decode_row(row, self.names)
            for some in _parts(sound, LOOK_UP)
            for row in self._query(among(some), [*HIT_FIELDS, "ts", *flags, *vectors])
            if row["alive"]
        }

    def ids(self) -> set[str]:
        """See VectorStore.ids."""
        ids: set[str] = set()
        for arc in arcs(0, alive=len(self), limit=AT_ONCE):
            ids |= {row["id"] for row in self._query(f"alive == true and {arc}", ["id"])}
        return ids

    def sample(self, limit: int, *, seed: int = 0) -> list[Row]:
        """See VectorStore.sample."""
        start = start_of(seed)
        drawn: list[tuple[int, str]] = []
        for arc in arcs(start, alive=len(self), limit=limit):
            if len(drawn) >= limit:
                break
            rows = self._query(f"alive == true and {arc}", ["id", "lot"])
            drawn += sorted(((row["lot"] - start) % CIRCLE, row["id"]) for row in rows)
        return list(self.get_many([id for _, id in drawn[: max(0, limit)]]).values())

    def stats(self) -> dict[str, Any]:
        records, rows = len(self), self._count(f"id != {quoted(HEADER)}")
        return {
            "records": records,
            "rows": rows,
            "dead": rows - records,
            "ignored": self._ignored,
            "second_partition": self._second_partition,
            "space": self.space,
            "dim": self.dim,
            "collection": self.collection,
        }

    # ---- superseded writes

    def _last_of(self, ids: set[str]) -> dict[str, LastWrite]:
        return {
            row["id"]: decode_last(row)
            for some in _parts(sorted(ids), LOOK_UP)
            for row in self._query(among(some), LAST_FIELDS)
        }

    def _winners(
        self, writes: Iterable[Upsert | Delete], known: dict[str, LastWrite]
    ) -> tuple[list[Upsert | Delete], int, int]:
        """The winning write of each id; the numbers of ignored and of second-partition writes."""
        winners: dict[str, Upsert | Delete] = {}
        ignored = second = 0
        for write in writes:
            last = winners.get(write.id) or known.get(write.id)
            if last is not None and last.partition != write.partition:
                if self._second_partition + second == 0:
                    warn_of_second_partition(write, last)
                second += 1
            if last is not None and not supersedes(write, last):
                ignored += 1
                continue
            winners[write.id] = write
        return list(winners.values()), ignored, second

    # ---- searching

    def _admitted(
        self, queries_BD: Array, k: int, vector: str, filter: Filter, condition: str
    ) -> list[list[Hit]]:
        """The nearest records that match; the limit grows, as Milvus may return others too."""
        answers: list[list[Hit]] = [[] for _ in queries_BD]
        open_B = np.arange(len(queries_BD))
        limit = k
        while len(open_B) and limit <= max(k, MOST_WITH_META):
            nearest = self._nearest(queries_BD[open_B], limit, vector, condition)
            still: list[int] = []
            for number, hits in zip(open_B.tolist(), nearest, strict=True):
                answers[number] = [hit for hit in hits if filter(hit.meta)]
                if len(answers[number]) < k and len(hits) == limit:
                    still.append(number)
            open_B = np.array(still, np.int64)
            limit *= GROW
        for number in open_B.tolist():
            answers[number] = self._nearest_by_ids(queries_BD[number], k, vector, filter, condition)
        return [_best(hits, k) for hits in answers]

    def _nearest_by_ids(
        self, query_D: Array, k: int, vector: str, filter: Filter, condition: str
    ) -> list[Hit]:
        """The same for the MOST_K nearest rows: first their ids, then their metas in parts."""
        (entities,) = self._search(query_D[None, :], MOST_K, vector, condition, ["id"])
        scores = {hit["entity"]["id"]: float(hit["distance"]) for hit in entities}
        admitted: list[Hit] = []
        for some in _parts(list(scores), LOOK_UP):
            rows = self._query(among(some), [*HIT_FIELDS, flag_field(vector)])
            hits = [decode_hit(row, scores[row["id"]]) for row in rows if row[flag_field(vector)]]
            admitted += [hit for hit in hits if filter(hit.meta)]
            if len(admitted) >= k:  # parts are ordered best first
                return admitted
        if len(entities) < MOST_K:
            return admitted
        raise BadQuery(
            "filter",
            f"admits {len(admitted)} of the {MOST_K} nearest records that Milvus finds, {k} are "
            "asked for; a range needs a field named by letters, digits, _ and -, and a bound "
            "within 2^53",
        )

    def _nearest(
        self, queries_BD: Array, limit: int, vector: str, condition: str
    ) -> list[list[Hit]]:
        together = max(1, MOST_K // limit)  # queries in one call
        return [
            [decode_hit(hit["entity"], float(hit["distance"])) for hit in hits]
            for start in range(0, len(queries_BD), together)
            for hits in self._search(
                queries_BD[start : start + together], limit, vector, condition, HIT_FIELDS
            )
        ]

    def _search(
        self, queries_BD: Array, limit: int, vector: str, condition: str, fields: list[str]
    ) -> list[Any]:
        with errors(f"searching {self.collection}"):
            hit_lists = self._client.search(
                self.collection,
                data=list(queries_BD),
                anns_field=vector_field(vector),
                filter=condition,
                limit=limit,
                output_fields=fields,
                search_params={"metric_type": "IP"},
                consistency_level="Strong",
                timeout=self._timeout_s,
            )
            return list(hit_lists)

    def _query(self, condition: str, fields: list[str]) -> list[dict[str, Any]]:
        return query(self._client, self.collection, condition, fields, timeout_s=self._timeout_s)

    def _count(self, condition: str) -> int:
        (row,) = self._query(condition, ["count(*)"])
        return int(row["count(*)"])

    # ---- writing

    def _upsert(self, rows: list[dict[str, Any]]) -> None:
        with errors(f"writing to {self.collection}"):
            self._client.upsert(self.collection, rows, timeout=self._timeout_s)

    def _messages(self, rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        message: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            size += size_of(row, self.names)
            if message and size > MESSAGE_BYTES:
                yield message
                message, size = [], size_of(row, self.names)
            message.append(row)
        if message:
            yield message


def _is_text(id: str) -> bool:
    return id.encode("utf-8", "ignore").decode() == id


def _best(hits: Iterable[Hit], k: int) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]


def _parts(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
