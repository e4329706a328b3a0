"""API keys and rate limits, checked before a body is read.

Unauthenticated unless API keys are set; with keys, every path below `/v1/` requires one. Other
paths stay open: `/healthz`, `/readyz` and `/metrics`, because probes and scrapers have no keys and
the answers contain no record; `/docs`, `/openapi.json` and the page, because their data is below
`/v1/`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

SHORTEST_KEY = 16
MOST_CALLERS = 10_000
HASHED = "sha256:"


class ApiKeys:
    """The keys that are accepted, held as SHA-256 digests only.

    A key is long and random, unlike a password, so that a plain digest is sufficient.

    Args:
        keys: each a key of at least 16 printable ASCII characters without spaces, or
            `sha256:` and the 64 hexadecimal digits of a key's digest.

    Raises:
        ValueError: a key is invalid (named by its number, not shown), or there is none.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key, number) for number, key in enumerate(keys, 1)]
        if not self._digests:
            raise ValueError("no key is given: leave the setting out to let everyone ask")

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"ApiKeys({len(self)} of them)"

    def match(self, key: bytes) -> str | None:
        """The name of the caller with this key, or None; takes the same time for every key."""
        digest = hashlib.sha256(key).digest()
        name = None
        for known in self._digests:
            if hmac.compare_digest(known, digest):
                name = known.hex()[:12]
        return name


def read_keys(text: str) -> list[str]:
    """The keys in a file, one a line; empty lines and lines that begin with # are skipped."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _digest(key: str, number: int) -> bytes:
    if key.startswith(HASHED):
        hexadecimal = key.removeprefix(HASHED)
        if not re.fullmatch("[0-9a-fA-F]{64}", hexadecimal):
            raise ValueError(f"key {number}: {HASHED} must be followed by 64 hexadecimal digits")
        return bytes.fromhex(hexadecimal)
    if not re.fullmatch("[!-~]+", key):
        raise ValueError(f"key {number}: must be printable ASCII characters without spaces")
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"key {number}: has {len(key)} characters, at least {SHORTEST_KEY}")
    return hashlib.sha256(key.encode()).digest()


# Costs of paths that the page requests automatically, without embedding or searching. They have a
# bucket of their own, so that viewing the page does not use up the rate of searches. The large
# media of one record are read from Kafka and decoded at each request.
PAGE = {f"/v1/{name}": 0.02 for name in ("live", "map", "shown", "snippet", "thumb")}
PAGE |= {"/v1/text": 0.1, "/v1/picture": 0.5, "/v1/sound": 0.5}
CHEAP_K = 10  # a query for up to so many hits costs 1


class RateLimit:
    """A token bucket for each caller, in this process.

    At most MOST_CALLERS have a bucket, the most recent ones; an evicted caller starts with a full
    one.

    Args:
        rate_per_s: how fast a bucket fills.
        burst: how much it holds.
        clock: monotonic seconds.
    """

    def __init__(
        self, rate_per_s: float, burst: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate_per_s, float(burst), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, as of when

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, caller: str, cost: float = 1.0) -> float:
        """Take `cost` tokens and return 0.0, or return the seconds until there are enough."""
        tokens = self._tokens(caller)
        if tokens < cost:
            return (cost - tokens) / self._rate
        self._put(caller, tokens - cost)
        return 0.0

    def charge(self, caller: str, count: float) -> None:
        """Take `count` more tokens for an admitted request that costs more.

        The balance may become negative: a batch larger than the burst is answered, and its caller
        waits longer for the next request.
        """
        self._put(caller, self._tokens(caller) - count)

    def _tokens(self, caller: str) -> float:
        tokens, at = self._buckets.get(caller, (self._burst, self._clock()))
        return min(self._burst, tokens + (self._clock() - at) * self._rate)

    def _put(self, caller: str, tokens: float) -> None:
        self._buckets[caller] = tokens, self._clock()
        self._buckets.move_to_end(caller)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)


class Access:
    """ASGI middleware: 401 without a known key, 429 above the rate.

    A caller is identified by its key; without a key, and if no keys are set, by its address (the
    first 64 bits of an IPv6 address, the usual assignment to one customer).

    Sets `charge` in the request's state: a function that charges the cost beyond the 1 taken here.

    Args:
        refused: called with the reason, to count it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys | None,
        rate: RateLimit | None,
        refused: Callable[[str], None],
    ) -> None:
        self._app, self._keys, self._rate, self._refused = app, keys, rate, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        caller = self._key(scope)
        unknown = caller is None and self._keys is not None
        caller = caller or _address(scope)
        wait_s = 0.0
        if self._rate is not None:
            cost = None if unknown else PAGE.get(scope["path"])
            bucket = caller if cost is None else f"page {caller}"
            wait_s = self._rate.wait_s(bucket, 1.0 if cost is None else cost)
        if wait_s:
            answer = self._too_often(wait_s)
        elif unknown:
            answer = self._no_key()
        else:
            scope.setdefault("state", {})["charge"] = lambda count: self._charge(caller, count)
            await self._app(scope, receive, send)
            return
        await answer(scope, receive, send)  # without reading the body, which the server drops

    def _key(self, scope: Scope) -> str | None:
        if self._keys is None:
            return None
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                key = value[7:].strip()
            elif name == b"x-api-key":
                key = value.strip()
            else:
                continue
            if caller := self._keys.match(key):
                return caller
        return None

    def _charge(self, caller: str, count: int) -> None:
        if self._rate is not None and count > 0:
            self._rate.charge(caller, count)

    def _no_key(self) -> JSONResponse:
        self._refused("key")
        reason = "needs a known key, sent as `authorization: Bearer KEY` or `x-api-key: KEY`"
        error = {"field": "authorization", "reason": reason}
        return JSONResponse({"error": error}, 401, headers={"www-authenticate": "Bearer"})

    def _too_often(self, wait_s: float) -> JSONResponse:
        self._refused("rate")
        assert self._rate is not None
        error = {"field": "request", "reason": f"too many; there is room in {wait_s:.3g} s"}
        headers = {"retry-after": str(math.ceil(wait_s))}
        return JSONResponse({"error": error}, 429, headers=headers)


def cost(ks: Iterable[int]) -> int:
    """Cost of queries for these numbers of hits: 1 up to CHEAP_K, proportional beyond."""
    return math.ceil(sum(max(1.0, k / CHEAP_K) for k in ks))


def _address(scope: Scope) -> str:
    host = str((scope.get("client") or ("unknown",))[0])
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))
    except ValueError:
        return host
