"""The exceptions of `index`, as one tree.

BraidIndexError
├── BadQuery            the query breaks a limit or names something unknown: a 4xx answer
│   ├── SpaceMismatch   a vector from another space (409)
│   ├── UnknownGeneration  there is no generation of that name (404)
│   ├── OffsetsNotReached  `min_offsets` were not reached in time (412)
│   ├── NotServing      the serving generation is not open yet (503)
│   └── Busy            a concurrency limit is reached (503)
├── StoreError          the vector store's server refused a call, or does not answer (503)
├── HomeLocked          another process holds this index home
├── SnapshotError       no snapshot could be written, or the one named is damaged
└── ServiceError        raised by clients: the query service refused, or does not answer
"""

from __future__ import annotations

from collections.abc import Iterable


class BraidIndexError(Exception):
    """Base of all errors of `index`."""


class BadQuery(BraidIndexError, ValueError):
    """A query that cannot be answered.

    Args:
        field: the field of the query at fault.
        reason: what is wrong, with the limit and the value seen.
        status: the HTTP status of the answer.
        retry_after_s: whole seconds after which the same query may succeed, if it may.
    """

    def __init__(
        self, field: str, reason: str, status: int = 422, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


class SpaceMismatch(BadQuery):
    """A query vector is from another space than the index."""

    def __init__(self, got: str, held: str) -> None:
        super().__init__("space", f"is {got!r}, this index holds {held!r}", status=409)


class UnknownGeneration(BadQuery):
    """The query names a generation that does not exist."""

    def __init__(self, got: str, held: Iterable[str]) -> None:
        reason = f"there is no {got[:60]!r}, there are {', '.join(sorted(held))}"
        super().__init__("generation", reason, status=404)


class OffsetsNotReached(BadQuery):
    """The store did not reflect the query's `min_offsets` in time."""

    def __init__(self, reason: str) -> None:
        super().__init__("min_offsets", reason, status=412, retry_after_s=1)


class NotServing(BadQuery):
    """The serving generation is not open yet; the query itself may be valid."""

    def __init__(self, reason: str) -> None:
        super().__init__("generation", reason, status=503, retry_after_s=1)


class Busy(BadQuery):
    """A concurrency limit is reached; the query itself may be valid."""

    def __init__(self, reason: str) -> None:
        super().__init__("request", reason, status=503, retry_after_s=1)


class StoreError(BraidIndexError):
    """The vector store's server refused a call, or does not answer."""


class HomeLocked(BraidIndexError):
    """Another process holds the index home."""

    def __init__(self, folder: str, pid: str) -> None:
        super().__init__(
            f"index home {folder} is held by the index node with process id {pid}: stop that one, "
            "or give this one an index_folder of its own"
        )


class SnapshotError(BraidIndexError):
    """A snapshot is damaged or could not be written."""


class ServiceError(BraidIndexError):
    """The query service refused a call, or does not answer (status 0)."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
