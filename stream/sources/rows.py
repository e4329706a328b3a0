"""Rows of tables as records, by the mapping of a source."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from braid.modalities import MODALITIES

from ..errors import ConfigError
from ..settings.source_groups import Source
from .mapping import RecordMap
from .paths import Paths, Scope
from .plain import plain


def fields_of(
    source: Source, *, wall: Callable[[], float] = time.time
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Makes the arguments of `Producer.send` of a row; may be called by any thread.

    The function raises BadRecord. In it, `key()` gives nothing and `timestamp()` the time now.

    Args:
        wall: seconds since 1970.

    Raises:
        ConfigError: a path is wrong, or the source is one of parts.
    """
    paths = Paths(f"sources.{source.title}")
    mapping, lock = RecordMap(source.map, paths), threading.Lock()
    if mapping.is_part:
        raise ConfigError(f"{paths.where}.map.expects: its messages are parts, not records")

    def fields(row: Mapping[str, Any]) -> dict[str, Any]:
        document, now_ms = plain(row), int(wall() * 1000)
        with lock:  # the paths have state
            paths.enter(Scope(timestamp=now_ms))
            if (id_ := mapping.id_of(document)) is None:
                raise mapping.missing_id("in the row")
            record = mapping.record(id_, document, default_ts=now_ms)
        names = ("id", "ts", *MODALITIES, "labels", "meta")
        return {name: getattr(record, name) for name in names}

    return fields
