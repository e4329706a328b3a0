"""Files that outlive a crash: synced, summed up, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import SnapshotError


@contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """A new file, on disk when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """What was made, renamed or removed in a folder is on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def replaced(path: Path, content: bytes) -> None:
    """Write a small file in one step: a reader sees the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with synced(temporary) as file:
        file.write(content)
    temporary.rename(path)
    sync_folder(path.parent)


def created(path: Path, content: bytes) -> None:
    """Write a small file that must not be there yet, whole and at once.

    Of several that try, one succeeds, in whatever process.

    Raises:
        FileExistsError: it is there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with synced(temporary) as file:
        file.write(content)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    sync_folder(path.parent)


def checked(folder: Path, *, only: str | None = None, except_for: str = "") -> dict[str, str]:
    """sha256 by name of a folder's files; of one, if it is there."""
    paths = sorted(folder.iterdir()) if only is None else [folder / only]
    found = {}
    for path in paths:
        if path.is_file() and path.name != except_for:
            with open(path, "rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def sealed_json(content: dict[str, Any]) -> bytes:
    """JSON with its own sha256: one flipped bit in an offset would lose records silently."""
    return json.dumps(content | {"sha256": _sum(content)}).encode()


def unsealed_json(path: Path, format: int) -> dict[str, Any]:
    """What `sealed_json` wrote. Raises SnapshotError unless it is whole and of this format."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if content.pop("sha256") != _sum(content):
            raise SnapshotError(f"{path}: it does not fit its own sha256")
        if content["format"] != format:
            raise SnapshotError(f"{path}: format {content['format']}, expected {format}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SnapshotError(f"{path}: {error!r}") from error
    return content


def _sum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
