"""msgpack: packing, and unpacking of untrusted bytes within memory bounds.

A byte can become an object of 56 bytes, and maps whose keys collide cost the square of their size,
so the size in bytes bounds neither memory nor time. The budget of objects is checked while a value
is unpacked, at each complete map and list. An ordinary record has about five objects.
"""

from __future__ import annotations

import threading
from typing import Any

import msgpack

from ..errors import BadRecord
from ..strict_json import strict_json

MAX_OBJECTS = 65_536  # in a value, without names
MAX_DEPTH = 16
MAX_NAME_BYTES = 128
SHOWN_CHARS = 60


class _OwnPacker(threading.local):
    """A packer for each thread: to make one, with its buffer, costs as much as to pack a row."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(use_bin_type=True).pack


_packer = _OwnPacker()


def pack(value: Any) -> bytes:
    """msgpack bytes of a value made of maps, lists, strings, bytes and numbers."""
    packed: bytes = _packer.pack(value)
    return packed


def unpack_map(value: bytes) -> dict[str, Any]:
    """Unpack a value that braid's processes wrote, msgpack or JSON. Raises BadRecord."""
    if value[:1] != b"{":  # which begins no map of msgpack
        return _unpack(value, {})
    try:
        raw: dict[str, Any] = strict_json(value.decode())
    except (ValueError, RecursionError) as error:
        raise BadRecord("value", f"is not JSON ({len(value)} bytes): {error}") from None
    return raw


def unpack_bounded(value: bytes) -> dict[str, Any]:
    """Unpack an untrusted value.

    Raises:
        BadRecord: not a msgpack map, more than MAX_OBJECTS, deeper than MAX_DEPTH, or a name that
            is not a string of at most MAX_NAME_BYTES of UTF-8.
    """
    left, containers = MAX_OBJECTS, 0

    def count(objects: int) -> None:
        nonlocal left, containers
        left -= objects
        containers += 1
        if left < 0:
            raise BadRecord("value", f"holds more than the limit of {MAX_OBJECTS} objects")

    def on_map(raw: dict[Any, Any]) -> dict[Any, Any]:
        count(len(raw))
        for name in raw:
            if type(name) is not str:
                raise BadRecord("value", f"names must be strings, got {kind(name)}")
            if len(name) > MAX_NAME_BYTES or not name.isascii():
                _check_name(name)
        return raw

    def on_list(raw: list[Any]) -> list[Any]:
        count(len(raw))
        return raw

    raw = _unpack(
        value,
        {
            "object_hook": on_map,
            "list_hook": on_list,
            "max_array_len": MAX_OBJECTS,
            "max_map_len": MAX_OBJECTS,
        },
    )
    if containers > MAX_DEPTH:
        _check_depth(raw)
    return raw


def kind(value: object) -> str:
    """The name of a value's type, for messages."""
    return "nothing" if value is None else type(value).__name__


def shown(value: object) -> str:
    """A value for a message, bounded in size; nested values are not walked."""
    if isinstance(value, (str, bytes)):
        return repr(value[:SHOWN_CHARS]) + ("…" if len(value) > SHOWN_CHARS else "")
    if isinstance(value, (dict, list, tuple)):
        return f"a {kind(value)} of {len(value)}"
    return repr(value)[:SHOWN_CHARS] if isinstance(value, (int, float)) else kind(value)


def _unpack(value: bytes, limits: dict[str, Any]) -> dict[str, Any]:
    try:
        raw = msgpack.unpackb(value, raw=False, strict_map_key=True, **limits)
    except (BadRecord, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (msgpack raises many kinds on hostile bytes)
        what = str(error) or type(error).__name__
        raise BadRecord("value", f"is not msgpack ({len(value)} bytes): {what[:200]}") from None
    if not isinstance(raw, dict):
        raise BadRecord("value", f"must be a msgpack map, got {kind(raw)}")
    return raw


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
        raise BadRecord(
            "value",
            f"has a name of {len(name)} characters, the limit is {MAX_NAME_BYTES} bytes of UTF-8: "
            f"{shown(name)}",
        )


def _check_depth(raw: dict[str, Any]) -> None:
    level: list[Any] = [raw]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for outer in level
            for part in (outer.values() if type(outer) is dict else outer)
            if type(part) is dict or type(part) is list
        ]
        if not level:
            return
    raise BadRecord("value", f"is nested deeper than the limit of {MAX_DEPTH}")
