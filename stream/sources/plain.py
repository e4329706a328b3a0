"""Values of formats with more types than JSON, as JSON's and bytes."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

PLAIN: Mapping[type, Callable[[Any], Any]] = {
    datetime.datetime: datetime.datetime.isoformat,
    datetime.date: datetime.date.isoformat,
    datetime.time: datetime.time.isoformat,
    datetime.timedelta: datetime.timedelta.total_seconds,
    Decimal: float,
    UUID: str,
}


def plain(value: Any) -> Any:
    """A value with times as in ISO 8601, decimals as numbers, and UUIDs as texts."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    make = PLAIN.get(type(value))
    return value if make is None else make(value)
