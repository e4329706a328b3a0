"""Dependencies and limits of the query service, passed in by its caller.

The service depends on no model and on no Kafka client: `ServiceDeps` holds functions that embed a
query, produce a deletion and report the node's state.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from braid.modalities import MEDIA, MODALITIES

from ..media_cache import MediaCache
from ..metrics import ServiceMetrics
from ..payloads import Payloads
from ..store import Array, VectorStore
from .explain import UnrelatedScores
from .hit_details import Enlarge, Rebuild
from .limits.admission import ConcurrencyLimiter
from .limits.auth import ApiKeys
from .limits.connections import ConnectionLimits
from .limits.hosts import Hosts
from .recent_writes import RecentWrites

MIB = 1024 * 1024


KEPT = 64


class RecentQueries:
    """The last queries with their generations; thread-safe."""

    def __init__(self, most: int = KEPT) -> None:
        self._queries: deque[tuple[str, Array, int, str]] = deque(maxlen=most)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._queries)

    def add(self, generation: str, query_D: Array, *, k: int, vector: str) -> None:
        with self._lock:
            self._queries.append((generation, query_D, k, vector))

    def choose(self, generation: str, rng: random.Random) -> tuple[Array, int, str] | None:
        """A random query to this generation: its vector, k, and the name of the searched vector."""
        with self._lock:
            queries = [tuple_[1:] for tuple_ in self._queries if tuple_[0] == generation]
        return rng.choice(queries) if queries else None


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryInput:
    """The modalities of a query."""

    text: str | None = None
    image: bytes | None = None
    audio: bytes | None = None
    video: bytes | None = None

    @property
    def media(self) -> dict[str, Any]:
        """The bytes of its files by modality."""
        files = {name: getattr(self, name) for name in MEDIA}
        return {name: data for name, data in files.items() if data is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryVectors:
    """The query in the shared space, float32[D] each, and the model that embedded it."""

    fused: Array
    by: Mapping[str, Array]
    space: str
    model: str


Encode = Callable[[QueryInput], Awaitable[QueryVectors]]
EncodeMany = Callable[[Sequence[QueryInput]], Awaitable[Sequence[QueryVectors]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """One generation as a request sees it: its store, and functions that embed queries.

    A request reads one `Serving` at its start, so that hits, model, generation and offsets of an
    answer are consistent.

    Attributes:
        encode: embeds a query; raises BadQuery. None: only raw vectors and ids are accepted.
        encode_many: embeds several queries with one model, in order; raises BadQuery if any is
            invalid. None: queries are embedded one at a time.
        model: the current model for queries, for `/v1/generations`.
        modalities: those of that model.
        arrivals: the last writes to the store, for the page.
    """

    generation: str
    store: VectorStore
    encode: Encode | None = None
    encode_many: EncodeMany | None = None
    model: str | None = None
    modalities: Sequence[str] = tuple(MODALITIES)
    recent_writes: RecentWrites | None = None


CONNECTION = ConnectionLimits()
COUNTS = (
    "body_bytes",
    "json_bytes",
    "answer_bytes",
    "searches",
    "offset_waits",
    "polls",
    "burst",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one node.

    Attributes:
        body_bytes: size of an upload, also after decompression.
        json_bytes: size of any other body, at most body_bytes.
        bodies_bytes: size of all bodies in memory; beyond it 503.
        answer_bytes: size of one answer; larger ones are refused.
        searches: queries that are embedded and searched at once.
        queue_size: queries that may wait for `searches`; beyond it 503.
        offset_waits: queries that may wait for `min_offsets` at once; beyond it 503.
        polls: long polls that may wait at once; beyond it 503.
        rate_per_s: sustained queries per second for each key or client address; None: unlimited.
        burst: queries that may arrive at once.
        connection: limits of one connection.
    """

    body_bytes: int = 32 * MIB
    json_bytes: int = 8 * MIB
    bodies_bytes: int = 128 * MIB
    answer_bytes: int = 32 * MIB
    searches: int = 64
    queue_size: int = 64
    offset_waits: int = 256
    polls: int = 64
    rate_per_s: float | None = None
    burst: int = 50
    connection: ConnectionLimits = CONNECTION

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.bodies_bytes < self.body_bytes:
            raise ValueError(
                f"bodies_bytes: must be at least body_bytes, {self.body_bytes}, "
                f"got {self.bodies_bytes}"
            )
        if self.queue_size < 0:
            raise ValueError(f"queue_size: must be at least 0, got {self.queue_size}")
        if self.rate_per_s is not None and self.rate_per_s <= 0:
            raise ValueError(f"rate_per_s: must be above 0, got {self.rate_per_s}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceDeps:
    """Dependencies of the service.

    Attributes:
        serving: the generation of that name, or the serving one for None; called once per request.
            Raises UnknownGeneration.
        delete: produces a record's deletion; returns its partition and offset in `records`.
        status: merged into `/v1/status`.
        not_ready: why the node is not ready, or None.
        generations: names of all generations here; without it there is the serving one only.
        keys: the API keys; None: no key is required.
        hosts: the accepted host names.
        recent: where queries are kept for the recall probe.
        unrelated: finds the cut-off of queries that ask to `explain`.
        media_cache: thumbnails and snippets; None looks where `payloads` are.
        rebuild: makes what is shown of a record again from `records`.
        enlarge: reads a record's large picture, sound or text; None: only the small ones are shown.
        shared: files of queries that a link names; None: they cannot be shared.
        dead_letters: counts those of the last hour, as `DeadLettersAnswer`. Raises BadQuery.
    """

    serving: Callable[[str | None], Serving]
    payloads: Payloads
    delete: Callable[[str], Awaitable[tuple[int, int]]]
    status: Callable[[], Mapping[str, Any]]
    not_ready: Callable[[], str | None]
    generations: Callable[[], Iterable[str]] | None = None
    keys: ApiKeys | None = None
    hosts: Hosts = field(default_factory=lambda: Hosts("127.0.0.1"))
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)
    limits: Limits = field(default_factory=Limits)
    recent: RecentQueries = field(default_factory=RecentQueries)
    unrelated: UnrelatedScores = field(default_factory=UnrelatedScores)
    media_cache: MediaCache | None = None
    rebuild: Rebuild | None = None
    enlarge: Enlarge | None = None
    shared: MediaCache | None = None
    dead_letters: Callable[[], Awaitable[Mapping[str, Any]]] | None = None

    def store(self) -> VectorStore:
        """The store of the serving generation."""
        return self.serving(None).store


@dataclass(frozen=True, kw_only=True, slots=True)
class Limiters:
    """Concurrency limits: of searches, of waits for offsets, and of long polls."""

    searching: ConcurrencyLimiter
    waiting: ConcurrencyLimiter
    polling: ConcurrencyLimiter

    @classmethod
    def of(cls, deps: ServiceDeps) -> Limiters:
        limits, metrics = deps.limits, deps.metrics
        return cls(
            searching=ConcurrencyLimiter(
                "searches",
                limits.searches,
                limits.queue_size,
                metrics.in_flight.set,
                metrics.waiting.set,
            ),
            waiting=ConcurrencyLimiter(
                "searches that wait for offsets", limits.offset_waits, 0, metrics.offset_waits.set
            ),
            polling=ConcurrencyLimiter(
                "pages that wait for what arrives", limits.polls, 0, metrics.polls.set
            ),
        )
