"""Crash-safe files: fsync, atomic replacement, SHA-256 checksums."""

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
    """Create a file; it is fsynced when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Fsync a folder: creations, renames and removals in it are durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replaced(path: Path, content: bytes) -> None:
    """Replace a small file atomically: a reader sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with synced(temporary) as file:
        file.write(content)
    temporary.rename(path)
    sync_folder(path.parent)


def created(path: Path, content: bytes) -> None:
    """Create a small file atomically; it must not exist.

    If several processes try, one succeeds.

    Raises:
        FileExistsError: the file exists.
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
    """SHA-256 digests of a folder's files, by name; `only` selects one file, if it exists."""
    paths = sorted(folder.iterdir()) if only is None else [folder / only]
    digests = {}
    for path in paths:
        if path.is_file() and path.name != except_for:
            with open(path, "rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def sealed_json(content: dict[str, Any]) -> bytes:
    """JSON with its own SHA-256: a flipped bit in an offset would lose records silently."""
    return json.dumps(content | {"sha256": _sum(content)}).encode()


def unsealed_json(path: Path, format: int) -> dict[str, Any]:
    """Read what `sealed_json` wrote. Raises SnapshotError if it is damaged or of another format."""
    try:
        return unsealed(path.read_bytes(), format)
    except OSError as error:
        raise SnapshotError(f"{path}: {error!r}") from error
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from error


def unsealed(data: bytes, format: int) -> dict[str, Any]:
    """What `sealed_json` wrote. Raises SnapshotError if it is damaged or of another format."""
    try:
        content: dict[str, Any] = json.loads(data)
        if content.pop("sha256") != _sum(content):
            raise SnapshotError("it does not fit its own sha256")
        if content["format"] != format:
            raise SnapshotError(f"format {content['format']}, expected {format}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SnapshotError(repr(error)) from error
    return content


def _sum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
