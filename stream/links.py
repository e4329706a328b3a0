"""Pictures and sounds that a record names by a link instead of carrying them.

Nothing is fetched unless an operator allowed it: folders for `file://`, hosts for `http(s)://`.
A producer must not be able to make a worker read its disk or call its neighbours.
"""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from encoders.types import Sample

from .errors import BadRecord
from .records import Blob, Record
from .settings import MIB, Settings

MAX_LINKED_BYTES = 64 * MIB
TIMEOUT_S = 10.0
TRIES = 3


class Links:
    """Fetches links within the limits that the settings allow. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._roots = [root.expanduser().resolve() for root in settings.link_roots]
        self._hosts = frozenset(settings.link_hosts)
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)

    def fetch(self, field: str, uri: str) -> bytes:
        """The bytes behind a link, MAX_LINKED_BYTES at most.

        Raises:
            BadRecord: not allowed, not there, too large, or not answering after TRIES tries.
        """
        parts = urlsplit(uri)
        if parts.scheme == "file":
            return self._file(field, Path(unquote(parts.path)))
        if parts.scheme in ("http", "https"):
            if parts.hostname not in self._hosts:
                raise BadRecord(
                    field, f"host {parts.hostname!r} is not in BRAID_LINK_HOSTS", stage="prepare"
                )
            return self._http(field, uri)
        raise BadRecord(
            field, f"scheme {parts.scheme!r} is none of file, http, https", stage="prepare"
        )

    def sample(self, record: Record) -> Sample:
        """A record as a model sees it, with what it links to. Raises BadRecord."""
        return Sample(
            id=record.id,
            text=record.text,
            image=self._content("image", record.image),
            audio=self._content("audio", record.audio),
        )

    def close(self) -> None:
        self._client.close()

    def _content(self, name: str, blob: Blob | None) -> bytes | None:
        if blob is None or blob.data is not None:
            return None if blob is None else blob.data
        assert blob.uri is not None
        return self.fetch(f"{name}.uri", blob.uri)

    def _file(self, field: str, path: Path) -> bytes:
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in self._roots):
            raise BadRecord(field, f"{path} is not below BRAID_LINK_ROOTS", stage="prepare")
        try:
            if (size := real.stat().st_size) > MAX_LINKED_BYTES:
                raise _too_large(field, size)
            return real.read_bytes()
        except OSError as error:
            raise BadRecord(field, f"{path}: {error.strerror}", stage="prepare") from None

    def _http(self, field: str, uri: str) -> bytes:
        for attempt in range(1, TRIES + 1):
            try:
                with self._client.stream("GET", uri) as answer:
                    answer.raise_for_status()
                    body = bytearray()
                    for chunk in answer.iter_bytes():
                        body += chunk
                        if len(body) > MAX_LINKED_BYTES:
                            raise _too_large(field, len(body))
                    return bytes(body)
            except httpx.HTTPError as error:
                status = getattr(getattr(error, "response", None), "status_code", 500)
                if attempt == TRIES or status < 500:
                    raise BadRecord(
                        field, f"{uri[:200]}: {error} (try {attempt} of {TRIES})", stage="prepare"
                    ) from None
                time.sleep(0.2 * attempt)
        raise AssertionError("unreachable")


def _too_large(field: str, size: int) -> BadRecord:
    return BadRecord(
        field,
        f"is {size} bytes behind its link, the limit is {MAX_LINKED_BYTES}",
        stage="prepare",
    )
