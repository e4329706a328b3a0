"""Samples of WebDataset shards: tar files in which members of one key are one sample.

A member's key is its path up to the first dot of its name, what follows its kind: `000/17.jpg`,
`000/17.txt` and `000/17.json` are the sample `000/17`. The key is the record's id. Of a `.json`
the fields of a record are taken, scalars and lists of scalars of others become meta.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

from ...datasets.sources import MEDIA_TYPES
from ...kafka.schemas import MAX_RECORD_BYTES, Blob
from ...strict_json import strict_json
from .storage import Location
from .tables import Row, refuse

TEXTS = (".txt", ".text", ".caption")
OWN = ("id", "ts", "text", "labels", "meta")
CLASS = ".cls"

Members = dict[str, bytes]


def shard_rows(file: Location, skip: int, *, label: str | None = None) -> Iterator[Row]:
    """The samples of a shard, in its order.

    Args:
        skip: samples to leave out.
        label: the task of which a member `.cls` holds the class.
    """
    with file.open() as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
        for key, members in groupby(_files(tar), key=lambda member: _key(member.name)):
            if skip > 0:
                skip -= 1
                continue
            read = _sample(tar, key, members, label)
            share = min(1.0, raw.tell() / max(1, file.size))
            yield Row(f"{file.name}: {key}", share, read)


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        member.name = member.name.removeprefix("./")
        hidden = any(part.startswith(".") for part in member.name.split("/"))
        if member.isfile() and not hidden:
            yield member


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _sample(
    tar: tarfile.TarFile, key: str, members: Iterator[tarfile.TarInfo], label: str | None
) -> Callable[[], dict[str, Any]]:
    """Reads a sample, since the tar is a stream; what is wrong with it is raised later."""
    parts: Members = {}
    size, wrong = 0, ""
    for member in members:
        kind = "." + member.name.rpartition("/")[2].partition(".")[2].lower()
        last = "." + kind.rpartition(".")[2]
        size += member.size
        if size > MAX_RECORD_BYTES:
            wrong = wrong or f"is over the limit of {MAX_RECORD_BYTES} bytes"
        elif last in parts:
            wrong = wrong or f"has two members {last}"
        else:
            content = tar.extractfile(member)
            parts[last] = b"" if content is None else content.read()
    return partial(refuse, wrong) if wrong else partial(_fields, key, parts, label)


def _fields(key: str, parts: Members, label: str | None) -> dict[str, Any]:
    """The arguments of `Producer.send`. Raises ValueError."""
    fields: dict[str, Any] = {"id": key, "labels": {}, "meta": {}}
    for kind, content in parts.items():
        if kind in TEXTS:
            fields["text"] = content.decode("utf-8", "replace").strip()
        elif kind in MEDIA_TYPES:
            name, media_type = MEDIA_TYPES[kind]
            fields[name] = _only(fields, name, content, media_type)
        elif kind == CLASS and label is not None:
            fields["labels"][label] = content.decode("utf-8", "replace").strip()
    if ".json" in parts:
        _add(fields, strict_json(parts[".json"].decode("utf-8-sig")))
    return fields


def _only(fields: dict[str, Any], name: str, content: bytes, media_type: str) -> Blob:
    if name in fields:
        raise ValueError(f"has two members for {name}")
    return Blob(data=content, media_type=media_type)


def _add(fields: dict[str, Any], more: Any) -> None:
    """Add what a sample's `.json` says; its members come before it."""
    if not isinstance(more, dict):
        raise ValueError("its .json is no object")
    for name, value in more.items():
        if name in ("labels", "meta") and isinstance(value, dict):
            fields[name] = value | fields[name]
        elif name == "id" and isinstance(value, str | int) and value != "":
            fields["id"] = str(value)
        elif name in OWN:
            fields.setdefault(name, value)
        elif _is_meta(value):
            fields["meta"].setdefault(name, value)


def _is_meta(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return value is not None and all(isinstance(part, str | int | float) for part in parts)
