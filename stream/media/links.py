"""Fetches files that a record links to.

Only what an operator allows is fetched: folders for `file://`, hosts and ports for `http(s)://`. A
producer must not be able to make a worker read its disk, call hosts of its network, or block one of
its threads: bytes and seconds of each link are bounded.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from braid.encoders.types import MEDIA, Sample

from ..errors import BadRecord, ConfigError, bad_record
from ..kafka.schemas import Blob, Record
from ..settings import MIB, Settings

if TYPE_CHECKING:  # the import takes 0.1 s, and few deployments have links
    from .http_links import HttpLinks

MAX_LINKED_BYTES = 64 * MIB
SHOWN_CHARS = 200  # of a link in a message
PORTS = {"http": 80, "https": 443}


class Links:
    """Fetches links within the limits that the settings allow. Thread-safe.

    Raises:
        ConfigError: an entry of `links.hosts` is not a host or host:port.
    """

    def __init__(self, settings: Settings) -> None:
        self._roots = [root.expanduser().resolve() for root in settings.links.roots]
        self._hosts = {allowed for entry in settings.links.hosts for allowed in _allowed(entry)}
        self._http: HttpLinks | None = None
        if self._hosts:
            from .http_links import HttpLinks

            self._http = HttpLinks(settings.links.timeout_s)

    def fetch(self, field: str, uri: str) -> bytes:
        """The bytes behind a link, MAX_LINKED_BYTES at most.

        Raises:
            BadRecord: not a link, not allowed, absent, empty, too large, encoded (compressed), a
                redirect, or not complete within the timeout or after TRIES tries.
        """
        try:
            content = self._fetch(field, uri)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a link causes is the record's)
            raise bad_record(error, stage="prepare", field=field) from None
        if not content:
            raise _bad(field, uri, "is empty")
        return content

    def sample(self, record: Record) -> Sample:
        """A record as a model's sample, with the bytes of its links. Raises BadRecord."""
        media: dict[str, Any] = {name: self.content(name, getattr(record, name)) for name in MEDIA}
        return Sample(id=record.id, text=record.text, **media)

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def content(self, name: str, blob: Blob | None) -> bytes | None:
        """The bytes of a file, or those behind its link. Raises BadRecord."""
        if blob is None or blob.data is not None:
            return None if blob is None else blob.data
        assert blob.uri is not None
        return self.fetch(f"{name}.uri", blob.uri)

    def _fetch(self, field: str, uri: str) -> bytes:
        from httpx import URL

        url = URL(uri)
        if url.scheme == "file":
            return self._file(field, Path(url.path))
        if url.scheme not in PORTS:
            raise _bad(field, uri, f"scheme {url.scheme!r} is none of file, http, https")
        port = PORTS[url.scheme] if url.port is None else url.port
        here = {(url.host, port), (url.host, url.scheme if url.port is None else None)}
        if self._http is None or not here & self._hosts:
            raise _bad(field, uri, f"{url.host}:{port} is not in BRAID_LINKS__HOSTS")
        return self._http.get(url, partial(_check_size, field), partial(_bad, field, uri))

    def _file(self, field: str, path: Path) -> bytes:
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in self._roots):
            raise _bad(field, str(path), "is not below BRAID_LINKS__ROOTS")
        try:
            if not stat.S_ISREG(real.stat().st_mode):  # opening a device may have side effects
                raise _bad(field, str(path), "is not a regular file")
            # O_NONBLOCK: if it has become a FIFO, opening it must not wait for a writer.
            with open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise _bad(field, str(path), "is not a regular file")
                content = file.read(MAX_LINKED_BYTES + 1)
        except OSError as error:
            raise _bad(field, str(path), error.strerror or type(error).__name__) from None
        _check_size(field, len(content))
        return content


def _allowed(entry: str) -> list[tuple[str, int | str]]:
    """Host and port of an entry; without a port, the host with each scheme's default port."""
    import httpx

    bare_ipv6 = entry.count(":") > 1 and "[" not in entry
    try:
        url = httpx.URL(f"//[{entry}]" if bare_ipv6 else f"//{entry}")
        if not url.host or url.raw_path not in (b"", b"/") or url.userinfo or url.fragment:
            raise ValueError("must be host or host:port")
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"links.hosts: {entry!r}: {error}") from None
    return [(url.host, url.port)] if url.port is not None else [(url.host, name) for name in PORTS]


def _check_size(field: str, size: int) -> None:
    if size > MAX_LINKED_BYTES:
        raise BadRecord(
            field,
            f"is over the limit of {MAX_LINKED_BYTES} bytes behind its link",
            stage="prepare",
        )


def _bad(field: str, uri: str, problem: str) -> BadRecord:
    return BadRecord(field, f"{uri[:SHOWN_CHARS]}: {problem}", stage="prepare")
