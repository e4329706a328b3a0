"""Fetches pictures and sounds that a record links to.

Only what an operator allows is fetched: folders for `file://`, hosts and ports for `http(s)://`. A
producer must not be able to make a worker read its disk, call hosts of its network, or block one of
its threads: bytes and seconds of each link are bounded.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import httpcore
import httpx

from braid.encoders.types import Sample

from ..errors import BadRecord, ConfigError, bad_record
from ..kafka.schemas import Blob, Record
from ..settings import MIB, Settings
from .deadlines import DeadlineBackend

MAX_LINKED_BYTES = 64 * MIB
TRIES = 3
RETRY_S = 0.2
SHOWN_CHARS = 200  # of a link in a message
PORTS = {"http": 80, "https": 443}
HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": "braid",
}

PASSING = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.RemoteProtocolError)


class Links:
    """Fetches links within the limits that the settings allow. Thread-safe.

    Raises:
        ConfigError: an entry of `links.hosts` is not a host or host:port.
    """

    def __init__(self, settings: Settings) -> None:
        self._roots = [root.expanduser().resolve() for root in settings.links.roots]
        self._hosts = {allowed for entry in settings.links.hosts for allowed in _allowed(entry)}
        self._timeout_s = settings.links.timeout_s
        self._backend = DeadlineBackend()
        self._pool = httpcore.ConnectionPool(
            network_backend=self._backend,
            max_connections=None,  # one for each thread
            max_keepalive_connections=16,
            keepalive_expiry=30.0,
        )

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
        return Sample(
            id=record.id,
            text=record.text,
            image=self._content("image", record.image),
            audio=self._content("audio", record.audio),
        )

    def close(self) -> None:
        self._pool.close()

    def _content(self, name: str, blob: Blob | None) -> bytes | None:
        if blob is None or blob.data is not None:
            return None if blob is None else blob.data
        assert blob.uri is not None
        return self.fetch(f"{name}.uri", blob.uri)

    def _fetch(self, field: str, uri: str) -> bytes:
        url = httpx.URL(uri)
        if url.scheme == "file":
            return self._file(field, Path(url.path))
        if url.scheme not in PORTS:
            raise _bad(field, uri, f"scheme {url.scheme!r} is none of file, http, https")
        port = PORTS[url.scheme] if url.port is None else url.port
        if (
            not {(url.host, port), (url.host, url.scheme if url.port is None else None)}
            & self._hosts
        ):
            raise _bad(field, uri, f"{url.host}:{port} is not in BRAID_LINKS__HOSTS")
        return self._http(field, uri, url)

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

    def _http(self, field: str, uri: str, url: httpx.URL) -> bytes:
        with self._backend.deadline(self._timeout_s) as deadline:
            for attempt in range(1, TRIES + 1):
                try:
                    status, content = self._get(field, uri, url)
                    if status < 500:
                        return content
                    problem = f"answers {status}"
                except PASSING as error:
                    problem = f"{type(error).__name__} {error}".strip()
                if deadline.left() <= RETRY_S * attempt:
                    raise _bad(field, uri, f"{problem}, not whole within {self._timeout_s:g} s")
                if attempt < TRIES:
                    time.sleep(RETRY_S * attempt)
        raise _bad(field, uri, f"{problem} (try {TRIES} of {TRIES})")

    def _get(self, field: str, uri: str, url: httpx.URL) -> tuple[int, bytes]:
        """Status and body; the body of a 5xx is not read."""
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        with self._pool.stream("GET", target, headers=HEADERS) as answer:
            if answer.status >= 500:
                return answer.status, b""
            if not 200 <= answer.status < 300:
                where = "; redirects are not followed" if 300 <= answer.status < 400 else ""
                raise _bad(field, uri, f"answers {answer.status}{where}")
            headers = {name.lower(): value for name, value in answer.headers}
            encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
            if encoding.strip().lower() not in ("", "identity"):
                raise _bad(field, uri, f"is encoded as {encoding!r}, which was not asked for")
            body = bytearray()
            for chunk in answer.iter_stream():
                body += chunk
                _check_size(field, len(body))
            return answer.status, bytes(body)


def _allowed(entry: str) -> list[tuple[str, int | str]]:
    """Host and port of an entry; without a port, the host with each scheme's default port."""
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
