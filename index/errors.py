"""What can go wrong in `index`, as one tree.

BraidIndexError
├── BadQuery            the query breaks a limit or names what is not there: a 4xx answer
│   └── SpaceMismatch   a vector from another space: refused, never answered wrongly (409)
├── SnapshotError       no snapshot could be written, or the one named is damaged
└── ServiceError        the client's view: the query service refused, or does not answer
"""

from __future__ import annotations


class BraidIndexError(Exception):
    """Base of every error that `index` raises on purpose."""


class BadQuery(BraidIndexError, ValueError):
    """A query that cannot be answered as it is.

    Args:
        field: the field of the query at fault.
        reason: what is wrong, with the limit and the value seen.
        status: the HTTP status that says so.
    """

    def __init__(self, field: str, reason: str, status: int = 422) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.status = status


class SpaceMismatch(BadQuery):
    """A vector from one space was put to an index of another."""

    def __init__(self, given: str, held: str) -> None:
        super().__init__("space", f"is {given!r}, this index holds {held!r}", status=409)


class SnapshotError(BraidIndexError):
    """A snapshot is damaged, or could not be written."""


class ServiceError(BraidIndexError):
    """The query service refused a call, or does not answer (status 0)."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
