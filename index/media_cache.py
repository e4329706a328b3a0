"""Thumbnails, snippets and shared queries in Redis, within one byte budget for all writers.

Each medium is a string: its media type, its record's version, its bytes. A sorted set holds their
ages, a hash their sizes, a counter the sum; Lua scripts update all of them atomically, so that
concurrent writers keep the budget and count nothing twice. The oldest media are evicted. Redis
never holds the only copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from braid.modalities import MEDIA

from .payloads import KEPT_S, Payloads

Kind = Literal["thumb", "snippet", "query"]
KINDS: tuple[Kind, ...] = ("thumb", "snippet")
"""Of a record."""
MIB = 1024 * 1024
DEFAULT_BUDGET = 256 * MIB
PREFIX = "braid:media:"
SHARED_PREFIX = "braid:shared:"
"""Of files that are queries; their own budget, so that they evict no record's."""
OVERHEAD = 300  # bytes of Redis beside the data: three keys, two entries (MEMORY USAGE)
MEDIA_TYPE = re.compile(rf"({'|'.join(MEDIA)})/[a-z0-9.+-]{{1,40}}")

# KEYS: ages, sizes, sum, then the media. ARGV: budget, version, overhead, TTL, values.
_PUT = """
local ages, sizes, sum = KEYS[1], KEYS[2], KEYS[3]
local budget, version = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i = 4, #KEYS do
  local key, value = KEYS[i], ARGV[i + 1]
  local stored = string.match(redis.call('GETRANGE', key, 0, 80), '^[^%z]*%z(%d+)%z')
  if tonumber(stored or 0) <= version then
    local size = #value + 2 * #key + tonumber(ARGV[3])
    local before = tonumber(redis.call('HGET', sizes, key) or 0)
    redis.call('SET', key, value, 'EX', ARGV[4])
    redis.call('HSET', sizes, key, size)
    redis.call('ZADD', ages, now + i, key)
    redis.call('INCRBY', sum, size - before)
  end
end
while tonumber(redis.call('GET', sum) or 0) > budget do
  local oldest = redis.call('ZPOPMIN', ages)[1]
  if not oldest then
    redis.call('DEL', sizes, sum)
    break
  end
  redis.call('DECRBY', sum, tonumber(redis.call('HGET', sizes, oldest) or 0))
  redis.call('HDEL', sizes, oldest)
  redis.call('DEL', oldest)
end
return redis.call('GET', sum) or 0
"""

_DROP = """
for i = 4, #KEYS do
  local size = tonumber(redis.call('HGET', KEYS[2], KEYS[i]) or 0)
  if size > 0 then redis.call('DECRBY', KEYS[3], size) end
  redis.call('HDEL', KEYS[2], KEYS[i])
  redis.call('ZREM', KEYS[1], KEYS[i])
  redis.call('DEL', KEYS[i])
end
return 1
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """A small file: the bytes of its file and its media type."""

    data: bytes
    type: str


class MediaCache:
    """Puts and gets media over the connection of `Payloads`; never raises, and waits as briefly.

    Args:
        budget: bytes of all media in Redis below `prefix`; 0 stores none.
        prefix: of all keys.
    """

    def __init__(
        self, payloads: Payloads, *, budget: int = DEFAULT_BUDGET, prefix: str = PREFIX
    ) -> None:
        self._payloads = payloads
        self._budget = budget
        self._prefix = prefix
        self._books = [prefix + name for name in ("ages", "sizes", "sum")]

    def put_many(self, media: Mapping[tuple[Kind, str], Media], *, version: int = 0) -> bool:
        """Store media by (kind, record id); whether Redis answered.

        Args:
            version: of the record; media of a newer version that are there stay.
        """
        if not media or self._budget <= 0:
            return True
        keys = [*self._books, *(self._key(*name) for name in media)]
        values = [b"%b\0%d\0%b" % (one.type.encode(), version, one.data) for one in media.values()]
        arguments = [self._budget, version, OVERHEAD, KEPT_S, *values]
        return self._call(_PUT, keys, arguments) is not None

    def get(self, kind: Kind, id: str, *, version: int = 0) -> Media | None:
        """The medium of this version; None if there is none, or Redis does not answer."""
        raw = self._payloads.execute(lambda client: client.get(self._key(kind, id)))
        if not isinstance(raw, bytes):
            return None
        type_, _, rest = raw.partition(b"\0")
        stored, separator, data = rest.partition(b"\0")
        name = type_.decode("ascii", "replace")
        if not separator or not MEDIA_TYPE.fullmatch(name):
            return None  # written by another program
        return Media(data=data, type=name) if stored == b"%d" % version else None

    def has(self, kind: Kind, id: str) -> bool:
        """Whether there is this medium, and Redis answers."""
        return bool(self._payloads.execute(lambda client: client.exists(self._key(kind, id))))

    def drop_many(self, names: Sequence[tuple[Kind, str]]) -> bool:
        """Delete media; whether Redis did."""
        if not names:
            return True
        keys = [*self._books, *(self._key(*name) for name in names)]
        return self._call(_DROP, keys, []) is not None

    def nbytes(self) -> int | None:
        """Counted bytes of all media, or None if Redis does not answer."""
        total = self._payloads.execute(lambda client: client.get(self._books[2]) or b"0")
        return None if total is None else int(total)

    def _call(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        return self._payloads.execute(
            lambda client: client.register_script(script)(keys=keys, args=arguments)
        )

    def _key(self, kind: Kind, id: str) -> str:
        return f"{self._prefix}{kind}:{id}"
