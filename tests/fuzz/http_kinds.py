"""Hostile HTTP: start lines, headers, hosts, origins, methods, paths, chunks, and slow clients."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.fuzz.body_kinds import JSON
from tests.fuzz.hostile import ANSWERED, MIB, NOTHING, REFUSED, HostileRequest


def _raw(data: bytes, *, expect: range = REFUSED, stays: bool = False) -> HostileRequest:
    return replace(NOTHING, raw=data, expect=expect, stays=stays, may_close=True)


def half_headers(rng: random.Random) -> HostileRequest:
    whole = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nX-Name: value\r\n"
    return _raw(whole[: rng.randrange(len(whole))], stays=True)


def bad_start(rng: random.Random) -> HostileRequest:
    tries = [
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\r\n" * 500,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        rng.randbytes(400) + b"\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 6\r\n\r\nhello",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"zzz\r\nabc\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"ffffffffffffffff\r\nabc\r\n",
    ]
    return _raw(rng.choice(tries), stays=True)


def long_headers(rng: random.Random) -> HostileRequest:
    name = "x" * rng.choice([1, 300])
    value = "y" * rng.choice([20_000, 200_000])
    many = tuple((f"X-{n}", "z" * 50) for n in range(rng.choice([10, 2000])))
    headers = rng.choice([((name, value),), many])
    return replace(NOTHING, method="GET", path="/v1/status", headers=headers, may_close=True)


def tiny_chunks(rng: random.Random) -> HostileRequest:
    count = rng.choice([100, 20_000])
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _raw(head + b"1\r\n \r\n" * count + b"0\r\n\r\n")


def slow_body(rng: random.Random) -> HostileRequest:
    body = tuple(b" " for _ in range(4))
    headers = (*JSON, ("Content-Length", str(rng.choice([50, 5000]))))
    slow = replace(NOTHING, headers=headers, body=body, pause_s=0.2, stays=True)
    return replace(slow, may_close=True, expect=REFUSED)


def wrong_host(rng: random.Random) -> HostileRequest:
    hosts = [
        "evil.example",
        "evil.example:8077",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "localhost.evil.example",
        "0x7f000001",
        "[::ffff:1.2.3.4",
        "",
        "..",
        "a/b",
        "x" * 5000,
    ]
    method, path = rng.choice([("GET", "/v1/status"), ("DELETE", "/v1/records/r1"), ("GET", "/")])
    headers = (("Host", rng.choice(hosts)),)
    return replace(NOTHING, method=method, path=path, headers=headers, expect=REFUSED)


def foreign_origin(rng: random.Random) -> HostileRequest:
    origin = rng.choice(
        ["https://evil.example", "null", "http://localhost:1", "file://", "x" * 3000]
    )
    method, path = rng.choice([("DELETE", "/v1/records/r1"), ("POST", "/v1/search")])
    headers = (("Origin", origin), *JSON)
    body = (b'{"text": "q"}',) if method == "POST" else ()
    return replace(NOTHING, method=method, path=path, headers=headers, body=body, expect=REFUSED)


def odd_method(rng: random.Random) -> HostileRequest:
    method = rng.choice(["PUT", "PATCH", "TRACE", "CONNECT", "OPTIONS", "FOO", "get", "HEAD"])
    path = rng.choice(["/v1/search", "/v1/records/r1", "/", "/metrics", "*"])
    return replace(NOTHING, method=method, path=path, expect=REFUSED, may_close=True)


def odd_path(rng: random.Random) -> HostileRequest:
    paths = [
        "/page/../service.py",
        "/page/..%2fservice.py",
        "/page/%2e%2e/%2e%2e/etc/passwd",
        "//",
        "/v1/records/..%2f..%2fetc%2fpasswd",
        "/v1/records/%00",
        "/v1/records/%ff%fe",
        "/%",
        "/%zz",
        "/v1/records/" + "a" * 9000,
        "/v1/records/",
        "/v1/thumb?id=%F0%28",
        "/v1/thumb",
        "/v1/live?since=x",
        "/v1/live?since=" + "9" * 400,
        "/v1/live?wait_ms=99999999",
        "/v1/map?revision=1e9",
        "/v1/records/r1?min_offsets=0:x",
        "/v1/records/r1?generation=" + "g" * 99,
        "/v1/records/r1?min_offsets=" + "0:1," * 2000,
        "/v1/nothing",
        "/v1/snippet?id=%E2%80%AE",
        "http://evil.example/v1/status",
        "/?" + "a=b&" * 2000,
        "/v1/shown?id=" + "%F0%9F%92%A9" * 200,
    ]
    return replace(NOTHING, method="GET", path=rng.choice(paths), may_close=True)


def odd_type(rng: random.Random) -> HostileRequest:
    types = ["text/plain", "application/xml", "application/json; charset=utf-16", "", "a" * 5000]
    types += ["application/x-www-form-urlencoded", "application/json, text/plain"]
    headers = (("Content-Type", rng.choice(types)),)
    return replace(NOTHING, headers=headers, body=(b'{"text": "q"}',))


def too_long(rng: random.Random) -> HostileRequest:
    announced = rng.choice([33 * MIB, 10**12, 10**30])
    headers = (*JSON, ("Content-Length", str(announced)))
    return replace(
        NOTHING, headers=headers, body=(b"{",), may_close=True, stays=True, expect=REFUSED
    )


def expects(rng: random.Random) -> HostileRequest:
    headers = (*JSON, ("Expect", rng.choice(["100-continue", "200-ok"])), ("Upgrade", "websocket"))
    return replace(NOTHING, headers=headers, body=(b'{"text": "q"}',), expect=range(100, 500))


def pipelined(rng: random.Random) -> HostileRequest:
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return _raw(one * rng.choice([2, 200]) + one[:20], expect=ANSWERED)
