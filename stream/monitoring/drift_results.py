"""The last drift report of each version, kept in Redis for `braid status`.

One hash for all versions, under the topics' prefix; a version's last window is kept for a day.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import redis

from ..errors import BadRecord
from ..kafka.schemas import decode_map, pack
from ..redis_client import best_effort_redis
from ..settings import Settings

TIMEOUT_S = 0.5
KEPT_S = 86_400


class LastWindows:
    """Keeps each version's last window in Redis, best-effort: never raises."""

    def __init__(self, settings: Settings) -> None:
        self._client = best_effort_redis(settings, TIMEOUT_S)
        self._key = _key(settings)
        self._kept_s = KEPT_S + 4 * settings.drift.window_s

    def put(self, version: str, report: Mapping[str, Any]) -> None:
        """Store the report as the version's last; delete versions whose last report is old."""
        if self._client is None:
            return
        try:
            self._client.hset(self._key, version, cast(Any, pack(dict(report))))
            self._client.expire(self._key, self._kept_s)
            old = time.time() - self._kept_s
            for name, kept in _all(self._client, self._key).items():
                if kept.get("end", 0.0) < old:
                    self._client.hdel(self._key, name)
        except redis.RedisError:
            return

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def reports(settings: Settings) -> dict[str, dict[str, Any]] | None:
    """Each version's last complete window by "GENERATION/MODEL"; None: Redis does not answer."""
    client = best_effort_redis(settings, TIMEOUT_S)
    if client is None:
        return None
    try:
        return dict(sorted(_all(client, _key(settings)).items()))
    except redis.RedisError:
        return None
    finally:
        client.close()


def line(version: str, report: Mapping[str, Any]) -> str:
    """One version's last window as a line, such as
    "g0001/braid-0002 to 12:05:00, 812 records: labels colour 0.41 (0.25) DRIFT, embedding ..."."""
    ended = time.strftime("%H:%M:%S", time.localtime(report["end"]))
    parts = [
        f"{row['name']} {row['value']:.2g} ({row['limit']:g}){' DRIFT' if row['exceeds'] else ''}"
        for row in report["statistics"]
    ]
    statistics = ", ".join(parts + ([report["note"]] if report["note"] else []))
    return f"{version} to {ended}, {report['records']} records: {statistics}"


def _all(client: redis.Redis, key: str) -> dict[str, dict[str, Any]]:
    reports = {}
    for name, value in cast(dict[bytes, bytes], client.hgetall(key)).items():
        try:
            reports[name.decode()] = decode_map(value)
        except BadRecord:  # of another version of braid
            continue
    return reports


def _key(settings: Settings) -> str:
    return f"braid:drift:{settings.prefix}"
