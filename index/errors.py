"""What can go wrong in `index`, as one tree.

BraidIndexError
├── BadQuery            the query breaks a limit or names what is not there: a 4xx answer
│   ├── SpaceMismatch   a vector from another space: refused, never answered wrongly (409)
│   ├── UnknownGeneration  there is no generation of that name (404)
│   ├── NotYet          `min_offsets` were not reached in time (412)
│   ├── NotServing      no generation answers where none is named, yet (503)
│   └── Busy            the node has as much to do as it takes on (503)
├── StoreError          the server that keeps the vectors refused, or does not answer (503)
├── HomeLocked          another process keeps this index home
├── SnapshotError       no snapshot could be written, or the one named is damaged
└── ServiceError        the client's view: the query service refused, or does not answer
"""

from __future__ import annotations

from collections.abc import Iterable


class BraidIndexError(Exception):
    """Base of every error that `index` raises on purpose."""


class BadQuery(BraidIndexError, ValueError):
    """A query that cannot be answered as it is.

    Args:
        field: the field of the query at fault.
        reason: what is wrong, with the limit and the value seen.
        status: the HTTP status that says so.
        retry_after_s: when the same query may be answered, if it may; whole seconds.
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
    """A vector from one space was put to an index of another."""

    def __init__(self, given: str, held: str) -> None:
        super().__init__("space", f"is {given!r}, this index holds {held!r}", status=409)


class UnknownGeneration(BadQuery):
    """A query named a generation that is not here."""

    def __init__(self, given: str, held: Iterable[str]) -> None:
        reason = f"there is no {given[:60]!r}, there are {', '.join(sorted(held))}"
        super().__init__("generation", reason, status=404)


class NotYet(BadQuery):
    """The offsets that a query waited for were not reflected in time."""

    def __init__(self, reason: str) -> None:
        super().__init__("min_offsets", reason, status=412, retry_after_s=1)


class NotServing(BadQuery):
    """The generation that is searched where none is named is not open; the query may be good."""

    def __init__(self, reason: str) -> None:
        super().__init__("generation", reason, status=503, retry_after_s=1)


class Busy(BadQuery):
    """The node has as much to do as it takes on; the query itself may be good."""

    def __init__(self, reason: str) -> None:
        super().__init__("request", reason, status=503, retry_after_s=1)


class StoreError(BraidIndexError):
    """The server that keeps the vectors refused a call, or does not answer."""


class HomeLocked(BraidIndexError):
    """Another process keeps the index in this folder."""

    def __init__(self, folder: str, pid: str) -> None:
        super().__init__(
            f"index home {folder} is held by the index node with process id {pid}: stop that one, "
            "or give this one an index_folder of its own"
        )


class SnapshotError(BraidIndexError):
    """A snapshot is damaged, or could not be written."""


class ServiceError(BraidIndexError):
    """The query service refused a call, or does not answer (status 0)."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
