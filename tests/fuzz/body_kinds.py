"""Hostile bodies: JSON, filters, vectors, uploads, media and gzip."""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from dataclasses import replace
from functools import lru_cache
from typing import Any

from braid.modalities import MODALITIES
from tests.fuzz.hostile import MIB, NOTHING, REFUSED, HostileRequest

EDGE = "edge"
JSON = (("Content-Type", "application/json"),)
PACKED = (*JSON, ("Content-Encoding", "gzip"))


def _json(value: Any, **options: Any) -> HostileRequest:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return replace(NOTHING, headers=JSON, body=(body,), **options)


def bad_json(rng: random.Random) -> HostileRequest:
    good = json.dumps({"text": "a red bird", "k": 3, "filter": {"lang": "de"}}).encode()
    spoilt = bytearray(good)
    for _ in range(rng.randint(1, 6)):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    tries = [
        bytes(spoilt),
        good[: rng.randrange(len(good))],
        good + good,
        b"\xef\xbb\xbf" + good,
        b"\x00" * rng.randint(1, 1000),
        bytes(rng.randrange(256) for _ in range(rng.randint(1, 300))),
        b'{"text": "\\ud800"}',
        b'{"text": "q", "k": ' + b"9" * rng.choice([30, 5000]) + b"}",
        b'{"text": "q", "text": 3, "text": []}',
        b"{" + b'"a": 1, ' * 5000 + b'"b": 2}',
    ]
    return _json(rng.choice(tries))


def deep_json(rng: random.Random) -> HostileRequest:
    depth = rng.choice([60, 200, 990, 5000, 200_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'{"filter":[', b"]}")])
    middle = rng.choice([b"1", b""])
    where = rng.choice([b"%b", b'{"text": "q", "filter": %b}', b'{"queries": [%b]}'])
    body = where % (opening * depth + middle + closing * (depth if rng.random() < 0.7 else 0))
    path = rng.choice(["/v1/search", "/v1/search/batch", "/v1/embeddings", "/v1/map"])
    return _json(body, path=path, expect=REFUSED)


def wide_json(rng: random.Random) -> HostileRequest:
    part = rng.choice([b"[]", b"{}", b"0", b'""', b"null", b'{"a":[]}'])
    many = b",".join([part] * rng.choice([1000, 50_000, 1_500_000]))
    inner = rng.choice([b'{"a": [%b]}', b'{"and": [%b]}', b'{"a": {"in": [%b]}}']) % many
    return _json(b'{"text": "q", "filter": ' + inner + b"}")


def wrong_types(rng: random.Random) -> HostileRequest:
    odd: list[Any] = [None, True, -1, 0, 1.5, 1e308, "", "x" * 300, [], {}, [[]], {"a": None}]
    names = (*MODALITIES, "id", "query", "k", "vector", "filter", "min_offsets")
    body = {name: rng.choice(odd) for name in rng.sample([*names, "timeout_ms", "x"], 4)}
    return _json(body)


def huge_k(rng: random.Random) -> HostileRequest:
    k = rng.choice([0, -1, 1001, 10**6, 2**31, 2**63, 10**30, 1e9, "1000"])
    return _json({"text": "q", "k": k}, expect=REFUSED)


def many_hits(rng: random.Random) -> HostileRequest:
    queries = [{"text": f"q{n}", "k": 1000} for n in range(rng.choice([10, 64, 65, 1000]))]
    return _json({"queries": queries}, path="/v1/search/batch")


def odd_inputs(rng: random.Random) -> HostileRequest:
    part = {
        "type": rng.choice(["text", "image_url", "input_audio", "video_url", "video", 7]),
        "text": "q",
    }
    one = rng.choice(["q", "", 7, None, [], [1, 2], part, [part] * 4, "q" * 2_000_000])
    body = {"model": rng.choice(["champion", "x", ""]), "input": [one] * rng.choice([1, 3, 2049])}
    return _json(body, path="/v1/embeddings")


def bad_vector(rng: random.Random) -> HostileRequest:
    values = rng.choice(
        [
            b"[NaN]",
            b"[Infinity, 1]",
            b"[-Infinity]",
            b"[1e999]",
            b"[]",
            b"[0, 0, 0, 0]",
            b'["1"]',
            b"[" + b"1," * 70_000 + b"1]",
            b"[" + b'"a",' * 60_000 + b"1]",
            b"[null]",
            b"[1e-320, 1e-320]",
            b"[" + b"0." + b"1" * 5000 + b"]",
        ]
    )
    space = rng.choice([b"s-1", b"", b"no such space", b"x" * 5000])
    return _json(b'{"query": {"values": %b, "space": "%b"}}' % (values, space), expect=REFUSED)


def bad_filter(rng: random.Random) -> HostileRequest:
    depth: Any = {"a": 1}
    for _ in range(rng.choice([9, 40])):
        depth = {"not": depth}
    tries: list[Any] = [
        {},
        {"and": []},
        {"or": [{}]},
        {"not": {}},
        {"a": {"gt": None}},
        {"a": {"in": []}},
        {"a": {"in": list(range(1001))}},
        {"a": {"regex": ".*"}},
        {"a": {"exists": 1}},
        depth,
        {f"f{n}": n for n in range(65)},
        {"a": [1, 2]},
        {"a" * 100_000: {}},
        {"a": {"gte": []}},
        {"and": [{"and": [{"a": n}]} for n in range(70)]},
        {"a": {"x" * 50_000: 1}},
        [],
        "a = 1",
    ]
    return _json({"text": "q", "filter": rng.choice(tries)}, expect=REFUSED)


def bad_offsets(rng: random.Random) -> HostileRequest:
    tries: list[Any] = [
        {"x": 1},
        {"0": -1},
        {"0": 2**70},
        {"-1": 0},
        {"0": "1"},
        {"0": 1.5},
        {"9" * 300: 1},
        {str(n): 1 for n in range(5000)},
        {"0": 10**15},
        {"999999999": 1},
    ]
    return _json({"text": "q", "min_offsets": rng.choice(tries), "timeout_ms": 50}, expect=REFUSED)


# ---- uploads and media


def _part(name: str, data: bytes, *more: str) -> bytes:
    head = "\r\n".join([f'content-disposition: form-data; name="{name}"', *more])
    return f"--{EDGE}\r\n{head}\r\n\r\n".encode("utf-8", "replace") + data + b"\r\n"


def _form(body: bytes, content_type: str = f"multipart/form-data; boundary={EDGE}") -> Any:
    return replace(NOTHING, headers=(("Content-Type", content_type),), body=(body,))


def bad_multipart(rng: random.Random) -> HostileRequest:
    end = f"--{EDGE}--\r\n".encode()
    good = _part("text", b"a bird") + _part("k", b"3") + end
    tries = [
        good[: rng.randrange(len(good))],
        good.replace(b"\r\n", b"\n"),
        b"--" + EDGE.encode(),
        _part("text", b"a") * 40 + end,
        b"".join(_part(f"f{n}", b"x") for n in range(5000)) + end,
        _part("text", b"\xff\xfe") + end,
        _part("filter", b"[" * 20_000) + _part("text", b"q") + end,
        _part("text", b"q", "x: " + "y" * 100_000) + end,
        _part("text", b"q", "content-transfer-encoding: base64") + end,
        _part('a"; filename="../../x', b"q") + end,
        f"--{EDGE}\r\nno header\r\n\r\nx\r\n".encode() + end,
        end,
    ]
    types = [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/x; boundary={EDGE}",
    ]
    types += ["multipart/form-data; boundary=" + "b" * 500, "multipart/form-data; boundary=\u00fc"]
    if rng.random() < 0.25:
        made: HostileRequest = _form(good, rng.choice(types))
    else:
        made = _form(rng.choice(tries))
    return made


def bad_media(rng: random.Random) -> HostileRequest:
    heads = [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF",
        b"OggS",
        b"fLaC",
        b"ID3",
        b"",
    ]
    data = rng.choice(heads) + rng.randbytes(rng.choice([0, 20, 5000]))
    name = rng.choice(["image", "audio"])
    if rng.random() < 0.5:
        made: HostileRequest = _form(_part(name, data) + f"--{EDGE}--\r\n".encode())
        return made
    encoded = base64.b64encode(data).decode()
    return _json({name: rng.choice([encoded, encoded[:-1], encoded + "!", "=" * 50])})


# ---- gzip


def bomb(rng: random.Random) -> HostileRequest:
    size = rng.choice([9, 40, 200]) * MIB
    unit = rng.choice([b" ", b"[],", b'"a":1,'])
    return replace(NOTHING, headers=PACKED, body=(_packed(unit, size),), expect=REFUSED)


@lru_cache
def _packed(unit: bytes, size: int) -> bytes:
    """A filter of `size` bytes, as gzip."""
    packer = zlib.compressobj(9, wbits=31)
    piece = unit * (MIB // len(unit))
    packed = [packer.compress(b'{"text": "q", "filter": {"a": [')]
    packed += [packer.compress(piece) for _ in range(size // len(piece))]
    packed += [packer.compress(b"0]}}"), packer.flush()]
    return b"".join(packed)


def bad_gzip(rng: random.Random) -> HostileRequest:
    good = gzip.compress(b'{"text": "a red bird"}', mtime=0)
    spoilt = bytearray(good)
    spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    tries = [bytes(spoilt), good[:-1], good[:12], good + b"x", good + good, b"", b"\x1f\x8b"]
    encodings = ["gzip", "x-gzip", "gzip, gzip", "br", "deflate", "x" * 500, "gzip;q=1"]
    headers = (*JSON, ("Content-Encoding", rng.choice(encodings)))
    return replace(NOTHING, headers=headers, body=(rng.choice(tries),))


def endless_gzip(rng: random.Random) -> HostileRequest:
    """Announces more than it sends, and stays."""
    body = gzip.compress(b" " * rng.choice([1000, 4 * MIB]), mtime=0)[:-8]
    headers = (*PACKED, ("Content-Length", str(len(body) + 100)))
    return replace(
        NOTHING, headers=headers, body=(body,), stays=True, may_close=True, expect=REFUSED
    )
