"""Files of this machine or of an object store, by fsspec.

A path may be a URL: `s3://`, `gs://`, `az://` (by the extra `cloud`, or another package of
fsspec's for them), `https://`, `file://`. Stars and question marks stand for names, and
`shard-{000..127}.tar` for so many files.
"""

from __future__ import annotations

import functools
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tarfile import TarError
from typing import IO, Any

import fsspec
from fsspec.core import split_protocol

from braid.index.redact import redacted

from ...errors import BadRecord, ConfigError

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
GZIP = ".gz"
MAX_FILES = 100_000  # of one path with braces
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class Location:
    """A file or a folder.

    Attributes:
        fs: its file system.
        path: as the file system names it.
        size: in bytes; of a folder 0.
        version: changes when the file changes.
    """

    fs: Any
    path: str
    size: int = 0
    version: str = ""
    is_folder: bool = False

    def __str__(self) -> str:
        if self.is_local:
            return self.path
        return redacted(str(self.fs.unstrip_protocol(self.path)))

    @property
    def is_local(self) -> bool:
        protocol = self.fs.protocol
        return "file" in (protocol if isinstance(protocol, tuple | list) else (protocol,))

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    @property
    def kind(self) -> str:
        """The suffix in lower case; of what gzip has packed, that of what is in it."""
        return PurePosixPath(self.name.lower().removesuffix(GZIP)).suffix

    @property
    def folder(self) -> Location:
        """The folder that it is in."""
        return Location(self.fs, str(PurePosixPath(self.path).parent), is_folder=True)

    def beside(self, path: str) -> Location:
        """The file of a path that is relative to this folder."""
        return Location(self.fs, str(PurePosixPath(self.path) / path))

    def open(self) -> IO[bytes]:
        """The file, read from its beginning. Raises OSError."""
        try:
            file: IO[bytes] = self.fs.open(self.path, "rb")
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise OSError(f"{self}: {error}") from error
        return file

    def unpacked(self, file: IO[bytes]) -> IO[bytes]:
        """An open file, unpacked if its name says that it is packed by gzip."""
        packed = self.name.lower().endswith(GZIP)
        return io.BufferedReader(gzip.GzipFile(fileobj=file)) if packed else file

    def read_bytes(self) -> bytes:
        """Raises OSError."""
        with self.open() as file:
            return file.read()

    def read_text(self, encoding: str, errors: str) -> str:
        return self.read_bytes().decode(encoding, errors)

    def files(self) -> list[tuple[PurePosixPath, Location]]:
        """The files below this folder with their paths in it, by name; no hidden ones."""
        entries = _listed(self.fs, self.path)
        placed = [
            (PurePosixPath(one.path).relative_to(self.path.rstrip("/") or "/"), one)
            for one in entries
        ]
        return [
            (place, one)
            for place, one in placed
            if not any(part.startswith(".") for part in place.parts)
        ]


def failures() -> tuple[type[Exception], ...]:
    """What reading of a file may raise, here or in an object store."""
    kinds: list[type[Exception]] = [OSError, ValueError, EOFError, TarError, zlib.error]
    if find_spec("obstore") is not None:
        from obstore.exceptions import BaseError

        kinds.append(BaseError)
    return tuple(kinds)


def locations(paths: Sequence[str]) -> list[Location]:
    """The files and folders that paths and URLs name, in this order.

    Raises:
        BadRecord: there is no such file or folder.
        ConfigError: a package for the kind of URL is not installed.
        OSError: the store does not answer, or refuses.
    """
    return [location for path in paths for location in _located(path)]


def _located(path: str) -> Iterator[Location]:
    fs, root = _file_system(path)
    for name in _braced(root):
        if any(sign in name for sign in "*?") and not (_is_local(fs) and fs.exists(name)):
            names = sorted(_asked(path, lambda name=name: fs.glob(name)))
            if not names:
                raise BadRecord("PATH", f"{redacted(path)}: no file fits")
            yield from (_at(fs, one, path) for one in names)
        else:
            yield _at(fs, name, path)


def _at(fs: Any, name: str, path: str) -> Location:
    if not _asked(path, lambda: fs.exists(name)):
        raise BadRecord("PATH", f"{redacted(path)} does not exist")
    info = _asked(path, lambda: fs.info(name))
    if info["type"] == "directory":
        return Location(fs, name.rstrip("/"), is_folder=True)
    return _file(fs, name, info)


def _listed(fs: Any, root: str) -> list[Location]:
    entries = _asked(root, lambda: fs.find(root, detail=True))
    return [_file(fs, name, info) for name, info in sorted(entries.items())]


def _file(fs: Any, name: str, info: dict[str, Any]) -> Location:
    changed = next(
        (info[key] for key in ("e_tag", "ETag", "etag", "mtime", "last_modified") if info.get(key)),
        "",
    )
    return Location(fs, name, int(info.get("size") or 0), f"{info.get('size')} {changed}")


def _file_system(path: str) -> tuple[Any, str]:
    protocol, _ = split_protocol(path)
    if protocol is None:  # fsspec would make a home of ~ and an option of ::
        return fsspec.filesystem("file"), str(Path(path).absolute())
    if protocol in PROTOCOLS:
        _use_obstore()
    try:
        fs, root = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise ConfigError(
            f"{redacted(path)}: pip install 'braid-stream[cloud]' ({error})"
        ) from None
    except ValueError as error:
        raise BadRecord("PATH", f"{redacted(path)}: {redacted(str(error))}") from None
    return fs, str(root)


@functools.cache
def _use_obstore() -> None:
    """Make obstore the client of object stores, if it is installed."""
    if find_spec("obstore") is not None:
        from obstore.fsspec import register

        register(PROTOCOLS)


def _is_local(fs: Any) -> bool:
    return bool(Location(fs, "").is_local)


def _braced(path: str) -> list[str]:
    """The paths that `{000..127}` in a path stands for. Raises BadRecord."""
    match = _BRACES.search(path)
    if match is None:
        return [path]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= MAX_FILES:
        raise BadRecord("PATH", f"{match[0]}: from 1 to {MAX_FILES} files")
    before, after = path[: match.start()], path[match.end() :]
    return [
        f"{before}{number:0{len(match[1])}d}{rest}"
        for number in range(first, last + 1)
        for rest in _braced(after)
    ]


def _asked(path: str, ask: Any) -> Any:
    """What a file system answers.

    Raises:
        BadRecord: there is no such file.
        OSError: it does not answer, or refuses.
    """
    try:
        return ask()
    except FileNotFoundError:
        raise BadRecord("PATH", f"{redacted(path)} does not exist") from None
    except MemoryError:
        raise
    except Exception as error:
        reason = redacted(" ".join(str(error).split()))[:300]
        raise OSError(f"{redacted(path)}: {reason or type(error).__name__}") from error
