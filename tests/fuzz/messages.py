"""Messages for `records`, mutated with knowledge of msgpack and of the schema.

    for case in messages(seed=1, count=100_000): ...

Each is a function of its seed and number, so that a failing one can be made again alone.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack

from tests.encoders.material import png, wav
from tests.fuzz.texts import texts

Pairs = list[tuple[Any, Any]]
Made = tuple[bytes, bytes | None]

TEXTS = [text for _, text in texts() if len(text) < 10_000]
WORDS = ["a", "red", "green", "small", "old", "bird", "square", "of", "on", "with", "two", "far"]
FIELDS = ("v", "id", "ts", "text", "image", "audio", "labels", "meta", "new")
URIS = (
    "http://[",
    "http://[::1",
    "file:///a%00b",
    "http://\u2100.com/",
    "http://host:abc/",
    "\0",
    "",
    "file:///etc/hostname",
    "file://../../x",
    "http://127.0.0.1:1/",
    "ftp://x/",
    "data:,x",
    "//x",
    "http://" + "a." * 1000,
    "file:///" + "a/" * 1000,
    "http://127.0.0.1:99999/",
    "x" * 3000,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageCase:
    """One message.

    Attributes:
        name: the mutation and the number.
        healthy: nothing is wrong with it: it must become a prediction.
    """

    name: str
    key: bytes
    value: bytes | None
    healthy: bool = False


class Raw(bytes):
    """A value that is msgpack already."""


def messages(seed: int, count: int) -> Iterator[MessageCase]:
    """The messages 0 to `count` of a seed."""
    return (message(seed, number) for number in range(count))


def message(seed: int, number: int) -> MessageCase:
    """One message of a seed."""
    rng = random.Random(f"{seed}/{number}")
    id_ = f"fuzz-{rng.randrange(10**9)}-{number}"
    if rng.random() < 0.15:
        key, value = id_.encode(), packed(_pairs(rng, id_))
        return MessageCase(name=f"healthy-{number}", key=key, value=value, healthy=True)
    mutate = rng.choices(MUTATIONS, WEIGHTS)[0]
    key, content = mutate(rng, id_)
    return MessageCase(name=f"{mutate.__name__}-{number}", key=key, value=content)


def packed(pairs: Pairs) -> bytes:
    """A map of these pairs, in this order, the same name twice if it is there twice."""
    head = (
        bytes([0x80 | len(pairs)]) if len(pairs) < 16 else b"\xde" + struct.pack(">H", len(pairs))
    )
    return head + b"".join(_one(part) for pair in pairs for part in pair)


def _one(value: Any) -> bytes:
    return bytes(value) if isinstance(value, Raw) else bytes(msgpack.packb(value))


def _pairs(rng: random.Random, id_: str) -> Pairs:
    """A record that is right: text always, a small picture or sound now and then."""
    pairs: Pairs = [("v", 1), ("id", id_), ("ts", rng.randrange(1_600_000_000_000, 10**13))]
    pairs.append(("text", " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))))
    if rng.random() < 0.08:
        colour = tuple(rng.choices(range(256), k=rng.choice((3, 4))))
        pairs.append(("image", {"data": png(colour, (rng.randint(1, 40), rng.randint(1, 40)))}))
    if rng.random() < 0.04:
        pairs.append(("audio", {"data": wav(rng.uniform(50, 3000), rng.uniform(0.1, 0.5))}))
    if rng.random() < 0.5:
        pairs.append(("labels", {"colour": rng.choice(("red", "green"))}))
    if rng.random() < 0.5:
        pairs.append(("meta", {"lang": "de", "n": rng.randrange(100), "tags": ["a", "b"]}))
    return pairs


def _with(rng: random.Random, id_: str, field: str, value: Any) -> Made:
    """A right record with one field replaced or added."""
    pairs = [pair for pair in _pairs(rng, id_) if pair[0] != field]
    pairs.insert(rng.randint(0, len(pairs)), (field, value))
    return id_.encode(), packed(pairs)


def odd_value(rng: random.Random) -> Any:
    """A value of any type, its extremes first of all."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice((0, -1, 1, 2**31, 2**53, 2**63, 2**64 - 1, -(2**63))),
        lambda: rng.choice((0.0, -0.0, 1.5, float("nan"), float("inf"), -float("inf"), 5e-324)),
        lambda: rng.choice(("", "x", "x" * 300, "\0", "1")),
        lambda: Raw(_str(rng.choice(TEXTS))),
        lambda: rng.randbytes(rng.choice((0, 1, 100))),
        lambda: [odd_value(rng) for _ in range(rng.randint(0, 4))],
        lambda: {rng.choice(("data", "uri", "a", "")): rng.choice((None, 1, "x"))},
        lambda: msgpack.ExtType(rng.randrange(128), rng.randbytes(4)),
        lambda: msgpack.Timestamp(rng.randrange(2**34), rng.randrange(10**9)),
    ]
    value = rng.choice(kinds)()
    return Raw(_list(value)) if isinstance(value, list) else value


def _list(values: list[Any]) -> bytes:
    return b"\xdc" + struct.pack(">H", len(values)) + b"".join(map(_one, values))


def _str(content: bytes) -> bytes:
    return b"\xdb" + struct.pack(">I", len(content)) + content


def swap_type(rng: random.Random, id_: str) -> Made:
    return _with(rng, id_, rng.choice(FIELDS), odd_value(rng))


def deep(rng: random.Random, id_: str) -> Made:
    depth = rng.choice((2, 15, 16, 17, 100, 500, 1000, 1030, 5000))
    opening = rng.choice((b"\x91", b"\x81\xa1a", b"\xdc\0\1", b"\xdd\0\0\0\2\xc0"))
    return _with(rng, id_, rng.choice(FIELDS), Raw(opening * depth + b"\xc0"))


def claims_too_much(rng: random.Random, id_: str) -> Made:
    head = rng.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"))
    length = rng.choice((10, 1000, 10**6, 2**31 - 1, 2**32 - 1))
    return _with(rng, id_, rng.choice(FIELDS), Raw(head + struct.pack(">I", length) + b"\x90" * 9))


def wide(rng: random.Random, id_: str) -> Made:
    count = rng.choice((100, 1000, 65_535, 65_536, 70_000)) if rng.random() < 0.1 else 200
    item = rng.choice((b"\x90", b"\x80", b"\xc0", b"\xa1x", b"\x01"))
    return _with(
        rng, id_, rng.choice(FIELDS), Raw(b"\xdd" + struct.pack(">I", count) + item * count)
    )


def other_key(rng: random.Random, id_: str) -> Made:
    keys = (b"", b"\xff", b"__progress", id_.encode()[:-1], b"k" * 300, b"k" * 20_000, b"\0")
    return rng.choice(keys), packed(_pairs(rng, id_))


def odd_names(rng: random.Random, id_: str) -> Made:
    """Names that are no strings, in one of the maps or all of it."""
    names = (0, -1, 2**64 - 1, 1.5, True, None, b"text", Raw(b"\x90"), Raw(b"\x80"), float("nan"))
    body = packed([(rng.choice(names), odd_value(rng)) for _ in range(rng.randint(1, 5))])
    if rng.random() < 0.2:
        return id_.encode(), body
    return _with(rng, id_, rng.choice(FIELDS), Raw(body))


def truncated(rng: random.Random, id_: str) -> Made:
    value = packed(_pairs(rng, id_))
    return id_.encode(), value[: rng.randrange(len(value))]


def twice(rng: random.Random, id_: str) -> Made:
    """A field that is there twice, with another value."""
    pairs = _pairs(rng, id_)
    name, _ = rng.choice(pairs)
    pairs.insert(rng.randint(0, len(pairs)), (name, odd_value(rng)))
    return id_.encode(), packed(pairs)


def version_and_time(rng: random.Random, id_: str) -> Made:
    values = (0, 1, 2, -1, 1.0, True, "1", 2**53, 8_640_000_000_000_000, 8_640_000_000_000_001)
    return _with(rng, id_, rng.choice(("v", "ts")), rng.choice(values))


def long_names(rng: random.Random, id_: str) -> Made:
    sizes = (127, 128, 129, 300, 5000, 100_000, 3_000_000)
    size = rng.choices(sizes, (10, 10, 10, 10, 10, 1, 0.02))[0]
    name = rng.choice(("n", "\u00e9", "\0", "<b>")) * size
    body: dict[str, Any] = {name: rng.choice((1, "x", ["x"], None))}
    if rng.random() < 0.3:
        return _with(rng, id_, name, 1)
    return _with(rng, id_, rng.choice(("meta", "labels", "image")), body)


def many_names(rng: random.Random, id_: str) -> Made:
    names = {f"{rng.random()}"[: rng.randint(3, 12)]: i for i in range(rng.choice((10, 65, 2000)))}
    return _with(rng, id_, rng.choice(("meta", "labels", "new")), names)


def flipped(rng: random.Random, id_: str) -> Made:
    value = bytearray(packed(_pairs(rng, id_)))
    for _ in range(rng.randint(1, 8)):
        value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    return id_.encode(), bytes(value)


def spliced(rng: random.Random, id_: str) -> Made:
    one, other = packed(_pairs(rng, id_)), packed(_pairs(rng, id_))
    return id_.encode(), one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]


def noise(rng: random.Random, id_: str) -> Made:
    return id_.encode(), rng.randbytes(rng.choice((0, 1, 2, 10, 100, 1000)))


def deletion(rng: random.Random, id_: str) -> Made:
    keys = (b"", b"\xff\xfe", b"__x", b"k" * 257, b"k" * 5000, id_.encode(), id_.encode())
    return rng.choice(keys), None


def odd_id(rng: random.Random, id_: str) -> Made:
    ids = (
        "",
        "__x",
        "\0",
        "x" * 256,
        "x" * 257,
        "\u00e9" * 128,
        "a\nb",
        "../../x",
        "\u202e",
        "%00",
    )
    odd = rng.choice(ids)
    return odd.encode() or b"k", packed(_pairs(rng, odd))


def odd_link(rng: random.Random, id_: str) -> Made:
    return _with(rng, id_, rng.choice(("image", "audio")), {"uri": rng.choice(URIS)})


def odd_blob(rng: random.Random, id_: str) -> Made:
    names = ("data", "uri", "media_type", "new")
    blob: Pairs = [(rng.choice(names), odd_value(rng)) for _ in range(rng.randint(0, 4))]
    return _with(rng, id_, rng.choice(("image", "audio")), Raw(packed(blob)))


def odd_media(rng: random.Random, id_: str) -> Made:
    """A picture as a sound, noise as either, a file with some bytes changed."""
    data = bytearray(rng.choice((png(), wav(), rng.randbytes(200), b"RIFF", b"\x89PNG\r\n\x1a\n")))
    for _ in range(rng.choice((0, 1, 5))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return _with(rng, id_, rng.choice(("image", "audio")), {"data": bytes(data)})


def odd_labels(rng: random.Random, id_: str) -> Made:
    labels: Pairs = [
        (rng.choice(("colour", "new", "")), odd_value(rng)) for _ in range(rng.randint(0, 4))
    ]
    return _with(rng, id_, rng.choice(("labels", "meta")), Raw(packed(labels)))


def odd_text(rng: random.Random, id_: str) -> Made:
    return _with(rng, id_, "text", Raw(_str(rng.choice(TEXTS))))


MUTATIONS: tuple[Callable[[random.Random, str], Made], ...] = (
    swap_type,
    deep,
    claims_too_much,
    wide,
    other_key,
    odd_names,
    truncated,
    twice,
    version_and_time,
    long_names,
    many_names,
    flipped,
    spliced,
    noise,
    deletion,
    odd_id,
    odd_link,
    odd_blob,
    odd_media,
    odd_labels,
    odd_text,
)
WEIGHTS = [3 if mutate in (swap_type, flipped, odd_names) else 1 for mutate in MUTATIONS]
