"""Hostile HTTP requests for the query service, by seed.

for request in requests(seed=1):
    outcome = send(request, "127.0.0.1", 8077)
    assert request.allows(outcome), (request.name, outcome)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice

from tests.fuzz import body_kinds, http_kinds
from tests.fuzz.hostile import HostileRequest
from tests.fuzz.hostile import send as send

COUNT = 2000


def requests(seed: int, count: int = COUNT) -> Iterator[HostileRequest]:
    """`count` hostile requests, the same for the same seed; each kind in turn."""
    rng = random.Random(seed)
    for number, make in enumerate(islice(cycle(KINDS), count)):
        made = make(rng)
        yield replace(made, name=f"{make.__name__}-{number}")


COMMON = (
    body_kinds.bad_json,
    body_kinds.wrong_types,
    body_kinds.bad_filter,
    body_kinds.bad_multipart,
    body_kinds.bad_media,
    http_kinds.odd_path,
    body_kinds.bad_vector,
    http_kinds.wrong_host,
    body_kinds.bad_gzip,
)
RARE = (
    body_kinds.deep_json,
    body_kinds.wide_json,
    body_kinds.huge_k,
    body_kinds.many_hits,
    body_kinds.odd_inputs,
    body_kinds.bad_offsets,
    body_kinds.bomb,
    http_kinds.bad_start,
    http_kinds.long_headers,
    http_kinds.tiny_chunks,
    http_kinds.foreign_origin,
    http_kinds.odd_method,
    http_kinds.odd_type,
    http_kinds.expects,
    http_kinds.pipelined,
)
SLOW = (http_kinds.half_headers, http_kinds.slow_body, body_kinds.endless_gzip, http_kinds.too_long)
KINDS: Sequence[Callable[[random.Random], HostileRequest]] = (*COMMON, *RARE, *COMMON, *SLOW)
